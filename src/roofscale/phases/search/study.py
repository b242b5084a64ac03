"""Search of a space as an Optuna study: known results are added, and the configs that the sampler proposes are run.

The state of a search is in its Optuna storage, so that the same command resumes it and several workers can share one
study.
"""

import math
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from roofscale.config import RunConfig
from roofscale.errors import RoofscaleError
from roofscale.phases.search.choice import Choice, choose
from roofscale.phases.search.memory_guard import MemoryBudget, MemoryGuard
from roofscale.phases.search.sampler import PRIOR_RUN, RESULT, KneeSampler, trial_results
from roofscale.phases.search.space import SearchSpec
from roofscale.phases.search.trial_result import SKIPPED, TrialResult, objective
from roofscale.phases.search.trial_runner import TrialFailed, shorten_for_trial
from roofscale.runners.job_pool import JobPool

_MAX_FAILURES = 3  # trials that fail for another reason than memory, before the search fails
_POLL_SECONDS = 0.5

warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
optuna.logging.set_verbosity(optuna.logging.ERROR)


class TrialRunner(Protocol):
    """Runner of trials, which also tracks them."""

    def run(
        self, number: int, config: RunConfig, trial_config: RunConfig, forecast: Mapping[str, float]
    ) -> TrialResult:
        """Run the shortened config ``trial_config`` and return the result for ``config``.

        Args:
            number: of the trial.
            config: of the whole training.
            trial_config: the config that is run.
            forecast: metrics ``forecast/...`` to be logged before the run.

        Raises:
            RunInterrupted: the trial was interrupted; it has no result.
            TrialFailed: the trial failed for another reason than memory.
        """
        ...

    def skip(self, number: int, result: TrialResult) -> TrialResult:
        """Record a trial that is not run; return its result with the id of its MLflow run."""
        ...


@dataclass
class Search:
    """Search of one space from one base config.

    Args:
        spec: the space, with the limits that end the search.
        base: the config that every trial changes.
        budget: the memory of the compute.
        usd_per_hour: price of the compute; None if it has none.
        study: the Optuna study, from ``open_study``.
        trials: runner of the trials.
        known: results of runs of earlier phases, which are added to the study and not repeated.
        shared: whether other processes may run trials of the same study.
        is_conductor: whether this process conducts the search; otherwise it only runs trials.
        pool: limits the number of concurrent trials of this process.
    """

    spec: SearchSpec
    base: RunConfig
    budget: MemoryBudget
    usd_per_hour: float | None
    study: optuna.Study
    trials: TrialRunner
    known: Sequence[TrialResult] = ()
    shared: bool = False
    is_conductor: bool = True
    pool: JobPool = field(default_factory=JobPool)
    _sampler: KneeSampler = field(init=False)
    _sampling: threading.Lock = field(default_factory=threading.Lock, init=False)
    _errors: list[BaseException] = field(default_factory=list, init=False)  # of trials

    def __post_init__(self) -> None:
        self._sampler = self.study.sampler = KneeSampler(self.spec, self.base, self.budget)

    def run(self) -> Choice | None:
        """Search to the end; return the choice, None if no trial stayed within its memory margin.

        Raises:
            RunInterrupted: a trial was interrupted; the same study resumes there.
            RoofscaleError: several trials failed for other reasons than memory.
        """
        if self.is_conductor:
            self._add_prior_runs()
        if not self.shared:  # an earlier process was killed while it ran these
            for trial in self._trials(TrialState.RUNNING):
                self.study.tell(trial.number, state=TrialState.FAIL)
        with self.pool.running():
            while self._wait_for_work():
                self.study.optimize(
                    self._objective,
                    n_jobs=self.pool.max_jobs,
                    catch=(TrialFailed,),
                    callbacks=[self._stop_without_work],
                )
                for error in self._errors:
                    if not isinstance(error, TrialFailed):
                        raise error
                if len(self._errors) >= _MAX_FAILURES:
                    failed = f"{len(self._errors)} trials failed, the search was given up: {self._errors[-1]}"
                    raise RoofscaleError(failed)
        if self.is_conductor:
            self._record_smallest_too_large()
        return self.choice()

    def choice(self) -> Choice | None:
        """Return the choice by the trials so far."""
        return choose(self._results(), self.spec, self.base.seed)

    def _results(self) -> list[TrialResult]:
        return trial_results(self.study, self.spec, self.base)

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states or None)

    def _has_work(self) -> bool:
        return bool(self._trials(TrialState.WAITING) or self._sampler.propose(self.study))

    def _wait_for_work(self) -> bool:
        """Wait for a trial to run; return False if there will be none.

        While other workers run trials, their results may make further ones worth while. The trials of a worker that
        sends no more heartbeats fail, and the storage's callback queues them again.
        """
        while not self._has_work():
            if not self._trials(TrialState.RUNNING):
                return False
            time.sleep(_POLL_SECONDS)
            optuna.storages.fail_stale_trials(self.study)
        return True

    def _stop_without_work(self, study: optuna.Study, trial: FrozenTrial) -> None:
        if not self._has_work():
            study.stop()

    def _objective(self, trial: Trial) -> float:
        try:
            return self._run(trial)
        except optuna.TrialPruned:
            raise
        except BaseException as error:
            self._errors.append(error)  # Optuna discards the errors of threads that end after study.stop()
            self._sampler.failed.add(trial.number)
            if not isinstance(error, TrialFailed) or len(self._errors) >= _MAX_FAILURES:
                self.study.stop()
            raise

    def _run(self, trial: Trial) -> float:
        """Run the trial that the sampler proposes; return the value that Optuna maximises."""
        with self._sampling:  # the sampler of the next thread sees what this one tries
            values = {knob: trial.suggest_int(knob, low, high) for knob, (low, high) in self.spec.space.items()}
        config = self.spec.config_at(self.base, values)
        if why := self._sampler.reasons.get(trial.number):
            trial.set_user_attr("why", why)
        # A worker in another process may have sampled the same config meanwhile. At least one of two sees the other; if
        # both do, the config is sampled again.
        others = self._trials(TrialState.RUNNING, TrialState.COMPLETE)
        if config in self._sampler.configs(other for other in others if other.number != trial.number):
            raise optuna.TrialPruned("another worker has the same config")
        choice = self.choice()
        trial_config = shorten_for_trial(config, self.spec, choice.best.rate if choice else math.nan)
        result = self.trials.run(
            trial.number, config, trial_config, MemoryGuard(self.budget, self._results()).forecast_metrics(config)
        )
        if math.isnan(result.share):
            raise TrialFailed(f"trial {trial.number}: its memory was not measured")
        for key, attribute in _attributes(result).items():
            trial.set_user_attr(key, attribute)
        trial.set_constraint("memory", result.over_margin)
        return objective(result, self.usd_per_hour)

    def _add_prior_runs(self) -> None:
        """Add the results of earlier runs to the study, each once."""
        added = {trial.user_attrs.get(PRIOR_RUN) for trial in self._trials()}
        for result in self.known:
            if result.run_id not in added:
                self._add(result, {PRIOR_RUN: result.run_id})

    def _record_smallest_too_large(self) -> None:
        """Record the smallest batch that is too large for each number of workers: why no larger one was tried.

        These trials are pruned, with the reason in their result.
        """
        guard, tried_configs = MemoryGuard(self.budget, self._results()), self._sampler.configs(self._trials())
        recorded: set[int] = set()
        for config in self.spec.configs(self.base):
            if config.num_workers not in recorded and (too_large := guard.known_too_large(config)):
                recorded.add(config.num_workers)
                if config not in tried_configs:
                    skipped = self.trials.skip(len(self._trials()), too_large)
                    self._add(skipped, {"why": "the smallest batch that is too large for this number of workers"})

    def _add(self, result: TrialResult, attributes: Mapping[str, Any]) -> None:
        """Add a result to the study whose trial was not run here."""
        value, skipped = objective(result, self.usd_per_hour), result.outcome == SKIPPED
        self.study.add_trial(
            create_trial(
                state=TrialState.PRUNED if skipped else TrialState.COMPLETE,
                params=self.spec.values(result.config),
                distributions=dict(self._sampler.distributions),
                value=None if skipped else value,
                intermediate_values={0: value} if skipped else None,  # the value of a pruned trial
                constraints={"memory": result.over_margin},
                user_attrs={**_attributes(result), **attributes},
            )
        )


def open_study(storage: BaseStorage, name: str) -> optuna.Study:
    """Open a study, or create it."""
    return optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)


def _attributes(result: TrialResult) -> dict[str, Any]:
    """Return the user attributes of a trial. optuna-dashboard shows ``feasible``, but no constraints."""
    return {RESULT: result.as_dict(), "feasible": result.feasible}
