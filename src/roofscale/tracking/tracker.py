"""Tracker: opens runs in an MLflow experiment, and reads its earlier runs."""

import getpass
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from roofscale.measurement import Outcome
from roofscale.tracking.apply import artifacts_of, keeps_models
from roofscale.tracking.outbox import Outbox
from roofscale.tracking.records import RunRecord, is_not_found, search
from roofscale.tracking.run import TrackedRun
from roofscale.tracking.sender import Sender
from roofscale.tracking.server import ServerAway, store_exists, tracking_uri, translate_errors, wait_seconds
from roofscale.tracking.sync import OUTBOX, send_abandoned

_T = TypeVar("_T")
_RUNS = Path("runs")
_log = logging.getLogger(__name__)
_RETRY_SECONDS = 0.5  # between attempts while the server is away


def check_server() -> None:
    """Check with a query, before a command does any work, that the tracking server answers.

    A local database that does not exist yet is not created.

    Raises:
        TrackingError: the server does not answer, or is not a tracking server.
    """
    if store_exists():
        with translate_errors():
            MlflowClient().search_experiments(max_results=1)


class Tracker:
    """Tracker for one experiment, on the server that ``MLFLOW_TRACKING_URI`` names or in a local database.

    The experiment is created if it does not exist, restored if it is deleted. If the server does not answer, only
    opening a run and closing the tracker wait for it. Before the first run is opened, the outboxes of earlier processes
    are sent.

    Args:
        runs: the folder of the runs, which contains the outboxes.

    Raises:
        TrackingError: the server does not answer, or is not a tracking server.
    """

    def __init__(self, experiment: str, runs: Path = _RUNS) -> None:
        self.experiment = experiment
        self._patience = wait_seconds()
        with translate_errors():
            self.client = MlflowClient()
            existing = self.client.get_experiment_by_name(experiment)
            if existing is not None and existing.lifecycle_stage == "deleted":
                self.client.restore_experiment(existing.experiment_id)
            # For an experiment of this kind the UI shows its training runs first, not traces of language models.
            kind = {"mlflow.experimentKind": "custom_model_development"}
            self.experiment_id = (
                existing.experiment_id if existing else self.client.create_experiment(experiment, tags=kind)
            )
            if existing and not kind.keys() <= existing.tags.keys():  # `mlflow run --experiment-name` has created it
                self.client.set_experiment_tag(self.experiment_id, *next(iter(kind.items())))
            if not keeps_models(self.client, self.experiment_id):
                _log.warning(
                    f"{tracking_uri()}: a tracking server of a version before MLflow 3, without logged models; the "
                    "model of a run is kept among its artifacts."
                )
        self._runs: Path | None = runs  # None once the abandoned outboxes there have been sent
        self._sending_first = threading.Lock()
        self._sender = Sender(self.client, Outbox(runs / OUTBOX, tracking_uri()))

    @classmethod
    def find(cls, experiment: str) -> "Tracker | None":
        """Return the tracker of an existing experiment; None if it does not exist or is deleted. Creates nothing."""
        with translate_errors():
            existing = MlflowClient().get_experiment_by_name(experiment) if store_exists() else None
        return cls(experiment) if existing and existing.lifecycle_stage != "deleted" else None

    @classmethod
    def of_run(cls, run_id: str) -> "Tracker":
        """Return the tracker of the experiment that a run belongs to."""
        with translate_errors():
            client = MlflowClient()
            return cls(client.get_experiment(client.get_run(run_id).info.experiment_id).name)

    @property
    def has_refused(self) -> bool:
        """Whether the server has refused anything that was logged."""
        return self._sender.has_refused

    @property
    def uri(self) -> str:
        """The address of the tracking server, without a password."""
        return tracking_uri()

    def start(self, name: str, tags: Mapping[str, str], parent: TrackedRun | None = None) -> TrackedRun:
        """Open a new run, as a child of ``parent`` if given.

        Raises:
            TrackingError: the server has not answered for ``ROOFSCALE_TRACKING_PATIENCE`` seconds.
        """
        self._require_all_sent()
        nested = {"mlflow.parentRunId": parent.run_id} if parent else {}
        source = {"mlflow.source.name": "roofscale", "mlflow.source.type": "PROJECT", "mlflow.user": _user()}
        all_tags = {**source, **tags, **nested}
        run = self._retry(lambda: self.client.create_run(self.experiment_id, tags=all_tags, run_name=name))
        return TrackedRun(self._sender, run.info.run_id, run.info.start_time / 1000)

    def adopt(self, run_id: str, name: str, tags: Mapping[str, str]) -> TrackedRun | None:
        """Give an empty run of this experiment a name and tags, as ``start`` does; None if it does not exist."""
        run = self.resume(run_id)
        if run:
            run.set_tags({**tags, "mlflow.runName": name})
        return run

    def resume(self, run_id: str) -> TrackedRun | None:
        """Reopen a run of an earlier process; None if the server no longer has it, or it is deleted.

        Raises:
            TrackingError: the server has not answered for ``ROOFSCALE_TRACKING_PATIENCE`` seconds.
        """
        self._require_all_sent()
        return self._retry(lambda: self._resume(run_id))

    def _resume(self, run_id: str) -> TrackedRun | None:
        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            if is_not_found(error):
                return None
            raise
        if run.info.lifecycle_stage == "deleted":
            return None
        self.client.update_run(run_id, status="RUNNING")
        last_steps = {
            name: max(int(point.step) for point in self.client.get_metric_history(run_id, name))
            for name in run.data.metrics
        }
        return TrackedRun(self._sender, run_id, run.info.start_time / 1000, last_steps)

    def open(self, run_id: str) -> TrackedRun:
        """Return a run, finished or not, to log more to it; metrics that it already has are not continued."""
        return TrackedRun(self._sender, run_id, time.time())

    def close(self, wait: bool = True) -> None:
        """Make sure that the server has everything that was logged.

        Args:
            wait: whether to wait up to ``ROOFSCALE_TRACKING_PATIENCE`` seconds for a server that does not answer;
                False if the user wants to stop.

        Raises:
            TrackingError: the server does not answer; the message says what is kept in the outbox.
        """
        self._sender.close(self._patience if wait else 0.0)

    def attempts(self) -> list[RunRecord]:
        """Return the runs of this experiment that have no parent, newest first, without deleted ones."""
        with translate_errors():
            runs = search(self.client, self.experiment_id, "", "attributes.start_time DESC")
        return [run for run in runs if run.parent_id is None]

    def children(self, parent_id: str) -> list[RunRecord]:
        """Return the child runs of a run, oldest first, without deleted ones."""
        condition = f"tags.`mlflow.parentRunId` = '{parent_id}'"
        with translate_errors():
            return search(self.client, self.experiment_id, condition, "attributes.start_time ASC")

    def close_lost(self, parent_id: str) -> None:
        """Close the child runs that a killed process left open; ``resume`` opens one again."""
        for child in self.children(parent_id):
            if child.status == "RUNNING":
                self.open(child.run_id).finish(Outcome.INTERRUPTED)

    def read_text(self, run_id: str, artifact: str) -> str | None:
        """Read a text artifact (UTF-8) of a run; None if the run has no such artifact."""
        with tempfile.TemporaryDirectory() as folder:
            file = self.download(run_id, artifact, Path(folder))
            return file.read_text(encoding="utf-8") if file else None

    def download(self, run_id: str, artifact: str, folder: Path) -> Path | None:
        """Download an artifact (file or folder) of a run to a folder; None if the run has no such artifact."""
        with translate_errors():
            artifacts = artifacts_of(self.client, run_id)
            siblings = artifacts.list_artifacts(str(Path(artifact).parent).removeprefix("."))
            if all(item.path != artifact for item in siblings):
                return None
            return Path(artifacts.download_artifacts(artifact, str(folder)))  # type: ignore[no-untyped-call]

    def _require_all_sent(self) -> None:
        """Send the outboxes of earlier processes once, then wait until this process has sent everything."""
        with self._sending_first:
            if self._runs is not None:
                list(send_abandoned(self._runs))
                self._runs = None
        self._sender.flush_or_raise(self._patience)

    def _retry(self, call: Callable[[], _T]) -> _T:
        """Return the result of a call, repeated for up to ``_patience`` seconds while the server is away."""
        deadline = time.monotonic() + self._patience
        while True:
            try:
                with translate_errors():
                    return call()
            except ServerAway:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_RETRY_SECONDS)


def _user() -> str:
    """Return the user's name, or the user id in a container without an entry for it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
