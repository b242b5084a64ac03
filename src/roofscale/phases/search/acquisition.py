"""Acquisition: which config of a finite space to try next, so that its knee is found. Pure functions.

A ``GaussianProcess`` predicts the pace of every config that is left. The next one is that with the largest expected
improvement on the fastest so far (Jones, Schonlau and Welch 1998, J. Global Optim. 13:455); if none is worth a trial, a
smaller config that may well be as good as the fastest; if there is none of these either, the search is over.
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

# Expected gain in log samples/s. Replayed on a table of 30 configs (benchmarks/results/search_compare.json at
# eee07b1), 20 studies each (medians): at 0.01 the choice was at 0.928 of the best in 7.8 trials, at 0.005 at 0.956 in
# 8.5, at 0.002 at 0.942 in 8.7.
WORTH_A_TRIAL = 0.005
WORTH_A_LOOK = 0.3  # probability that a smaller config is within the tolerance of the fastest
_PEAK_SPREAD = 0.02  # standard deviation of a log peak from run to run, about that of forecast.host.LEAST_SPREAD
MIN_OBSERVATIONS = 4  # before that a process has nothing to learn its scales from


@dataclass(frozen=True)
class Proposal:
    """A config to try, and why."""

    config: RunConfig
    why: str


def propose(
    tried: Sequence[TrialResult],
    left: Sequence[RunConfig],
    spec: SearchSpace,
    guard: MemoryGuard,
    seed: int,
) -> Proposal | None:
    """The next config; None where no trial is likely to change the choice.

    Args:
        tried: what is known.
        left: the configs that were not tried, smallest first.
        spec: the space.
        guard: rules out what is too large, and gives the probability that a config stays within its memory, by which
            what it promises is weighed (Gardner et al. 2014, Bayesian Optimization with Inequality Constraints, ICML).
        seed: of what is random.
    """
    left = [one for one in left if not guard.exceeded_by(one)]
    if not left:
        return None
    choice = choose(tried, spec, seed)
    if choice is None or sum(one.feasible for one in tried) < MIN_OBSERVATIONS:
        return Proposal(left[0], "the smallest, as too little is known yet")
    mean, deviation = choice.rates.predict(left)
    best = float(choice.rates.predict([choice.best.config])[0][0])
    likely = np.minimum([guard.probability_within(one) for one in left], _within_by_trials(tried, left, spec, seed))
    gain = likely * _expected_improvement(mean, deviation, best)
    place = int(gain.argmax())
    if gain[place] > WORTH_A_TRIAL:
        return Proposal(left[place], f"may be faster: {gain[place]:.1%} expected")
    close: Values = likely * stats.norm.sf((best + math.log(1 - spec.tolerance) - mean) / deviation)
    smaller = [size_key(one) < size_key(choice.chosen.config) for one in left]
    place = int(np.where(smaller, close, 0.0).argmax())
    if smaller[place] and close[place] > WORTH_A_LOOK:
        return Proposal(left[place], f"smaller, and as fast with a probability of {close[place]:.0%}")
    return None


def _within_by_trials(tried: Sequence[TrialResult], left: Sequence[RunConfig], spec: SearchSpace, seed: int) -> Values:
    """The probability of staying within the memory as the trials alone tell it, whatever a forecast may say."""
    shares = [
        (t.config, math.log(t.share / t.max_share), _PEAK_SPREAD**2)
        for t in tried
        if t.outcome != SKIPPED and t.share > 0
    ]
    mean, deviation = GaussianProcess(shares, spec, seed).predict(left)
    found: Values = stats.norm.cdf(-mean / deviation)
    return found


def _expected_improvement(mean: Values, deviation: Values, best: float) -> Values:
    above = (mean - best) / deviation
    found: Values = deviation * (above * stats.norm.cdf(above) + stats.norm.pdf(above))
    return found
