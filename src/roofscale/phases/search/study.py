"""Search of a space as an Optuna study: known results are added, too large configs are skipped, the others are run.

The state of a search is in its Optuna storage, so that the same command resumes it and several workers can share one
study. A trial has its ``TrialResult`` in the user attribute ``tried``.
"""

import math
import threading
import time
import warnings
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Protocol

import optuna
from optuna.distributions import IntDistribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from roofscale.config import RunConfig
from roofscale.errors import RoofscaleError
from roofscale.forecast.probes import initial_probes
from roofscale.phases.search.acquisition import MIN_OBSERVATIONS, propose
from roofscale.phases.search.choice import Choice, choose
from roofscale.phases.search.memory_guard import MemoryBudget, MemoryGuard
from roofscale.phases.search.space import SearchSpace
from roofscale.phases.search.trial_result import SKIPPED, TrialResult, objective
from roofscale.phases.search.trial_runner import TrialFailed, shorten_for_trial
from roofscale.runners.job_pool import JobPool

TRIED = "tried"
_KNOWN = "told"  # user attribute of a trial that was added from an earlier run: the id of that run
_MAX_FAILURES = 3  # trials that fail for another reason than memory, before the search fails
_CLAIM = "claim"  # user attribute of a running trial: its claim to its config was "made", then "kept"; see ``_twin``
_POLL_SECONDS = 0.5

warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
optuna.logging.set_verbosity(optuna.logging.ERROR)


class TrialRunner(Protocol):
    """Runner of trials, which also tracks them."""

    def run(self, number: int, config: RunConfig, trial: RunConfig, foreseen: Mapping[str, float]) -> TrialResult:
        """Run the shortened config ``trial`` and return the result for ``config``.

        Args:
            number: of the trial.
            config: of the whole training.
            trial: the config that is run.
            foreseen: metrics ``forecast/...`` to be logged before the run.

        Raises:
            RunInterrupted: the trial was interrupted; it has no result.
            TrialFailed: the trial failed for another reason than memory.
        """
        ...

    def skip(self, number: int, tried: TrialResult) -> TrialResult:
        """Record a trial that is not run; return its result with the id of its MLflow run."""
        ...


@dataclass
class Search:
    """Search of one space from one base config.

    Args:
        spec: the space, with the limits that end the search.
        base: the config that every trial changes.
        room: the memory of the compute.
        usd_per_hour: price of the compute; None if it has none.
        study: the Optuna study, from ``open_study``.
        trials: runner of the trials.
        known: results of runs of earlier phases, which are added to the study and not repeated.
        shared: whether other processes may run trials of the same study.
        leads: whether this process conducts the search; otherwise it only runs trials.
        pool: limits the number of concurrent trials of this process.
    """

    spec: SearchSpace
    base: RunConfig
    room: MemoryBudget
    usd_per_hour: float | None
    study: optuna.Study
    trials: TrialRunner
    known: Sequence[TrialResult] = ()
    shared: bool = False
    leads: bool = True
    pool: JobPool = field(default_factory=JobPool)
    _failed: list[str] = field(default_factory=list, init=False)
    _exhausted: int = field(default=-1, init=False)  # number of results when no further config was proposed
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)  # of the queue and of ``_reserved``
    _reserved: int = field(default=0, init=False)  # queued trials that threads are about to start
    _over: bool = field(default=False, init=False)  # a thread of this process was interrupted or failed

    def run(self) -> Choice | None:
        """Search to the end; return the choice, None if no trial stayed within its memory margin.

        Raises:
            RunInterrupted: a trial was interrupted; the same study resumes there.
            RoofscaleError: several trials failed for other reasons than memory.
        """
        if self.leads:
            self._add_known()
            self._requeue_unfinished()
            self._enqueue(self.base, "the config of the step")
        self.pool.run_on_all(self._work)
        if self.leads:
            self._record_memory_edge()
        return self.choice()

    def _work(self) -> None:
        """Run trials until none is left, or until a thread of this process was interrupted or failed."""
        try:
            while self._await_next():
                self.study.optimize(self._objective, n_trials=1, catch=(TrialFailed,))
                if len(self._failed) >= _MAX_FAILURES:
                    failed = f"{len(self._failed)} trials failed, the search was given up: {self._failed[-1]}"
                    raise RoofscaleError(failed)
        except BaseException:
            self._over = True
            raise

    def _await_next(self) -> bool:
        """Wait for a queued trial and reserve it; return False if there will be none."""
        while not self._over:
            if self._reserve():
                return True
            with self._lock:
                proposed = self._propose()
            if not proposed and not self._await_others():
                break
        return False

    def _reserve(self) -> bool:
        """Reserve one of the queued trials; return False if none is free.

        Without a reservation, a thread that finds the queue empty would get a config from Optuna's own sampler.
        """
        with self._lock:
            free = len(self._waiting()) > self._reserved
            self._reserved += free
            return free

    def choice(self) -> Choice | None:
        """Return the choice by the trials so far."""
        return choose(trial_results(self.study, self.spec, self.base), self.spec, self.base.seed)

    def _objective(self, trial: Trial) -> float:
        with self._lock:
            self._reserved -= 1
        values = {knob: trial.suggest_int(knob, low, high) for knob, (low, high) in self.spec.space.items()}
        config = self.spec.place(self.base, values)
        if twin := self._twin(trial, config):
            trial.set_user_attr("twin", twin)
            raise optuna.TrialPruned(f"the same config as trial {twin}")
        guard = MemoryGuard(self.room, trial_results(self.study, self.spec, self.base))
        if too_large := guard.known_too_large(config):
            result = self.trials.skip(trial.number, too_large)
        else:
            result = self._run(trial, config, guard.foreseen(config))
        trial.set_user_attr(TRIED, result.as_dict())
        trial.set_constraint("memory", result.over_margin)
        value = objective(result, self.usd_per_hour)
        if result.outcome == SKIPPED:
            trial.report(value, 0)  # a pruned trial has its last reported value
            raise optuna.TrialPruned(result.why)
        return value

    def _run(self, trial: Trial, config: RunConfig, forecast: Mapping[str, float]) -> TrialResult:
        choice = self.choice()
        short = shorten_for_trial(config, self.spec, choice.best.rate if choice else math.nan)
        try:
            result = self.trials.run(trial.number, config, short, forecast)
            if math.isnan(result.share):
                raise TrialFailed(f"trial {trial.number}: its memory was not measured")
        except TrialFailed as error:
            self._failed.append(str(error))
            raise
        return result

    def _twin(self, trial: Trial, config: RunConfig) -> int | None:
        """Return the number of another trial of the same config, finished or running; None if this trial is to run it.

        Two workers may get the same config at the same time. Each trial marks its claim as made before it looks for
        others, and as kept once it has decided. Of two undecided trials the lower number runs; it gives way only to a
        claim that was kept before its own was made (after Lamport 1974, A New Solution of Dijkstra's Concurrent
        Programming Problem, Commun. ACM 17:453).
        """
        trial.set_user_attr(_CLAIM, "made")
        while True:
            others = [other for other in self._same(config) if other.number != trial.number]
            running = [other for other in others if other.state is TrialState.RUNNING]
            before = [
                other for other in running if other.number < trial.number or other.user_attrs.get(_CLAIM) == "kept"
            ]
            if ahead := [other for other in others if TRIED in other.user_attrs] or before:
                return ahead[0].number
            if not any(_CLAIM in other.user_attrs for other in running):
                trial.set_user_attr(_CLAIM, "kept")
                return None
            self._sleep()  # until a trial with a higher number has decided

    def _same(self, config: RunConfig) -> list[FrozenTrial]:
        return [trial for trial in self._with_params() if self._config(trial) == config]

    def _with_params(self) -> list[FrozenTrial]:
        """Return the trials whose config is known; a worker may be killed before it sets all parameters."""
        trials = self.study.get_trials(deepcopy=False)
        return [trial for trial in trials if trial.params.keys() == self.spec.space.keys()]

    def _config(self, trial: FrozenTrial) -> RunConfig:
        return self.spec.place(self.base, trial.params)

    def _add_known(self) -> None:
        """Add the results of earlier runs to the study, each once."""
        added = {trial.user_attrs.get(_KNOWN) for trial in self.study.get_trials(deepcopy=False)}
        ranges = {knob: IntDistribution(low, high) for knob, (low, high) in self.spec.space.items()}
        for result in self.known:
            if result.run_id not in added:
                trial = create_trial(
                    params=self.spec.values(result.config),
                    distributions=dict(ranges),
                    value=objective(result, self.usd_per_hour),
                    constraints={"memory": result.over_margin},
                    user_attrs={TRIED: result.as_dict(), _KNOWN: result.run_id},
                )
                self.study.add_trial(trial)

    def _requeue_unfinished(self) -> None:
        """Queue again the configs whose trials an earlier process did not finish.

        In a shared study a running trial may be that of another worker, and is left as it is.
        """
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if not self.shared:
                self.study.tell(trial.number, state=TrialState.FAIL)
        trials = self._with_params()
        kept = {self._config(trial) for trial in trials if trial.state is not TrialState.FAIL}
        for config in dict.fromkeys(map(self._config, trials)):
            if config not in kept:
                self.study.enqueue_trial(
                    self.spec.values(config), user_attrs={"why": "an earlier process did not finish it"}
                )

    def _enqueue(self, config: RunConfig, why: str) -> None:
        self.study.enqueue_trial(self.spec.values(config), user_attrs={"why": why}, skip_if_exists=True)

    def _waiting(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))

    def _await_others(self) -> bool:
        """Wait a while for other running or reserved trials; return False if there are none."""
        if not self._running() and not self._reserved:
            return False
        self._sleep()
        return True

    def _running(self) -> list[FrozenTrial]:
        """Return the running trials of other threads and processes."""
        alone = self.pool.max_jobs == 1 and not self.shared
        return [] if alone else self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    def _sleep(self) -> None:
        """Sleep, then fail trials whose worker sends no more heartbeats; the storage's callback queues them again."""
        time.sleep(_POLL_SECONDS)
        optuna.storages.fail_stale_trials(self.study)

    def _record_memory_edge(self) -> None:
        """Record a trial, mostly a skipped one, of the smallest batch that is too large for each number of workers.

        It shows why no larger batch was tried.
        """
        tried = trial_results(self.study, self.spec, self.base)
        guard, over = MemoryGuard(self.room, tried), {result.config for result in tried if result.over_margin > 0}
        recorded: set[int] = set()
        for config in self.spec.configs(self.base):
            if config.num_workers not in recorded and (config in over or guard.known_too_large(config)):
                recorded.add(config.num_workers)
                self._enqueue(config, "the smallest batch that is too large for this number of workers")
        while self._reserve():
            self.study.optimize(self._objective, n_trials=1)

    def _propose(self) -> bool:
        """Queue the next trial; return False if none is needed."""
        tried = trial_results(self.study, self.spec, self.base)
        trials = self.study.get_trials(deepcopy=False)
        if sum(map(_was_run, trials)) + len(self._running()) + self._reserved >= self.spec.max_trials:
            return False
        if len(tried) == self._exhausted:
            return False
        taken = set(map(self._config, self._with_params()))
        if probe := self._next_probe(tried, taken):
            self._enqueue(probe, "needed for a forecast of memory")
            return True
        left = [config for config in self.spec.configs(self.base) if config not in taken]
        within = MemoryGuard(self.room, tried).probability_within
        proposal = propose(tried, left, self.spec, within, seed=self.base.seed + len(trials))
        if proposal:
            self._enqueue(proposal.config, proposal.why)
        else:
            self._exhausted = len(tried)
        return proposal is not None

    def _next_probe(self, tried: Sequence[TrialResult], taken: Set[RunConfig]) -> RunConfig | None:
        """Return the smallest untried config of the probes for a forecast of host memory; None if no more are needed.

        On a GPU, whose memory is forecast without probes, they give the Gaussian process its first observations.
        """
        largest = self.spec.largest(self.base)
        if self.room.kind and MemoryGuard(self.room, tried).can_forecast(largest):
            return None
        if not self.room.kind and sum(result.feasible for result in tried) >= MIN_OBSERVATIONS:
            return None
        for probe in initial_probes(largest):
            sizes = {"batch_size": probe.batch_size, "num_workers": probe.num_workers}
            config = self.spec.place(self.base, self.spec.values(self.base.with_overrides(sizes)))
            if config not in taken:
                return config
        return None


def open_study(storage: BaseStorage, name: str, seed: int) -> optuna.Study:
    """Open a study, or create it.

    Its sampler suggests a config only if another worker has taken the queued trial meanwhile. Then it must not suggest
    a config that is running (``constant_liar``).
    """
    study = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
    study.sampler = optuna.samplers.TPESampler(
        seed=seed + len(study.get_trials(deepcopy=False)), multivariate=True, constant_liar=True
    )
    return study


def trial_results(study: optuna.Study, spec: SearchSpace, base: RunConfig) -> list[TrialResult]:
    """Return the results of all finished trials, in their order."""
    ended = (t for t in study.get_trials(deepcopy=False) if t.state.is_finished() and TRIED in t.user_attrs)
    return [TrialResult.from_dict(spec.place(base, trial.params), trial.user_attrs[TRIED]) for trial in ended]


def _was_run(trial: FrozenTrial) -> bool:
    attributes = trial.user_attrs
    return TRIED in attributes and attributes[TRIED]["outcome"] != SKIPPED and _KNOWN not in attributes
