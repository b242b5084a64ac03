"""Search of a step with its Optuna storage, MLflow run and folder; after a kill it resumes."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend

from roofscale import compute
from roofscale.addresses import require_quoted, without_credentials, without_secrets
from roofscale.config import RunConfig
from roofscale.errors import ConfigError, RecordError, RoofscaleError, one_line
from roofscale.files import read_record, write_json
from roofscale.measurement import Outcome
from roofscale.phases.search.choice import Choice
from roofscale.phases.search.memory_guard import MemoryBudget
from roofscale.phases.search.sampler import trial_results
from roofscale.phases.search.space import SearchSpec
from roofscale.phases.search.study import Search, open_study
from roofscale.phases.search.trial_result import TrialResult
from roofscale.phases.search.trial_runner import TrackedTrialRunner, TrialObserver
from roofscale.runners import RunInterrupted, Runner
from roofscale.runners.job_pool import JobPool
from roofscale.runners.supervise import Listener
from roofscale.tracking import TrackedRun, Tracker

CHOICE = "choice.json"
_JOURNAL = "study.journal"
# A killed worker sends no more heartbeats; after the grace period its trial is queued again.
_HEARTBEAT_SECONDS = 10
_GRACE_SECONDS = 60
_ORDER = "roofscale"  # user attribute of a study: what another worker needs to join it


@dataclass(frozen=True)
class SearchResult:
    """Result of a search."""

    spec: SearchSpec
    study: optuna.Study
    tried: tuple[TrialResult, ...]
    choice: Choice | None  # None: no trial stayed within its memory margin


class SearchObserver(TrialObserver, Protocol):
    """Observer of a search."""

    def announce_study(self, study_name: str) -> None:
        """Report that other workers can join this study from now on."""
        ...

    def end_search(self, found: SearchResult, run: TrackedRun) -> None:
        """Report that the search is finished, while its MLflow run is still open for figures."""
        ...


@dataclass(frozen=True)
class StepSearch:
    """Search of the steps of a phase, with all its dependencies."""

    tracker: Tracker
    make_runner: Callable[[Path, Listener], Runner]
    observer: SearchObserver
    tags: Mapping[str, str]  # of every run
    budget_of: Callable[[RunConfig], MemoryBudget]
    known: Callable[[SearchSpec, RunConfig], list[TrialResult]]  # returns the results of earlier runs of the same work
    pool: JobPool = field(default_factory=JobPool)  # limits the number of concurrent trials
    storage_url: str = ""  # of an Optuna RDB storage shared by several workers; empty: a file

    def choose(
        self, spec: SearchSpec, config: RunConfig, folder: Path, parent: TrackedRun, max_share: float
    ) -> dict[str, int]:
        """Search, or read the choice of an earlier process; return the chosen overrides, empty if no config fits.

        Args:
            spec: the space.
            config: the config that every trial changes.
            folder: of the search.
            parent: the MLflow run of the attempt.
            max_share: the memory margin of each trial.

        Raises:
            RunInterrupted: a trial was interrupted; the same command resumes there.
            ConfigError: the storage cannot be opened.
        """
        file = folder / CHOICE
        if file.exists():
            return read_record(file, lambda content: dict(content["overrides"]))
        folder.mkdir(parents=True, exist_ok=True)
        study = study_in(self.storage_url, folder, f"roofscale-{parent.run_id}-{folder.name}")
        run = self._open(study, spec, config, parent, folder.name, max_share)
        if self.storage_url:
            self.observer.announce_study(study.study_name)
        try:
            with run.closed_on_error():
                known = [replace(result, max_share=max_share) for result in self.known(spec, config)]
                choice = self._search(study, spec, config, folder, run, max_share, known).run()
        except RunInterrupted:
            run.finish(Outcome.INTERRUPTED)
            raise
        self.observer.end_search(SearchResult(spec, study, tuple(trial_results(study, spec, config)), choice), run)
        values = {knob: getattr(choice.chosen.config, knob) for knob in spec.space} if choice else {}
        reason = str(choice or "no trial stayed within its memory")
        write_json(file, {"overrides": values, "why": reason})
        run.artifact(file)
        run.set_tags({"choice": reason})
        run.finish(Outcome.OK)
        return values

    def join(self, study_name: str, folder: Path) -> None:
        """Run trials of a study that another process conducts, until none is left.

        Raises:
            ConfigError: there is no such study.
            RunInterrupted: a trial was interrupted; another worker runs it again.
        """
        storage = open_storage(self.storage_url, folder)
        try:
            order = optuna.load_study(study_name=study_name, storage=storage).user_attrs[_ORDER]
        except KeyError:
            names = ", ".join(sorted(optuna.get_all_study_names(storage))) or "none"
            raise ConfigError(f"--join {study_name}: no such study of Roofscale there; there are: {names}.") from None
        config = RunConfig().with_overrides(order["config"])
        spec = SearchSpec(**{**order["spec"], "space": {k: tuple(v) for k, v in order["spec"]["space"].items()}})
        study = open_study(storage, study_name)
        run = self.tracker.open(order["run_id"])
        self._search(study, spec, config, folder / f"worker-{os.getpid()}", run, order["max_share"]).run()

    def _search(
        self,
        study: optuna.Study,
        spec: SearchSpec,
        config: RunConfig,
        folder: Path,
        run: TrackedRun,
        max_share: float,
        known: Sequence[TrialResult] | None = None,
    ) -> Search:
        return Search(
            spec=spec,
            base=config,
            budget=replace(self.budget_of(config), max_share=max_share),
            usd_per_hour=compute.get(config.compute).usd_per_hour,
            study=study,
            trials=TrackedTrialRunner(self.tracker, run, folder, self.make_runner, self.observer, self.tags, max_share),
            known=known or (),
            is_conductor=known is not None,
            shared=bool(self.storage_url),
            pool=self.pool,
        )

    def _open(
        self, study: optuna.Study, spec: SearchSpec, config: RunConfig, parent: TrackedRun, name: str, max_share: float
    ) -> TrackedRun:
        """Open the MLflow run of the search, the parent of its trials, or resume the one that the study names."""
        order: dict[str, Any] | None = study.user_attrs.get(_ORDER)
        resumed = self.tracker.resume(order["run_id"]) if order else None
        if resumed:
            if not self.storage_url:  # in a shared study the open trials may be those of other workers
                self.tracker.close_lost(resumed.run_id)
            return resumed
        run = self.tracker.start(f"search {name}", {**self.tags, "search": study.study_name}, parent)
        fields = {**vars(spec), "space": dict(spec.space)}
        order = {"config": config.as_dict(), "run_id": run.run_id, "spec": fields, "max_share": max_share}
        study.set_user_attr(_ORDER, order)
        return run


def study_in(url: str, folder: Path, name: str) -> optuna.Study:
    """Open a study in the storage of ``open_storage``, or create it.

    Raises:
        RecordError: the file in ``folder`` is damaged.
        ConfigError: as for ``open_storage``.
    """
    try:
        return open_study(open_storage(url, folder), name)
    except Exception as error:  # a damaged journal fails Optuna's asserts or its decoding
        if url or isinstance(error, RoofscaleError | OSError):
            raise
        raise RecordError(
            f"{folder / _JOURNAL}: damaged ({type(error).__name__}: {one_line(error)}). Move its folder away, and the "
            "same command searches anew."
        ) from error


def open_storage(url: str, folder: Path) -> BaseStorage:
    """Open an RDB storage that several workers can share, or, without a URL, a journal file in ``folder``.

    Raises:
        ConfigError: the database cannot be reached, its driver is not installed, or another version of Optuna made it.
            The message hides a password in the URL.
    """
    if not url:
        return JournalStorage(JournalFileBackend(str(folder / _JOURNAL)))
    require_storage(url)
    try:
        return RDBStorage(
            url,
            heartbeat_interval=_HEARTBEAT_SECONDS,
            grace_period=_GRACE_SECONDS,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
        )
    except Exception as error:  # of SQLAlchemy, of its driver, or as the driver is not installed
        raise _unusable(url, error) from None


def require_storage(url: str) -> None:
    """Check the URL of a storage and its driver, without a connection to the database.

    Raises:
        ConfigError: the URL is malformed or its driver is not installed.
    """
    require_quoted("--storage", url)
    try:
        sqlalchemy.create_engine(url)
    except Exception as error:  # of SQLAlchemy, or as the driver is not installed
        raise _unusable(url, error) from None


def _unusable(url: str, error: Exception) -> ConfigError:
    text = without_secrets(one_line(error).replace(url, without_credentials(url)))
    reason = text.partition("(Background on this")[0].strip()  # without SQLAlchemy's link to its documentation
    return ConfigError(
        f"--storage {without_credentials(url)}: it cannot be opened ({type(error).__name__}: {reason}); expected "
        "a URL of SQLAlchemy such as postgresql+psycopg2://user@host/database, its driver installed, and the "
        "database there, as this version of Optuna makes it."
    )
