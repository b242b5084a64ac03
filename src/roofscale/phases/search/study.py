"""The search itself: Optuna suggests, what is known beforehand is skipped, the rest is tried.

All that a search knows is in its Optuna storage, so that the same command goes on where it was stopped and several
workers can share one study. A trial carries its ``Tried`` as the user attribute ``tried``.
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
_TOLD = "told"  # user attribute of a trial that an earlier run stands for
_MOST_FAILURES = 3  # trials that end for no reason of memory, before the search gives up
_CLAIM = "claim"  # user attribute of a trial: "made" on its config, then "kept"
_POLL_SECONDS = 0.5

warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
optuna.logging.set_verbosity(optuna.logging.ERROR)


class TrialRunner(Protocol):
    """Where trials are run, and put on record."""

    def run(self, number: int, config: RunConfig, trial: RunConfig, foreseen: Mapping[str, float]) -> TrialResult:
        """Run ``trial``, which is short, and say what that tells of ``config``; what was foreseen goes on record first.

        Raises:
            RunInterrupted: it was interrupted; nothing of it counts.
            TrialFailed: it ended otherwise than well or for want of memory.
        """
        ...

    def skip(self, number: int, tried: TrialResult) -> TrialResult:
        """Put on record what was not run."""
        ...


@dataclass
class Search:
    """A search of one space from one base config.

    Args:
        spec: the space, and when enough was seen.
        base: what every trial stands on.
        room: the memory that there is.
        usd_per_hour: of the compute; None where it has no price.
        study: Optuna's, from ``open_study``.
        trials: where trials run.
        known: runs of earlier phases, told to the study and not repeated.
        shared: whether other processes may have trials under way in the same study.
        leads: whether this process conducts the search, rather than only taking part in it.
        pool: how many trials this process may have under way.
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
    _exhausted: int = field(default=-1, init=False)  # what was tried when nothing more was worth a trial
    _asking: threading.Lock = field(default_factory=threading.Lock, init=False)  # held by who decides what is next
    _reserved: int = field(default=0, init=False)  # queued trials that a thread is about to make
    _over: bool = field(default=False, init=False)  # a thread of this process was stopped, or failed

    def run(self) -> Choice | None:
        """Search to the end; the choice, None where no trial stayed within its memory.

        Raises:
            RunInterrupted: a trial was interrupted; the same study goes on from there.
            RoofscaleError: several trials failed for other reasons than memory.
        """
        if self.leads:
            self._tell_known()
            self._take_up()
            self._enqueue(self.base, "what the search stands on")
        self.pool.run_on_all(self._work)
        if self.leads:
            self._put_edge_on_record()
        return self.choice()

    def _work(self) -> None:
        """Try what is next until nothing is left, or until a trial of this process was stopped."""
        try:
            while self._await_next():
                self.study.optimize(self._objective, n_trials=1, catch=(TrialFailed,))
                if len(self._failed) >= _MOST_FAILURES:
                    failed = f"{len(self._failed)} trials failed, the search was given up: {self._failed[-1]}"
                    raise RoofscaleError(failed)
        except BaseException:
            self._over = True
            raise

    def _await_next(self) -> bool:
        """Wait for a trial to make; False where none will come."""
        while not self._over:
            if self._reserve():
                return True
            with self._asking:
                proposed = self._propose()
            if not proposed and not self._await_others():
                break
        return False

    def _reserve(self) -> bool:
        """Reserve one of the queued trials: Optuna gives a thread that finds none a trial that nobody thought of."""
        with self._asking:
            free = len(self._waiting()) > self._reserved
            self._reserved += free
            return free

    def choice(self) -> Choice | None:
        """What the trials so far would have chosen."""
        return choose(trial_results(self.study, self.spec, self.base), self.spec, self.base.seed)

    def _objective(self, trial: Trial) -> float:
        with self._asking:
            self._reserved -= 1
        values = {knob: trial.suggest_int(knob, low, high) for knob, (low, high) in self.spec.space.items()}
        config = self.spec.place(self.base, values)
        if twin := self._twin(trial, config):
            trial.set_user_attr("twin", twin)
            raise optuna.TrialPruned(f"the same config as trial {twin}")
        sight = MemoryGuard(self.room, trial_results(self.study, self.spec, self.base))
        if known := sight.known_too_large(config):
            tried = self.trials.skip(trial.number, known)
        else:
            tried = self._run(trial, config, sight.foreseen(config))
        trial.set_user_attr(TRIED, tried.as_dict())
        trial.set_constraint("memory", tried.over_margin)
        value = objective(tried, self.usd_per_hour)
        if tried.outcome == SKIPPED:
            trial.report(value, 0)
            raise optuna.TrialPruned(tried.why)
        return value

    def _run(self, trial: Trial, config: RunConfig, foreseen: Mapping[str, float]) -> TrialResult:
        so_far = self.choice()
        short = (
            shorten_for_trial(config, self.spec, so_far.best.rate) if so_far else shorten_for_trial(config, self.spec)
        )
        try:
            tried = self.trials.run(trial.number, config, short, foreseen)
            if math.isnan(tried.share):
                raise TrialFailed(f"trial {trial.number}: its memory was not measured")
        except TrialFailed as failed:
            self._failed.append(str(failed))
            raise
        return tried

    def _twin(self, trial: Trial, config: RunConfig) -> int | None:
        """Another trial of the same config, finished or under way; None where this one is to run it.

        Two workers may come to the same config at the same time. Each says what it wants before it looks, and says
        when it has decided: the lower number gives way only to one that had decided before it spoke (after Lamport
        1974, A New Solution of Dijkstra's Concurrent Programming Problem, Commun. ACM 17:453).
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
            self._give_time()  # a higher number is about to decide

    def _same(self, config: RunConfig) -> list[FrozenTrial]:
        return [trial for trial in self._placed() if self._config(trial) == config]

    def _placed(self) -> list[FrozenTrial]:
        """All trials whose config is known: a worker may have been killed, or may be, before it is."""
        trials = self.study.get_trials(deepcopy=False)
        return [trial for trial in trials if trial.params.keys() == self.spec.space.keys()]

    def _config(self, trial: FrozenTrial) -> RunConfig:
        return self.spec.place(self.base, trial.params)

    def _tell_known(self) -> None:
        """Put earlier runs into the study, once each."""
        told = {trial.user_attrs.get(_TOLD) for trial in self.study.get_trials(deepcopy=False)}
        ranges = {knob: IntDistribution(low, high) for knob, (low, high) in self.spec.space.items()}
        for one in self.known:
            if one.run_id not in told:
                trial = create_trial(
                    params=self.spec.values(one.config),
                    distributions=dict(ranges),
                    value=objective(one, self.usd_per_hour),
                    constraints={"memory": one.over_margin},
                    user_attrs={TRIED: one.as_dict(), _TOLD: one.run_id},
                )
                self.study.add_trial(trial)

    def _take_up(self) -> None:
        """Queue again what an earlier process left half done. In a shared study, what seems to run may really do so."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if not self.shared:
                self.study.tell(trial.number, state=TrialState.FAIL)
        trials = self._placed()
        kept = {self._config(trial) for trial in trials if trial.state is not TrialState.FAIL}
        for config in dict.fromkeys(map(self._config, trials)):
            if config not in kept:
                self.study.enqueue_trial(self.spec.values(config), user_attrs={"why": "it was left half done"})

    def _enqueue(self, config: RunConfig, why: str) -> None:
        self.study.enqueue_trial(self.spec.values(config), user_attrs={"why": why}, skip_if_exists=True)

    def _waiting(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))

    def _await_others(self) -> bool:
        """Give the trials of other workers time; False where there are none."""
        if not self._running() and not self._reserved:
            return False
        self._give_time()
        return True

    def _running(self) -> list[FrozenTrial]:
        """Trials of other workers."""
        alone = self.pool.max_jobs == 1 and not self.shared
        return [] if alone else self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    def _give_time(self) -> None:
        """Those of a worker that was killed are queued again once its signs of life are too old for the storage."""
        time.sleep(_POLL_SECONDS)
        optuna.storages.fail_stale_trials(self.study)

    def _put_edge_on_record(self) -> None:
        """Skip, for each worker count, the smallest batch that is too large: why nothing beyond it was tried."""
        tried = trial_results(self.study, self.spec, self.base)
        sight, over = MemoryGuard(self.room, tried), {one.config for one in tried if one.over_margin > 0}
        shown: set[int] = set()
        for config in self.spec.configs(self.base):
            if config.num_workers not in shown and (config in over or sight.known_too_large(config)):
                shown.add(config.num_workers)
                self._enqueue(config, "the smallest batch that is too large with so many workers")
        while self._reserve():
            self.study.optimize(self._objective, n_trials=1)

    def _propose(self) -> bool:
        """Queue the next trial; False where no further one is wanted."""
        tried = trial_results(self.study, self.spec, self.base)
        trials = self.study.get_trials(deepcopy=False)
        if sum(map(_was_run, trials)) + len(self._running()) + self._reserved >= self.spec.max_trials:
            return False
        if len(tried) == self._exhausted:
            return False
        taken = set(map(self._config, self._placed()))
        if probe := self._lacking_probe(tried, taken):
            self._enqueue(probe, "what a forecast of memory lacks")
            return True
        left = [config for config in self.spec.configs(self.base) if config not in taken]
        within = MemoryGuard(self.room, tried).probability_within
        found = propose(tried, left, self.spec, within, seed=self.base.seed + len(trials))
        if found:
            self._enqueue(found.config, found.why)
        else:
            self._exhausted = len(tried)
        return found is not None

    def _lacking_probe(self, tried: Sequence[TrialResult], taken: Set[RunConfig]) -> RunConfig | None:
        """The smallest config not yet tried of those from which host memory is forecast, which make a start on a GPU
        too; None where the forecast has what it needs."""
        corner = self.spec.largest(self.base)
        if self.room.kind and MemoryGuard(self.room, tried).can_forecast(corner):
            return None
        if not self.room.kind and sum(one.feasible for one in tried) >= MIN_OBSERVATIONS:
            return None
        for probe in initial_probes(corner):
            sizes = {"batch_size": probe.batch_size, "num_workers": probe.num_workers}
            config = self.spec.place(self.base, self.spec.values(self.base.with_overrides(sizes)))
            if config not in taken:
                return config
        return None


def open_study(storage: BaseStorage, name: str, seed: int) -> optuna.Study:
    """Open a study, or go on with one that is there.

    Its sampler only steps in where another worker has taken the trial that was queued; it is given penalty and
    constraints like any.
    """
    study = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
    study.sampler = optuna.samplers.TPESampler(
        seed=seed + len(study.get_trials(deepcopy=False)), multivariate=True, constant_liar=True
    )
    return study


def trial_results(study: optuna.Study, spec: SearchSpace, base: RunConfig) -> list[TrialResult]:
    """What all finished trials came to, in their order."""
    ended = (t for t in study.get_trials(deepcopy=False) if t.state.is_finished() and TRIED in t.user_attrs)
    return [TrialResult.from_dict(spec.place(base, trial.params), trial.user_attrs[TRIED]) for trial in ended]


def _was_run(trial: FrozenTrial) -> bool:
    attributes = trial.user_attrs
    return TRIED in attributes and attributes[TRIED]["outcome"] != SKIPPED and _TOLD not in attributes
