"""Expectations: what a step should measure, stated before it runs."""

from collections.abc import Sequence
from dataclasses import dataclass

from roofscale.measurement import Measurement
from roofscale.runners.build_measurement import without_first_steps
from roofscale.stats.intervals import Estimate, log_pace

REFERENCES = ("previous", "base", "absolute")

_TIMED = ("speed/seconds_per_epoch", "speed/seconds_per_sample", "speed/samples_per_s")  # computed from step times


@dataclass(frozen=True)
class Expectation:
    """Expected value of a metric, absolute or as a ratio to another step's value."""

    metric: str
    of: str  # of REFERENCES: ratio to the previous or the base step, or absolute
    value: float
    tolerance: float  # share of the value, above and below

    @property
    def band(self) -> tuple[float, float]:
        """Smallest and largest value within the tolerance."""
        return self.value * (1 - self.tolerance), self.value * (1 + self.tolerance)


def is_timed(metric: str) -> bool:
    """Return whether a metric is computed from step times, which other work on the machine lengthens."""
    return metric in _TIMED


def log_seconds_per_sample(runs: Sequence[Measurement]) -> Estimate | None:
    """Return the logarithm of the seconds per sample of one config's runs; None if too few steps were timed.

    The first step of each epoch is left out; see ``log_pace``.
    """
    return log_pace([without_first_steps(run.steps) for run in runs])
