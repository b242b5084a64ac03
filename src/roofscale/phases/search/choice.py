"""What a search chooses: the knee, with how sure that is. Pure functions."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from roofscale.config import RunConfig
from roofscale.phases.criteria import BatchPoint, knee
from roofscale.phases.search.gaussian_process import GaussianProcess
from roofscale.phases.search.space import KNOBS, SearchSpace
from roofscale.phases.search.trial_result import TrialResult
from roofscale.stats.intervals import Interval, pooled


@dataclass(frozen=True)
class Choice:
    """The smallest config that is as fast as the fastest, of those within their memory."""

    chosen: TrialResult
    best: TrialResult  # the fastest, whatever its size
    ratio: Interval  # of the chosen one's samples a second over the best one's
    front: tuple[TrialResult, ...]  # the Pareto front: none is faster with less memory; least memory first
    rates: GaussianProcess  # logarithm of the samples a second over the space

    def __str__(self) -> str:
        said = format_config(self.chosen.config)
        if self.chosen is self.best:
            return f"{said}: {self.chosen.rate:.3g} samples/s, the fastest, at {self.chosen.share:.0%} of the memory"
        return (
            f"{said}: {self.chosen.rate:.3g} samples/s, {self.ratio:.2f} of the fastest "
            f"({self.best.rate:.3g} at batch {self.best.config.batch_size}), at {self.chosen.share:.0%} of the memory"
        )


def choose(tried: Sequence[TrialResult], spec: SearchSpace, seed: int) -> Choice | None:
    """The smallest config that is certainly within the tolerance of the fastest; None where none ran within its memory.

    What is certain is told by the low end of the ratio's interval, as all trials together show it. The runs of one
    config are pooled: the luckiest of several would promise what none of them keeps.
    """
    able = [one for one in pool(tried) if one.feasible]
    if not able:
        return None
    configs = [one.config for one in able]
    known = [(one.config, math.log(one.rate), one.pace.variance) for one in able if one.pace]
    rates = GaussianProcess(known, spec, seed)
    place = int(rates.predict(configs)[0].argmax())
    ratios = [ratio.exp() for ratio in rates.ratio_to(configs, configs[place])]
    points = [BatchPoint(c.batch_size, ratio.low, 0.0) for c, ratio in zip(configs, ratios, strict=True)]
    found = knee(points, spec.tolerance)  # the first of several with its batch, so the smallest of them
    chosen = next(number for number, point in enumerate(points) if point is found)
    return Choice(able[chosen], able[place], ratios[chosen], pareto(able), rates)


def pool(tried: Iterable[TrialResult]) -> list[TrialResult]:
    """One of each config, smallest config first: the mean pace and the largest memory of its runs."""
    runs: dict[RunConfig, list[TrialResult]] = {}
    for one in tried:
        runs.setdefault(one.config, []).append(one)
    together = []
    for config in sorted(runs, key=size_key):
        of_config = runs[config]
        paces = [one.pace for one in of_config if one.pace]
        fullest = max(of_config, key=lambda one: one.share)
        together.append(replace(fullest, pace=pooled(paces) if len(paces) == len(of_config) else None))
    return together


def format_config(config: RunConfig) -> str:
    """What a search moves, as overrides."""
    return " ".join(f"{knob}={getattr(config, knob)}" for knob in KNOBS)


def size_key(config: RunConfig) -> tuple[int, ...]:
    """What a config is called small by."""
    return tuple(getattr(config, knob) for knob in KNOBS)


def pareto(tried: Sequence[TrialResult]) -> tuple[TrialResult, ...]:
    """Those than which none is faster with as little memory, least memory first."""
    front: list[TrialResult] = []
    for one in sorted(tried, key=lambda one: (one.share, -one.rate)):
        if not front or one.rate > front[-1].rate:
            front.append(one)
    return tuple(front)
