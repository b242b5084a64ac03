"""What a step is expected to measure, stated before it runs."""

from collections.abc import Sequence
from dataclasses import dataclass

from roofscale.measurement import Measurement
from roofscale.runners.build_measurement import without_first_steps
from roofscale.stats.intervals import Estimate, log_pace

REFERENCES = ("previous", "base", "absolute")

_TIMED = ("speed/seconds_per_epoch", "speed/seconds_per_sample", "speed/samples_per_s")  # from the steps' seconds


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


def log_seconds_per_sample(runs: Sequence[Measurement]) -> Estimate | None:
    """Logarithm of the seconds a sample of one config's runs, each epoch's first step left out; see ``log_pace``."""
    return log_pace([without_first_steps(run.steps) for run in runs])
