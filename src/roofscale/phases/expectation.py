"""What a step is expected to measure, stated before it runs, and how far the measurement bears it out.

A ratio of times carries the noise of its steps, so it is judged by an interval: wholly within the tolerance is as
expected, wholly outside is not, and anything between is insufficient evidence (two one-sided tests, Schuirmann 1987).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from roofscale.measurement import Measurement
from roofscale.train.health import Finding, Verdict

REFERENCES = ("previous", "base", "absolute")
CONFIDENCE = 0.90  # of the interval: each of the two one-sided tests at 5 %
RESAMPLES = 2000
MIN_STEPS = 4  # the first, which is left out, and three to resample

# Metrics that come from the mean seconds of the steps, with its power
_TIMED: Mapping[str, int] = {"speed/seconds_per_epoch": 1, "speed/seconds_per_sample": 1, "speed/samples_per_s": -1}


@dataclass(frozen=True)
class Expectation:
    """A metric's expected value, as a ratio to another step's or absolute."""

    metric: str
    of: str  # of REFERENCES: the previous step, the base step, or nothing (an absolute value)
    value: float
    tolerance: float  # share of the value, either way

    @property
    def band(self) -> tuple[float, float]:
        """Smallest and largest value that is as expected."""
        return self.value * (1 - self.tolerance), self.value * (1 + self.tolerance)


def is_timed(metric: str) -> bool:
    """Whether a metric comes from the seconds of the steps, which a busy machine stretches."""
    return metric in _TIMED


def compare(expectation: Expectation, runs: Sequence[Measurement], reference: Measurement | None) -> Finding:
    """Hold the runs of a step (one, or several seeds, whose evidence is pooled) against one expectation."""
    name, of = expectation.metric, expectation.of
    measured = _mean(runs, name)
    if of != "absolute":
        measured /= _mean([reference] if reference else [], name) or math.nan
    if not math.isfinite(measured):
        missing = "no measurement" if reference or of == "absolute" else f"no {of} step to compare with"
        return Finding(Verdict.INSUFFICIENT_EVIDENCE, f"{name}: {missing}")
    spread = _relative_spread(name, runs, reference if of != "absolute" else None)
    if spread is None:
        return Finding(Verdict.INSUFFICIENT_EVIDENCE, f"{name}: fewer than {MIN_STEPS} timed steps")
    low, high = (measured * factor for factor in spread)
    shown = f"{measured:.3g}" if of == "absolute" else f"{measured:.2f} x {of}"
    interval = "" if low == high else f", {CONFIDENCE:.0%} interval {low:.2f} to {high:.2f}"
    return Finding(
        place(low, high, *expectation.band),
        f"{name} {shown}{interval} (expected {expectation.value:g} +-{expectation.tolerance:.0%})",
        {name: measured, f"{name}/low": low, f"{name}/high": high},
    )


def place(low: float, high: float, smallest: float, largest: float) -> Verdict:
    """Where an interval lies to a band: within it passed, outside of it failed, across its edge not enough evidence."""
    if smallest <= low and high <= largest:
        return Verdict.PASSED
    if high < smallest or largest < low:
        return Verdict.FAILED
    return Verdict.INSUFFICIENT_EVIDENCE


def _mean(runs: Sequence[Measurement], name: str) -> float:
    values = [run.metric(name) for run in runs]
    return math.fsum(values) / len(values) if values and all(map(math.isfinite, values)) else math.nan


def _relative_spread(
    name: str, runs: Sequence[Measurement], reference: Measurement | None
) -> tuple[float, float] | None:
    """The interval over its centre: (1, 1) for a metric without step noise, None where too few steps were timed."""
    if name not in _TIMED:
        return 1.0, 1.0
    variances, freedoms = [], []
    for group in (runs, [reference] if reference else None):
        if group is None:
            continue
        draws = _bootstrap(name, group)
        if draws is None:
            return None
        variances.append(float(np.var(np.log(draws))))
        freedoms.append(sum(len(run.steps) - 2 for run in group))
    width = float(stats.t.ppf((1 + CONFIDENCE) / 2, min(freedoms))) * math.sqrt(sum(variances))
    return math.exp(-width), math.exp(width)


def _bootstrap(name: str, runs: Sequence[Measurement]) -> npt.NDArray[np.float64] | None:
    """The statistic behind a timed metric under resampling of its steps' seconds.

    The first step of a run pays for start-up and is no sample of the others: it is left out, as in the metric. The
    spread is inflated by n / (n - 1), since a resample's variance is that much too small.
    """
    if any(len(run.steps) < MIN_STEPS for run in runs):
        return None
    random = np.random.default_rng(0)  # the same measurement always gets the same verdict
    parts = []
    for run in runs:
        seconds = np.array([step.seconds for step in run.steps])
        if not (np.isfinite(seconds).all() and (seconds > 0).all()):
            return None
        later = random.choice(seconds[1:], (RESAMPLES, seconds.size - 1))
        centre, inflation = seconds[1:].mean(), math.sqrt((seconds.size - 1) / (seconds.size - 2))
        parts.append(np.maximum(centre + (later - centre) * inflation, seconds.min() / 10))
    draws: npt.NDArray[np.float64] = np.mean(np.concatenate(parts, axis=1), axis=1) ** _TIMED[name]
    return draws
