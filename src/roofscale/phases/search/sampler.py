"""Optuna sampler of a search: the next config to try in a finite space whose knee is searched for.

A ``GaussianProcess`` predicts the speed of every untried config. The next trial is the config with the largest expected
improvement on the fastest so far (Jones, Schonlau and Welch 1998, J. Global Optim. 13:455). If no improvement is worth
a trial, it is a smaller config that is likely to be as good as the fastest; if there is none either, the search is
over. Configs known to be too large for the memory are not proposed.
"""

import math
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from scipy import stats

from roofscale.config import RunConfig
from roofscale.forecast.probes import initial_probes
from roofscale.phases.search.choice import choose, size_key
from roofscale.phases.search.gaussian_process import GaussianProcess, Values
from roofscale.phases.search.memory_guard import MemoryBudget, MemoryGuard
from roofscale.phases.search.space import SearchSpec
from roofscale.phases.search.trial_result import SKIPPED, TrialResult

RESULT = "result"  # user attribute of a finished trial: its TrialResult
PRIOR_RUN = "prior_run"  # user attribute of a trial that was added from an earlier run: the id of that run


# Smallest expected gain in log samples/s. Replayed on a table of 30 configs (search_compare.json at eee07b1), 20
# studies each (medians): at 0.01 the choice was at 0.928 of the best in 7.8 trials, at 0.005 at 0.956 in 8.5, at 0.002
# at 0.942 in 8.7.
WORTH_A_TRIAL = 0.005
WORTH_A_LOOK = 0.3  # smallest probability that a smaller config is within the tolerance of the fastest
_PEAK_SPREAD = 0.02  # standard deviation of a log peak from run to run, about forecast.host_memory.MIN_SPREAD
MIN_OBSERVATIONS = 4  # feasible trials needed to fit the scales of the Gaussian process


@dataclass(frozen=True)
class Proposal:
    """A config to try, with the reason."""

    config: RunConfig
    why: str


class KneeSampler(optuna.samplers.BaseSampler):
    """Sampler of the config of the step, the probes for a forecast of memory, then what ``propose`` returns.

    Its state is in the study, so that any process can resume a study or join it.

    Args:
        spec: the space.
        base: the config that every trial changes, and the first to be tried.
        budget: the memory of the compute.
    """

    def __init__(self, spec: SearchSpec, base: RunConfig, budget: MemoryBudget) -> None:
        self.spec = spec
        self.base = base
        self.budget = budget
        self.distributions = {knob: IntDistribution(low, high) for knob, (low, high) in spec.space.items()}
        self.reasons: dict[int, str] = {}  # why a config was proposed, by the number of its trial
        self.failed: set[int] = set()  # numbers of the trials that failed in this process, and are not repeated
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
        results, tried_configs = trial_results(study, self.spec, self.base), self.configs(trials)
        state = (len(results), tried_configs)
        newest_state, proposal = self._newest
        if newest_state != state:
            proposal = self._propose(results, tried_configs)
            self._newest = (state, proposal)
        return proposal

    def configs(self, trials: Iterable[FrozenTrial]) -> set[RunConfig]:
        """Return the configs of trials that have a result, or may still get one, or failed in this process.

        A trial whose worker was killed or interrupted, or that was pruned as a duplicate, leaves its config to others.
        """
        open_states = (TrialState.RUNNING, TrialState.WAITING)
        return {
            self.spec.config_at(self.base, trial.params)
            for trial in trials
            if trial.params.keys() == self.spec.space.keys()
            and (RESULT in trial.user_attrs or trial.state in open_states or trial.number in self.failed)
        }

    def _propose(self, results: Sequence[TrialResult], tried_configs: Set[RunConfig]) -> Proposal | None:
        guard, largest = MemoryGuard(self.budget, results), self.spec.largest(self.base)
        starts = {self.base: "the config of the step"}
        # On a GPU, whose memory is forecast without probes, they give the Gaussian process its first observations.
        enough = guard.can_forecast(largest) if self.budget.kind else _feasible(results) >= MIN_OBSERVATIONS
        if not enough:
            starts |= dict.fromkeys(initial_probes(largest), "needed for a forecast of memory")
        for start, why in starts.items():
            sizes = {"batch_size": start.batch_size, "num_workers": start.num_workers}
            config = self.spec.config_at(self.base, self.spec.values(self.base.with_overrides(sizes)))
            if config not in tried_configs and not guard.known_too_large(config):
                return Proposal(config, why)
        left = [config for config in self.spec.configs(self.base) if config not in tried_configs]
        seed = self.base.seed + len(results)
        while proposal := propose(results, left, self.spec, guard.probability_within, seed):
            if not guard.known_too_large(proposal.config):
                return proposal
            left.remove(proposal.config)
        return None


def propose(
    tried: Sequence[TrialResult],
    left: Sequence[RunConfig],
    spec: SearchSpec,
    within: Callable[[RunConfig], float],
    seed: int,
) -> Proposal | None:
    """Propose the next config; None if no trial is likely to change the choice.

    Args:
        tried: the results so far.
        left: the untried configs, smallest first.
        spec: the space.
        within: returns the probability that a config stays within its memory margin, by which its expected improvement
            is weighted (Gardner et al. 2014, Bayesian Optimization with Inequality Constraints, ICML).
        seed: of the fits of the Gaussian processes.
    """
    if not left:
        return None
    choice = choose(tried, spec, seed)
    if choice is None or _feasible(tried) < MIN_OBSERVATIONS:
        return Proposal(left[0], "the smallest, as too little is known yet")
    mean, deviation = choice.rates.predict(left)
    best = float(choice.rates.predict([choice.best.config])[0][0])
    likely = np.minimum([within(config) for config in left], _within_by_trials(tried, left, spec, seed))
    gain = likely * _expected_improvement(mean, deviation, best)
    index = int(gain.argmax())
    if gain[index] > WORTH_A_TRIAL:
        return Proposal(left[index], f"may be faster: {gain[index]:.1%} expected")
    close: Values = likely * stats.norm.sf((best + math.log(1 - spec.tolerance) - mean) / deviation)
    smaller = [size_key(config) < size_key(choice.chosen.config) for config in left]
    index = int(np.where(smaller, close, 0.0).argmax())
    if smaller[index] and close[index] > WORTH_A_LOOK:
        return Proposal(left[index], f"smaller, and as fast with a probability of {close[index]:.0%}")
    return None


def _within_by_trials(tried: Sequence[TrialResult], left: Sequence[RunConfig], spec: SearchSpec, seed: int) -> Values:
    """Return each config's probability of staying within its memory margin, from the trials alone."""
    shares = [
        (t.config, math.log(t.share / t.max_share), _PEAK_SPREAD**2)
        for t in tried
        if t.outcome != SKIPPED and t.share > 0
    ]
    mean, deviation = GaussianProcess(shares, spec, seed).predict(left)
    probability: Values = stats.norm.cdf(-mean / deviation)
    return probability


def _expected_improvement(mean: Values, deviation: Values, best: float) -> Values:
    z = (mean - best) / deviation
    improvement: Values = deviation * (z * stats.norm.cdf(z) + stats.norm.pdf(z))
    return improvement


def trial_results(study: optuna.Study, spec: SearchSpec, base: RunConfig) -> list[TrialResult]:
    """Return the results of all finished trials, in their order."""
    finished = (t for t in study.get_trials(deepcopy=False) if t.state.is_finished() and RESULT in t.user_attrs)
    return [TrialResult.from_dict(spec.config_at(base, trial.params), trial.user_attrs[RESULT]) for trial in finished]


def _was_run(trial: FrozenTrial) -> bool:
    attributes = trial.user_attrs
    return RESULT in attributes and attributes[RESULT]["outcome"] != SKIPPED and PRIOR_RUN not in attributes


def _feasible(results: Sequence[TrialResult]) -> int:
    return sum(result.feasible for result in results)
