"""What a search chooses: the knee, with how sure that is. Pure functions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from roofscale.config import RunConfig
from roofscale.phases.criteria import BatchPoint, knee
from roofscale.phases.search.spec import KNOBS
from roofscale.phases.search.tried import Tried
from roofscale.train.interval import Interval, interval, minus


@dataclass(frozen=True)
class Choice:
    """The smallest config that is as fast as the fastest, of those within their memory."""

    chosen: Tried
    best: Tried  # the fastest, whatever its size
    ratio: Interval  # of the chosen one's samples a second over the best one's
    front: tuple[Tried, ...]  # the Pareto front: none is faster with less memory; least memory first

    def __str__(self) -> str:
        said = shown(self.chosen.config)
        if self.chosen is self.best:
            return f"{said}: {self.chosen.rate:.3g} samples/s, the fastest, at {self.chosen.share:.0%} of the memory"
        return (
            f"{said}: {self.chosen.rate:.3g} samples/s, {self.ratio:.2f} of the fastest "
            f"({self.best.rate:.3g} at batch {self.best.config.batch_size}), at {self.chosen.share:.0%} of the memory"
        )


def choose(tried: Sequence[Tried], tolerance: float) -> Choice | None:
    """The smallest config within ``tolerance`` of the fastest; None where none ran within its memory.

    Of a config that ran several times the fastest run counts, as a disturbance only ever slows one down.
    """
    able = sorted((one for one in tried if one.feasible), key=lambda one: (size(one.config), -one.rate))
    points = [BatchPoint(one.config.batch_size, one.rate, one.share) for one in able]
    found = knee(points, tolerance, max_share=math.inf)  # the first of several with its batch, so the smallest of them
    if found is None:
        return None
    chosen = next(one for one, point in zip(able, points, strict=True) if point is found)
    best = max(able, key=lambda one: one.rate)
    return Choice(chosen, best, _ratio(chosen, best), pareto(able))


def shown(config: RunConfig) -> str:
    """What a search moves, as overrides."""
    return " ".join(f"{knob}={getattr(config, knob)}" for knob in KNOBS)


def size(config: RunConfig) -> tuple[int, ...]:
    """What a config is called small by."""
    return tuple(getattr(config, knob) for knob in KNOBS)


def pareto(tried: Sequence[Tried]) -> tuple[Tried, ...]:
    """Those than which none is faster with as little memory, least memory first."""
    front: list[Tried] = []
    for one in sorted(tried, key=lambda one: (one.share, -one.rate)):
        if not front or one.rate > front[-1].rate:
            front.append(one)
    return tuple(front)


def _ratio(one: Tried, other: Tried) -> Interval:
    if one is other:
        return Interval(1.0, 1.0, 1.0)
    assert one.pace
    assert other.pace
    return interval(minus(other.pace, one.pace)).exp()
