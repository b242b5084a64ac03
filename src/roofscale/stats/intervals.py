"""Confidence intervals of means and rates, which the criteria of time, utilisation and memory compare with bands.

An interval within a band passes, one outside fails, and one across an edge is insufficient evidence (two one-sided
tests, Schuirmann 1987, J. Pharmacokinet. Biopharm. 15:657).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from roofscale.measurement import StepRecord
from roofscale.stats.curves import Verdict, block_means

Values = npt.NDArray[np.float64]
Sized = tuple[StepRecord, int]  # a step with the samples of its batch

CONFIDENCE = 0.90  # of an interval: each of the two one-sided tests at 5 %
REACH = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)  # standard deviations to either end of a normal one
MIN_WINDOWS = 3  # two degrees of freedom, the fewest at which the 90 % interval reaches less than 3 standard errors
# In a long run a window spans several steps, so that correlated noise of neighbours does not count as independent.
MAX_WINDOWS = 10
# Standard deviation of log pace between runs of one config, which the steps of one run cannot show. Three rounds of the
# end-to-end benchmark gave ratios of two runs of 0.972, 1.01 and 1.04 (benchmarks/results/2026-11-23/bench.md).
RUN_SPREAD = 0.025
# The same for trials, which end after seconds once their pace is known: measured on configs that were tried repeatedly
# ("pace_spread" in benchmarks/results/2026-11-24/search_compare.json).
TRIAL_SPREAD = 0.04

# Largest share of the machine's CPU time that other processes may take before a run's times are no evidence. A run that
# uses every core loses about that share of its speed; half the tightest tolerance of a shipped phase file (0.20).
MAX_OTHER_LOAD = 0.10


@dataclass(frozen=True)
class Estimate:
    """A mean with its uncertainty."""

    value: float
    variance: float  # of the value
    freedom: float  # degrees of freedom of the variance; infinite if it is known rather than estimated


@dataclass(frozen=True)
class Interval:
    """A confidence interval at the level CONFIDENCE."""

    centre: float
    low: float
    high: float

    def exp(self) -> "Interval":
        """Return the interval of a ratio from that of its logarithm."""
        return Interval(math.exp(self.centre), math.exp(self.low), math.exp(self.high))

    def scaled(self, factor: float) -> "Interval":
        """Return the interval of the quantity times a positive factor."""
        return Interval(self.centre * factor, self.low * factor, self.high * factor)

    def __format__(self, form: str) -> str:
        """Format as ``centre (90 % interval low to high)``, each number by the format spec."""
        low, high = format(self.low, form), format(self.high, form)
        return f"{format(self.centre, form)} ({CONFIDENCE:.0%} interval {low} to {high})"


def compare_to_band(low: float, high: float, smallest: float, largest: float) -> Verdict:
    """Compare an interval with a band: within passes, outside fails, across an edge is insufficient evidence."""
    if smallest <= low and high <= largest:
        return Verdict.PASSED
    if high < smallest or largest < low:
        return Verdict.FAILED
    return Verdict.INSUFFICIENT_EVIDENCE


def interval(estimate: Estimate) -> Interval:
    """Compute Student's t interval of a mean."""
    from scipy import special  # stats.t.ppf calls the same function, and SciPy's stats take seconds to import

    quantile = float(special.stdtrit(float(estimate.freedom), (1 + CONFIDENCE) / 2))
    half_width = quantile * math.sqrt(estimate.variance)
    return Interval(estimate.value, estimate.value - half_width, estimate.value + half_width)


def difference(a: Estimate, b: Estimate) -> Estimate:
    """Estimate the difference of two independent means (Welch 1947, Biometrika 34:28)."""
    return Estimate(a.value - b.value, *_summed_variance(a, b))


def pooled(estimates: Sequence[Estimate]) -> Estimate:
    """Pool several estimates of one quantity, each weighted by its inverse variance.

    If they scatter more than their variances explain, the variance grows accordingly (Birge 1932, Phys. Rev. 40:207).
    """
    if len(estimates) == 1:
        return estimates[0]
    weights = np.array([1 / estimate.variance for estimate in estimates])
    values = np.array([estimate.value for estimate in estimates])
    centre = float(np.average(values, weights=weights))
    scatter = float((weights * (values - centre) ** 2).sum()) / (len(estimates) - 1)
    freedom = math.inf if scatter <= 1 else len(estimates) - 1.0
    return Estimate(centre, max(1.0, scatter) / float(weights.sum()), freedom)


def add_variance(estimate: Estimate, variance: float) -> Estimate:
    """Return the same mean with a known variance added to its own."""
    return Estimate(estimate.value, *_summed_variance(estimate, Estimate(0.0, variance, math.inf)))


def _summed_variance(a: Estimate, b: Estimate) -> tuple[float, float]:
    """Return the variance of a sum and its degrees of freedom (Satterthwaite 1946, Biometrics Bull. 2:110)."""
    variance = a.variance + b.variance
    denominator = sum(part.variance**2 / part.freedom for part in (a, b))
    return variance, variance**2 / denominator if denominator > 0 else math.inf


def windows(values: Values) -> Values:
    """Compute the means of at most MAX_WINDOWS consecutive blocks of a series."""
    return block_means(values, min(values.size, MAX_WINDOWS)) if values.size else values


def mean(blocks: Values) -> Estimate | None:
    """Estimate the mean of independent blocks; None if fewer than MIN_WINDOWS, or if one is not finite."""
    if blocks.size < MIN_WINDOWS or not np.isfinite(blocks).all():
        return None
    return Estimate(float(blocks.mean()), float(blocks.var(ddof=1)) / blocks.size, blocks.size - 1.0)


def batch_means(series: Sequence[Values]) -> Estimate | None:
    """Estimate the mean of autocorrelated series, one per run, by the method of batch means.

    Blocks are as long as the square root of the series (Flegal and Jones 2010, Ann. Stat. 38:1034).
    """
    return mean(np.concatenate([block_means(run, math.isqrt(run.size)) for run in series if run.size] or [np.zeros(0)]))


def log_rate(runs: Sequence[Sequence[tuple[float, float]]]) -> Estimate | None:
    """Estimate the logarithm of a rate, total amount over total weight, with its variance between windows.

    The ratio estimator (Cochran 1977, Sampling Techniques, ch. 6) weights a smaller last batch by its size. None if
    there are fewer than MIN_WINDOWS windows, or if an amount is not finite and positive.

    Args:
        runs: for each run (weight, amount) of its steps in order, such as samples and seconds.
    """
    windows = [np.sum(part, axis=0) for run in runs if run for part in np.array_split(run, min(len(run), MAX_WINDOWS))]
    if len(windows) < MIN_WINDOWS:
        return None
    weights, amounts = np.array(windows, dtype=np.float64).T
    if not (np.isfinite(amounts).all() and (amounts > 0).all() and (weights > 0).all()):
        return None
    rate = amounts.sum() / weights.sum()
    residuals = amounts - rate * weights
    count = len(windows)
    variance = count / (count - 1) * float((residuals**2).sum()) / float(amounts.sum()) ** 2
    return Estimate(math.log(rate), variance, count - 1.0)


def log_pace(runs: Sequence[Sequence[Sized]], between: float = RUN_SPREAD) -> Estimate | None:
    """Estimate the logarithm of the seconds per sample, with the variance between runs included.

    Args:
        runs: for each run its steps, with the samples of their batches.
        between: standard deviation of log pace between runs.
    """
    within_runs = log_rate([[(float(size), step.seconds) for step, size in run] for run in runs])
    return within_runs and add_variance(within_runs, between**2 / len(runs))
