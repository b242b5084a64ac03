"""How sure a mean is, and where it lies to what was asked: the intervals behind the criteria of time, use and memory.

An interval wholly within a band is a yes, wholly outside a no, and one across its edge is not enough evidence (two
one-sided tests, Schuirmann 1987, J. Pharmacokinet. Biopharm. 15:657).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from roofscale.measurement import StepRecord
from roofscale.stats.curves import Verdict, block_means

Values = npt.NDArray[np.float64]
Sized = tuple[StepRecord, int]  # a step with the samples of its batch

CONFIDENCE = 0.90  # of an interval: each of the two one-sided tests at 5 %
MIN_WINDOWS = 3  # two degrees of freedom: the fewest whose 90 % interval is narrower than three standard errors
# A window is some steps long where there are many, so that neighbours' noise does not count as independent.
MAX_WINDOWS = 10
# Standard deviation of log pace between runs of one config, which the steps of one run cannot show. Three rounds of the
# end-to-end benchmark gave ratios of two runs of 0.972, 1.01 and 1.04 (benchmarks/results/2026-11-23.md).
RUN_SPREAD = 0.025
# The same of runs that end once their pace is known, after seconds: measured on configs that were tried several times
# ("pace_spread" in benchmarks/results/search_compare.json).
TRIAL_SPREAD = 0.04

# Share of the machine's time that went to other work, over which a run's times prove nothing. A run that wants every
# core loses about as much of its speed; half the tightest tolerance of a shipped phase file (0.20).
MAX_OTHER_LOAD = 0.10


@dataclass(frozen=True)
class Estimate:
    """A mean with its uncertainty."""

    value: float
    variance: float  # of the value
    freedom: float  # degrees of freedom of the variance; infinite where it is given rather than estimated


@dataclass(frozen=True)
class Interval:
    """A CONFIDENCE interval."""

    centre: float
    low: float
    high: float

    def exp(self) -> "Interval":
        """The interval of a ratio, from that of its logarithm."""
        return Interval(math.exp(self.centre), math.exp(self.low), math.exp(self.high))

    def __format__(self, form: str) -> str:
        """``centre (90 % interval low to high)``, each number in the form asked for."""
        low, high = format(self.low, form), format(self.high, form)
        return f"{format(self.centre, form)} ({CONFIDENCE:.0%} interval {low} to {high})"


def compare_to_band(low: float, high: float, smallest: float, largest: float) -> Verdict:
    """Where an interval lies to a band: within it passed, outside of it failed, across its edge not enough evidence."""
    if smallest <= low and high <= largest:
        return Verdict.PASSED
    if high < smallest or largest < low:
        return Verdict.FAILED
    return Verdict.INSUFFICIENT_EVIDENCE


def interval(estimate: Estimate) -> Interval:
    """Student's interval of a mean."""
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, estimate.freedom)) * math.sqrt(estimate.variance)
    return Interval(estimate.value, estimate.value - reach, estimate.value + reach)


def difference(a: Estimate, b: Estimate) -> Estimate:
    """The difference of two independent means (Welch 1947, Biometrika 34:28)."""
    return Estimate(a.value - b.value, *_together(a, b))


def pooled(estimates: Sequence[Estimate]) -> Estimate:
    """One mean from several of the same thing, each weighed by its variance.

    Where they scatter more than their variances allow, the variance grows by as much (Birge 1932, Phys. Rev. 40:207).
    """
    if len(estimates) == 1:
        return estimates[0]
    weights = np.array([1 / one.variance for one in estimates])
    values = np.array([one.value for one in estimates])
    centre = float(np.average(values, weights=weights))
    scatter = float((weights * (values - centre) ** 2).sum()) / (len(estimates) - 1)
    freedom = math.inf if scatter <= 1 else len(estimates) - 1.0
    return Estimate(centre, max(1.0, scatter) / float(weights.sum()), freedom)


def add_variance(estimate: Estimate, variance: float) -> Estimate:
    """The same mean with a known variance on top of its own."""
    return Estimate(estimate.value, *_together(estimate, Estimate(0.0, variance, math.inf)))


def _together(a: Estimate, b: Estimate) -> tuple[float, float]:
    """Variance of a sum, with its degrees of freedom (Satterthwaite 1946, Biometrics Bull. 2:110)."""
    variance = a.variance + b.variance
    unsure = sum(part.variance**2 / part.freedom for part in (a, b))
    return variance, variance**2 / unsure if unsure > 0 else math.inf


def windows(values: Values) -> Values:
    """Means of at most MAX_WINDOWS stretches of a series."""
    return block_means(values, min(values.size, MAX_WINDOWS)) if values.size else values


def mean(blocks: Values) -> Estimate | None:
    """The mean of independent blocks; None with fewer than MIN_WINDOWS or where one is not finite."""
    if blocks.size < MIN_WINDOWS or not np.isfinite(blocks).all():
        return None
    return Estimate(float(blocks.mean()), float(blocks.var(ddof=1)) / blocks.size, blocks.size - 1.0)


def batch_means(series: Sequence[Values]) -> Estimate | None:
    """The mean of autocorrelated series, one a run: blocks as long as the root of each (batch means, Flegal and Jones
    2010, Ann. Stat. 38:1034).
    """
    return mean(np.concatenate([block_means(one, math.isqrt(one.size)) for one in series if one.size] or [np.zeros(0)]))


def log_rate(runs: Sequence[Sequence[tuple[float, float]]]) -> Estimate | None:
    """Logarithm of a rate, total amount over total weight, with the uncertainty that the windows of each run show.

    The ratio estimator (Cochran 1977, Sampling Techniques, ch. 6) weighs a smaller last batch by its size. None with
    fewer than MIN_WINDOWS windows, or where an amount is not finite and above zero.

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
    """Logarithm of the seconds a sample of some steps of each run, the spread between runs included."""
    found = log_rate([[(float(size), step.seconds) for step, size in run] for run in runs])
    return found and add_variance(found, between**2 / len(runs))
