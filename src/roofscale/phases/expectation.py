"""What a step is expected to measure, stated before it runs, and how far the measurement bears it out.

A ratio of times carries the noise of its steps, so it is judged by an interval (see ``interval``): wholly within the
tolerance is as expected, wholly outside is not, and anything between is insufficient evidence.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from roofscale.measurement import Measurement
from roofscale.runners.assemble import warm
from roofscale.train.health import Finding, Verdict
from roofscale.train.interval import CONFIDENCE, MIN_WINDOWS, Estimate, interval, log_pace, minus, place

REFERENCES = ("previous", "base", "absolute")

_TIMED = ("speed/seconds_per_epoch", "speed/seconds_per_sample", "speed/samples_per_s")  # from the steps' seconds
_EXACT = Estimate(0.0, 0.0, math.inf)  # what an absolute value is compared with


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


def compare(expectation: Expectation, runs: Sequence[Measurement], reference: Sequence[Measurement]) -> Finding:
    """Hold the runs of a step against one expectation, and those of the step that it is compared with.

    Several seeds of a step are pooled, on either side.
    """
    name, of = expectation.metric, expectation.of
    measured = _mean(runs, name)
    if of != "absolute":
        measured /= _mean(reference, name) or math.nan
    if not math.isfinite(measured):
        missing = "no measurement" if reference or of == "absolute" else f"no {of} step to compare with"
        return Finding(Verdict.INSUFFICIENT_EVIDENCE, f"{name}: {missing}")
    spread = _relative_spread(name, runs, reference if of != "absolute" else ())
    if spread is None:
        return Finding(Verdict.INSUFFICIENT_EVIDENCE, f"{name}: fewer than {MIN_WINDOWS} timed steps")
    low, high = (measured * factor for factor in spread)
    shown = f"{measured:.3g}" if of == "absolute" else f"{measured:.2f} x {of}"
    between = "" if low == high else f", {CONFIDENCE:.0%} interval {low:.2f} to {high:.2f}"
    return Finding(
        place(low, high, *expectation.band),
        f"{name} {shown}{between} (expected {expectation.value:g} +-{expectation.tolerance:.0%})",
        {name: measured, f"{name}/low": low, f"{name}/high": high},
    )


def pace(runs: Sequence[Measurement]) -> Estimate | None:
    """Logarithm of the seconds a sample of one config's runs, each epoch's first step left out; see ``log_pace``."""
    return log_pace([warm(run.steps) for run in runs])


def _mean(runs: Sequence[Measurement], name: str) -> float:
    values = [run.metric(name) for run in runs]
    return math.fsum(values) / len(values) if values and all(map(math.isfinite, values)) else math.nan


def _relative_spread(
    name: str, runs: Sequence[Measurement], reference: Sequence[Measurement]
) -> tuple[float, float] | None:
    """The interval over its centre: (1, 1) for a metric without step noise, None where too few steps were timed."""
    if name not in _TIMED:
        return 1.0, 1.0
    ours, theirs = pace(runs), pace(reference) if reference else _EXACT
    if ours is None or theirs is None:
        return None
    found = interval(minus(ours, theirs))
    return math.exp(found.low - found.centre), math.exp(found.high - found.centre)
