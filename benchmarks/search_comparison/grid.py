"""What was measured in every config of a space, so that ways of searching it can be played on it over and over.

Such a table is measured once, without a limit of memory in the way, and then stands in for the machine (a tabular
benchmark: Klein and Hutter 2019, arXiv:1905.04970). Each trial that is played is one of the config's runs, moved by as
much as runs of one config differ.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from roofscale.config import RunConfig
from roofscale.errors import ConfigError
from roofscale.measurement import Measurement
from roofscale.memory_margin import MEMORY_MARGIN
from roofscale.phases.search.choice import size_key
from roofscale.phases.search.trial_runner import later_pass_mib
from roofscale.runners.build_measurement import batch_samples
from roofscale.stats.intervals import Estimate, log_rate

Place = tuple[int, ...]  # a config's values of KNOBS
TimedStep = tuple[int, int, float]  # pass over the data, samples of the batch, seconds


@dataclass(frozen=True)
class GridRun:
    """One run of one config, as long as a trial of a search."""

    place: Place
    peak_mib: float  # of host memory
    lacking_mib: float  # what a whole training takes on top, see ``trials.lacking_mib``
    copied_mib: float  # see ``host.Point``
    others: float  # share of the machine that went to other work
    steps: tuple[TimedStep, ...]

    @classmethod
    def of(cls, config: RunConfig, measurement: Measurement) -> "GridRun":
        """Result of a run of ``config``."""
        sizes = batch_samples(measurement.steps)
        return cls(
            place=size_key(config),
            peak_mib=measurement.metric("memory/peak_mib"),
            lacking_mib=later_pass_mib(config, measurement),
            copied_mib=measurement.metric("memory/copied_mib"),
            others=measurement.metric("cpu/others"),
            steps=tuple((s.epoch, size, s.seconds) for s, size in zip(measurement.steps, sizes, strict=True)),
        )

    @property
    def samples(self) -> int:
        """Trained."""
        return sum(size for _, size, _ in self.steps)

    @property
    def whole_mib(self) -> float:
        """What a whole training takes at its peak."""
        return self.peak_mib + self.lacking_mib

    @property
    def timed(self) -> list[tuple[float, float]]:
        """Samples and seconds of each step, each pass's first left out."""
        return [(float(size), took) for before, (epoch, size, took) in _pairs(self.steps) if before[0] == epoch]

    @property
    def pace(self) -> Estimate | None:
        """Logarithm of the seconds a sample, as its own steps show it; None where they are too few."""
        return log_rate([self.timed])

    def moved(self, slower: float, larger: float) -> "GridRun":
        """The same run, each step and its memory so many times as long and as large."""
        steps = tuple((epoch, size, seconds * slower) for epoch, size, seconds in self.steps)
        peak, lacking = self.peak_mib * larger, self.lacking_mib * larger
        return dataclasses.replace(self, peak_mib=peak, lacking_mib=lacking, steps=steps)

    def cut(self, count: int) -> "GridRun":
        """The same run, ended after so many steps."""
        return dataclasses.replace(self, steps=self.steps[:count])


class Grid:
    """All configs of a space with their runs; some have several, whose spread is what a played trial is moved by.

    Raises:
        ConfigError: no config with several runs, or one with a run that was too short to tell its pace.
    """

    def __init__(self, runs: Iterable[GridRun]) -> None:
        self.runs: Mapping[Place, Sequence[GridRun]] = {
            place: tuple(same) for place, same in itertools.groupby(sorted(runs, key=_place), key=_place)
        }
        for place, same in self.runs.items():
            if any(run.pace is None for run in same):
                raise ConfigError(f"a run of {place} was too short to tell its pace; expected more max_samples.")
        if max(map(len, self.runs.values())) < 2:
            raise ConfigError("no config of the grid was run twice, so how much runs of one differ is not known.")

    def rate(self, place: Place) -> float:
        """Samples a second, the geometric mean of the runs."""
        return math.exp(-self._paces[place])

    def peak_mib(self, place: Place) -> float:
        """What a whole training takes at its peak, the mean of the runs."""
        return float(np.mean([run.whole_mib for run in self.runs[place]]))

    def fits(self, place: Place, memory_mib: float) -> bool:
        """Whether a whole training stays within MEMORY_MARGIN of the memory."""
        return self.peak_mib(place) <= MEMORY_MARGIN * memory_mib

    def best(self, memory_mib: float) -> Place:
        """The fastest of those that fit.

        Raises:
            ConfigError: none of them does.
        """
        able = [place for place in self.runs if self.fits(place, memory_mib)]
        if not able:
            raise ConfigError(
                f"no config of the space stays within {MEMORY_MARGIN:.0%} of {memory_mib:,.0f} MiB; the smallest takes "
                f"{min(map(self.peak_mib, self.runs)):,.0f}. Give the compute more, such as compute=local:2."
            )
        return max(able, key=self.rate)

    def over(self, memory_mib: float) -> list[Place]:
        """Those whose trial alone runs out of the memory."""
        return [place for place in self.runs if self.trial_mib(place) > memory_mib]

    def trial_mib(self, place: Place) -> float:
        """What a trial takes at its peak, the mean of the runs."""
        return float(np.mean([run.peak_mib for run in self.runs[place]]))

    def memory_that_leaves_out(self, share: float) -> float:
        """The memory, in MiB, that this share of the configs runs out of."""
        return float(np.quantile([self.trial_mib(place) for place in self.runs], 1 - share))

    def draw(self, place: Place, rng: np.random.Generator) -> GridRun:
        """A run such as the config might have: one of its own, brought to their mean and then moved at random."""
        run = self.runs[place][int(rng.integers(len(self.runs[place])))]
        assert run.pace
        slower = math.exp(self._paces[place] - run.pace.value + rng.normal(0, self.pace_spread))
        larger = self.peak_mib(place) / run.whole_mib * math.exp(rng.normal(0, self.peak_spread))
        return run.moved(slower, larger)

    @cached_property
    def pace_spread(self) -> float:
        """Standard deviation of the logarithm of the pace between runs of one config."""
        return _pooled([[run.pace.value for run in same if run.pace] for same in self.runs.values()])

    @cached_property
    def peak_spread(self) -> float:
        """Standard deviation of the logarithm of a whole training's peak between runs of one config: a trial that went
        on into a second pass has seen more of it than one that has not.
        """
        return _pooled([[math.log(run.whole_mib) for run in same] for same in self.runs.values()])

    @cached_property
    def _paces(self) -> Mapping[Place, float]:
        return {
            place: float(np.mean([run.pace.value for run in same if run.pace])) for place, same in self.runs.items()
        }


def _pairs(steps: Sequence[TimedStep]) -> Iterable[tuple[TimedStep, TimedStep]]:
    return itertools.pairwise(steps)


def _place(run: GridRun) -> Place:
    return run.place


def _pooled(groups: Sequence[Sequence[float]]) -> float:
    """Standard deviation within groups, pooled over them."""
    squares = sum(float(np.var(group)) * len(group) for group in groups)
    return math.sqrt(squares / sum(len(group) - 1 for group in groups))
