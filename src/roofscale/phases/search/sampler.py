"""Optuna sampler of a search: the config of the step, the probes for the memory forecast, then the Gaussian process.

Its state is in the study, so that any process can resume a study or join it.
"""

import math
from collections.abc import Iterable, Iterator, Sequence, Set
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from roofscale.config import RunConfig
from roofscale.forecast.probes import initial_probes
from roofscale.phases.search.acquisition import MIN_OBSERVATIONS, Proposal, propose
from roofscale.phases.search.memory_guard import MemoryBudget, MemoryGuard
from roofscale.phases.search.space import SearchSpace
from roofscale.phases.search.trial_result import SKIPPED, TrialResult

RESULT = "result"  # user attribute of a finished trial: its TrialResult
PRIOR_RUN = "prior_run"  # user attribute of a trial that was added from an earlier run: the id of that run


class KneeSampler(optuna.samplers.BaseSampler):
    """Sampler of the config that is most likely to change which one the search chooses.

    Args:
        spec: the space.
        base: the config that every trial changes, and the first to be tried.
        room: the memory of the compute.
    """

    def __init__(self, spec: SearchSpace, base: RunConfig, room: MemoryBudget) -> None:
        self.spec = spec
        self.base = base
        self.room = room
        self.distributions = {knob: IntDistribution(low, high) for knob, (low, high) in spec.space.items()}
        self.reasons: dict[int, str] = {}  # why a config was proposed, by the number of its trial
        self._newest: tuple[tuple[int, Set[RunConfig]], Proposal | None] = ((-1, set()), None)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return all knobs, which are sampled together."""
        return dict(self.distributions)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Sample all knobs of a trial.

        Raises:
            TrialPruned: no config is worth a trial while those of other workers run.
        """
        proposal = self.propose(study, trial.number)
        if proposal is None:
            raise optuna.TrialPruned("no config is worth a trial")
        self.reasons[trial.number] = proposal.why
        return self.spec.values(proposal.config)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Refuse: no trial asks for a knob outside the space."""
        raise NotImplementedError(f"{param_name} is not in the space")

    def propose(self, study: optuna.Study, number: float = math.inf) -> Proposal | None:
        """Propose a config for the trial of this number; None if no config is worth one or ``max_trials`` are run.

        Running trials of higher numbers do not count, so that one of several workers gets the last trial.
        """
        trials = study.get_trials(deepcopy=False)
        ran = sum(map(_was_run, trials))
        running = sum(trial.state is TrialState.RUNNING and trial.number < number for trial in trials)
        if ran + running >= self.spec.max_trials:
            return None
        results, taken = trial_results(study, self.spec, self.base), self.configs(trials)
        state = (len(results), taken)
        newest_state, proposal = self._newest
        if newest_state != state:
            proposal = self._propose(results, taken)
            self._newest = (state, proposal)
        return proposal

    def configs(self, trials: Iterable[FrozenTrial]) -> set[RunConfig]:
        """Return the configs of trials, without those of trials that were pruned as duplicates.

        A worker may be killed before it sets all parameters of a trial, which then has no config.
        """
        return {
            self.spec.place(self.base, trial.params)
            for trial in trials
            if trial.params.keys() == self.spec.space.keys()
            and (trial.state is not TrialState.PRUNED or RESULT in trial.user_attrs)
        }

    def _propose(self, results: Sequence[TrialResult], taken: Set[RunConfig]) -> Proposal | None:
        guard = MemoryGuard(self.room, results)
        for first in self._first(guard, sum(result.feasible for result in results)):
            if first.config not in taken:
                return first
        left = [config for config in self.spec.configs(self.base) if config not in taken]
        return propose(results, left, self.spec, guard, seed=self.base.seed + len(results))

    def _first(self, guard: MemoryGuard, observations: int) -> Iterator[Proposal]:
        """Yield the configs to try before the Gaussian process proposes one.

        The probes are for a forecast of host memory. On a GPU, whose memory is forecast without probes, they give the
        Gaussian process its first observations.
        """
        yield Proposal(self.spec.place(self.base, self.spec.values(self.base)), "the config of the step")
        largest = self.spec.largest(self.base)
        if guard.can_forecast(largest) if self.room.kind else observations >= MIN_OBSERVATIONS:
            return
        for probe in initial_probes(largest):
            sizes = {"batch_size": probe.batch_size, "num_workers": probe.num_workers}
            values = self.spec.values(self.base.with_overrides(sizes))
            yield Proposal(self.spec.place(self.base, values), "needed for a forecast of memory")


def trial_results(study: optuna.Study, spec: SearchSpace, base: RunConfig) -> list[TrialResult]:
    """Return the results of all finished trials, in their order."""
    finished = (t for t in study.get_trials(deepcopy=False) if t.state.is_finished() and RESULT in t.user_attrs)
    return [TrialResult.from_dict(spec.place(base, trial.params), trial.user_attrs[RESULT]) for trial in finished]


def _was_run(trial: FrozenTrial) -> bool:
    attributes = trial.user_attrs
    return RESULT in attributes and attributes[RESULT]["outcome"] != SKIPPED and PRIOR_RUN not in attributes
