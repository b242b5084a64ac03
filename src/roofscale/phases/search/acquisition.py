"""Acquisition: the next config to try in a finite space whose knee is searched for. Pure functions.

A ``GaussianProcess`` predicts the speed of every untried config. The next trial is the config with the largest expected
improvement on the fastest so far (Jones, Schonlau and Welch 1998, J. Global Optim. 13:455). If no improvement is worth
a trial, it is a smaller config that is likely to be as good as the fastest; if there is none either, the search is
over.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from roofscale.config import RunConfig
from roofscale.phases.search.choice import choose, size_key
from roofscale.phases.search.gaussian_process import GaussianProcess, Values
from roofscale.phases.search.memory_guard import MemoryGuard
from roofscale.phases.search.space import SearchSpace
from roofscale.phases.search.trial_result import SKIPPED, TrialResult

# Smallest expected gain in log samples/s. Replayed on a table of 30 configs (benchmarks/results/search_compare.json at
# eee07b1), 20 studies each (medians): at 0.01 the choice was at 0.928 of the best in 7.8 trials, at 0.005 at 0.956 in
# 8.5, at 0.002 at 0.942 in 8.7.
WORTH_A_TRIAL = 0.005
WORTH_A_LOOK = 0.3  # smallest probability that a smaller config is within the tolerance of the fastest
_PEAK_SPREAD = 0.02  # standard deviation of a log peak from run to run, about forecast.host_memory.MIN_SPREAD
MIN_OBSERVATIONS = 4  # feasible trials needed to fit the scales of the Gaussian process


@dataclass(frozen=True)
class Proposal:
    """A config to try, with the reason."""

    config: RunConfig
    why: str


def propose(
    tried: Sequence[TrialResult],
    left: Sequence[RunConfig],
    spec: SearchSpace,
    guard: MemoryGuard,
    seed: int,
) -> Proposal | None:
    """Propose the next config; None if no trial is likely to change the choice.

    Args:
        tried: the results so far.
        left: the untried configs, smallest first.
        spec: the space.
        guard: rules out configs that are too large, and returns the probability that a config stays within its memory
            margin, by which its expected improvement is weighted (Gardner et al. 2014, Bayesian Optimization with
            Inequality Constraints, ICML).
        seed: of the fits of the Gaussian processes.
    """
    left = [config for config in left if not guard.exceeded_by(config)]
    if not left:
        return None
    choice = choose(tried, spec, seed)
    if choice is None or sum(result.feasible for result in tried) < MIN_OBSERVATIONS:
        return Proposal(left[0], "the smallest, as too little is known yet")
    mean, deviation = choice.rates.predict(left)
    best = float(choice.rates.predict([choice.best.config])[0][0])
    by_guard = [guard.probability_within(config) for config in left]
    likely = np.minimum(by_guard, _within_by_trials(tried, left, spec, seed))
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


def _within_by_trials(tried: Sequence[TrialResult], left: Sequence[RunConfig], spec: SearchSpace, seed: int) -> Values:
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
