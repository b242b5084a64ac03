"""Choice of a search: the knee, with its uncertainty. Pure functions."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from roofscale.config import RunConfig
from roofscale.phases.criteria import BatchPoint, knee
from roofscale.phases.search.gaussian_process import GaussianProcess
from roofscale.phases.search.space import KNOBS, SearchSpec
from roofscale.phases.search.trial_result import TrialResult
from roofscale.stats.intervals import Interval, pooled


@dataclass(frozen=True)
class Choice:
    """The smallest config within the tolerance of the fastest, among those within their memory margin."""

    chosen: TrialResult
    best: TrialResult  # the fastest
    ratio: Interval  # samples per second of the chosen config over the best one's
    front: tuple[TrialResult, ...]  # the Pareto front of speed and memory, least memory first
    rates: GaussianProcess  # logarithm of the samples per second over the space

    def __str__(self) -> str:
        overrides = format_config(self.chosen.config)
        if self.chosen is self.best:
            return (
                f"{overrides}: {self.chosen.rate:.3g} samples/s, the fastest, at {self.chosen.share:.0%} of the memory"
            )
        return (
            f"{overrides}: {self.chosen.rate:.3g} samples/s, {self.ratio:.2f} of the fastest "
            f"({self.best.rate:.3g} at batch {self.best.config.batch_size}), at {self.chosen.share:.0%} of the memory"
        )


def choose(tried: Sequence[TrialResult], spec: SearchSpec, seed: int) -> Choice | None:
    """Choose the smallest config that is certainly within the tolerance of the fastest; None if no trial was feasible.

    Certain means at the low end of the ratio's interval, given all trials. The runs of one config are pooled, as the
    fastest of several runs would overestimate its speed.
    """
    feasible = [result for result in pool(tried) if result.feasible]
    if not feasible:
        return None
    configs = [result.config for result in feasible]
    observations = [(r.config, math.log(r.rate), r.pace.variance) for r in feasible if r.pace]
    rates = GaussianProcess(observations, spec, seed)
    best = int(rates.predict(configs)[0].argmax())
    ratios = [ratio.exp() for ratio in rates.ratio_to(configs, configs[best])]
    points = [BatchPoint(c.batch_size, ratio.low, 0.0) for c, ratio in zip(configs, ratios, strict=True)]
    # of several configs with the knee's batch size this is the first, which is the smallest
    knee_point = knee(points, spec.tolerance)
    chosen = next(index for index, point in enumerate(points) if point is knee_point)
    return Choice(feasible[chosen], feasible[best], ratios[chosen], pareto(feasible), rates)


def pool(tried: Iterable[TrialResult]) -> list[TrialResult]:
    """Pool the results of each config, smallest config first: the mean pace and the largest memory of its runs."""
    runs: dict[RunConfig, list[TrialResult]] = {}
    for result in tried:
        runs.setdefault(result.config, []).append(result)
    results = []
    for config in sorted(runs, key=size_key):
        of_config = runs[config]
        paces = [result.pace for result in of_config if result.pace]
        fullest = max(of_config, key=lambda result: result.share)
        # without a pace if one of its runs had none: a config that once ran out of memory is not feasible
        results.append(replace(fullest, pace=pooled(paces) if len(paces) == len(of_config) else None))
    return results


def format_config(config: RunConfig) -> str:
    """Return the searched knobs of a config as overrides."""
    return " ".join(f"{knob}={getattr(config, knob)}" for knob in KNOBS)


def size_key(config: RunConfig) -> tuple[int, ...]:
    """Return the sort key of configs by size: the searched knobs in the order of KNOBS."""
    return tuple(getattr(config, knob) for knob in KNOBS)


def pareto(tried: Sequence[TrialResult]) -> tuple[TrialResult, ...]:
    """Return the Pareto front, least memory first: results that no other beats with as little memory."""
    front: list[TrialResult] = []
    for result in sorted(tried, key=lambda result: (result.share, -result.rate)):
        if not front or result.rate > front[-1].rate:
            front.append(result)
    return tuple(front)
