"""Which runs of a climb may stand in one figure: those that differ in the knob that it is about, and in no other."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from roofscale.config import RunConfig
from roofscale.measurement import Measurement, Outcome
from roofscale.phases.climb import ClimbResult
from roofscale.phases.judge import Verdict

# Knobs that change neither the memory nor the speed of a step.
_BESIDE = (
    *("data_root", "split", "split_number", "max_samples", "val_samples", "epochs", "seed", "timeout_seconds"),
    *("lr", "lr_schedule", "weight_decay", "grad_clip", "checkpoint_seconds"),
)


@dataclass(frozen=True)
class Point:
    """One training run, a repeat under another seed included."""

    x: float  # the knob's value
    measurement: Measurement
    verdict: Verdict  # of its step
    alike: bool  # whether it differs from most others in nothing but the knob

    @property
    def was_run(self) -> bool:
        """Whether it was run at all, and not ruled out by another run that had run out of memory."""
        return bool(self.measurement.metrics)

    @property
    def ended_well(self) -> bool:
        """Whether the run came to its end."""
        return self.measurement.outcome is Outcome.OK

    def metric(self, name: str) -> float:
        """The run's metric, NaN where it has none."""
        return self.measurement.metric(name)


def points(climb: ClimbResult, knob: str) -> list[Point]:
    """Every run over a knob; none where the runs that are otherwise alike do not have two values of it."""
    runs = list(climb.all_runs())
    common = Counter(_rest(run.config, knob) for run in runs).most_common(1)
    found = [
        Point(getattr(run.config, knob), measurement, run.verdict.verdict, _rest(run.config, knob) == common[0][0])
        for run in runs
        for measurement in run.measurements
    ]
    return found if len({point.x for point in found if point.alike}) > 1 else []


def by_value(found: Iterable[Point]) -> dict[float, list[Measurement]]:
    """The measurements at each value, smallest first."""
    grouped: dict[float, list[Measurement]] = {}
    for point in sorted(found, key=lambda point: point.x):
        grouped.setdefault(point.x, []).append(point.measurement)
    return grouped


def mean(runs: Sequence[Measurement], metric: str) -> float:
    """The runs' mean, NaN as soon as one lacks it."""
    return math.fsum(run.metric(metric) for run in runs) / len(runs)


def _rest(config: RunConfig, knob: str) -> tuple[str, ...]:
    return tuple(value for key, value in config.written().items() if key != knob and key not in _BESIDE)
