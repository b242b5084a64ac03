"""Scaling of a measured run's seconds a sample to another config, with the uncertainty that it adds. Pure functions.

A step takes as long as the model, or as the loader if that is slower. Both go with the image's area, since a
convolutional net does the same work on every pixel; the loader's time is divided among its processes. Any other
difference changes the time by an unknown amount and therefore widens the interval instead of moving it, by
``SD_PER_DOUBLING`` and ``SD_PER_CHANGE``.
"""

import enum
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from roofscale.config import RunConfig, affecting
from roofscale.stats.intervals import REACH, RUN_SPREAD

# Share of a step spent waiting for the loader above which the loader limits the pace. Below the 20 % at which the
# criterion data_stall fails: a run can be loader-bound and still pass.
LOADER_BOUND = 0.10

# Standard deviation of log seconds a sample for each doubling of a knob, beyond the scaling by area and workers.
SD_PER_DOUBLING: Mapping[str, float] = {
    # Phase 2 of a climb (experiments/results/phase2.json at commit 78b7c75, ResNet-34 at 512 px): 2 to 4, 8 and 16
    # samples a batch moved it by -0.04, 0.10 and 0.26. Their root mean square.
    "batch_size": 0.16,
    # Assumed. Parts of a step do not shrink with the image, so scaling by area is too low for small images.
    "image_size": 0.40,
    # Phase 3 of that climb: 2 to 4 workers moved it by -0.07. Trials in benchmarks/results/2026-11-24/bench.json: 1 to
    # 2 by -0.08.
    "num_workers": 0.08,
    "prefetch_factor": 0.08,  # assumed: as num_workers, which changes the number of prefetched batches likewise
}
SD_PER_CHANGE: Mapping[str, float] = {  # the same for any change of a knob without a scale
    "augment": 0.40,  # assumed: heavy augmentation takes longer than the model on a small image
    "fit": 0.10,  # assumed
    "datasets": 0.05,  # phase 4 of that climb: adding Roofline and AIRS to RID moved it by 0.00 and 0.04
    "roof_sampling": 0.05,  # assumed: as another data set, since it reads as many other windows
    # Assumed. Without copies compressed strips stall a GPU's step by 48 % and other layouts by nothing (decision 0011):
    # the root mean square of log(1 / 0.52) and 0.
    "tile_cache_gib": 0.46,
    # Root mean square: three rounds moved it by -0.07, -0.02 and 0.05 (benchmarks/results/2026-11-24/switches.json).
    "ema": 0.05,
    "compute": 0.20,  # assumed: another CPU
}
WORKERS_OR_NONE = 0.30  # 0 instead of 2 loader processes moved it by 0.30 (benchmarks/results/2026-11-24/bench.json)
_PACE_KNOBS = affecting("step", "loader")
# Knobs whose effect on the pace is not known: runs that differ in one are not comparable. Precision and threads are
# compared as the runs used them.
_MUST_MATCH = _PACE_KNOBS - {*SD_PER_DOUBLING, *SD_PER_CHANGE, "precision", "threads"}


class Bound(enum.StrEnum):
    """Part of a step that limits a training's pace."""

    MODEL = "compute-bound"
    LOADER = "loader-bound"
    UNKNOWN = "bound not known"


@dataclass(frozen=True)
class TimingRecord:
    """Measured run: its config and metrics, and the hardware and precision that it used."""

    config: RunConfig
    metrics: Mapping[str, float]
    run_id: str
    precision: str = ""  # as it ran, never auto; empty if not known
    threads: int = 0  # as it ran; 0 if not known
    on_gpu: bool = False
    gpu: str = ""  # model, as compute.yaml names it

    @property
    def is_timed(self) -> bool:
        """Whether the run measured the time of a whole run; one that stopped early once its pace was known did not."""
        needed = ("speed/seconds_per_sample", "speed/run_seconds", "train/samples", "train/steps")
        logged = all(math.isfinite(self.metrics.get(name, math.nan)) for name in needed)
        validated = bool(self.config.val_samples) or "speed/seconds_per_validated" in self.metrics
        return logged and validated and self.metrics["speed/seconds_per_sample"] > 0 and not self.config.stop_precision

    @property
    def loader_share(self) -> float:
        """Share of a step that waits for the loader: the smaller of the measured wait and a cached batch's saving."""
        names = ("speed/data_stall", "speed/loader_wait")
        return min(self.metrics.get(name, 0.0) for name in names)

    @property
    def log_error(self) -> float:
        """Standard error of the run's log seconds a sample, from the spread of its steps."""
        assumed = _STEP_SPREAD / math.sqrt(max(1.0, self.metrics["train/steps"]))
        return self.metrics.get("speed/pace_error", assumed)


_STEP_SPREAD = 0.10  # assumed for a run that did not log pace_error: relative deviation of a step's seconds


@dataclass(frozen=True)
class SampleTime:
    """Seconds that one sample takes in the model and in the loader."""

    model: float
    loader: float | None  # in one loader process; None if not known, because it never limited the pace

    @classmethod
    def of(cls, run: TimingRecord) -> "SampleTime":
        """Derive both from a measured run."""
        seconds, share, workers = run.metrics["speed/seconds_per_sample"], run.loader_share, run.config.num_workers
        if workers == 0:  # loading and computing take turns
            return cls(seconds * (1 - share), seconds * share)
        if share <= LOADER_BOUND:
            return cls(seconds, None)
        return cls(seconds * (1 - share), seconds * workers)

    def scaled(self, factor: float) -> "SampleTime":
        """Return the time of ``factor`` times the work."""
        return SampleTime(self.model * factor, None if self.loader is None else self.loader * factor)

    def with_workers(self, workers: int) -> tuple[float, Bound]:
        """Return the seconds a sample with ``workers`` loader processes, and what limits them."""
        if self.loader is None:
            return self.model, Bound.MODEL
        if workers == 0:
            total = self.model + self.loader
            return total, Bound.LOADER if self.loader > LOADER_BOUND * total else Bound.MODEL
        loading = self.loader / workers
        return max(self.model, loading), Bound.LOADER if loading > self.model else Bound.MODEL


def area_ratio(config: RunConfig, run: TimingRecord) -> float:
    """Return the ratio of a config's pixels per image to a measured run's."""
    return (config.image_size / run.config.image_size) ** 2


def core_speedup(threads: int, run: TimingRecord) -> tuple[float, float]:
    """Return the factor on the seconds a sample for another number of threads, and the deviation of its logarithm.

    Assumed: the gain lies between none and one proportional to the threads; the 90 % interval spans both. The factor is
    1 and the deviation 0 if either number is not known.
    """
    if not (threads and run.threads):
        return 1.0, 0.0
    half = math.log(threads / run.threads) / 2
    return math.exp(-half), abs(half) / REACH


def deviation(config: RunConfig, threads: int, run: TimingRecord) -> float:
    """Return the standard deviation of log seconds a sample due to differences of a config from a measured run."""
    by_doubling = (_doubling_variance(config, run.config, knob) for knob in SD_PER_DOUBLING)
    other = (SD_PER_CHANGE[knob] ** 2 for knob in SD_PER_CHANGE if getattr(config, knob) != getattr(run.config, knob))
    return math.sqrt(sum(by_doubling) + sum(other) + core_speedup(threads, run)[1] ** 2)


def differences(config: RunConfig, threads: int, run: TimingRecord) -> Iterator[str]:
    """Yield the differences that a forecast is scaled over as text, such as ``batch_size 2 to 4``."""
    for knob in (*SD_PER_DOUBLING, *SD_PER_CHANGE):
        ours, theirs = config.to_strings()[knob], run.config.to_strings()[knob]
        if ours != theirs:
            yield f"{knob} {theirs} to {ours}"
    if threads and run.threads and threads != run.threads:
        yield f"threads {run.threads} to {threads}"


def is_comparable(config: RunConfig, gpu: str, run: TimingRecord) -> bool:
    """Return whether a run's seconds can be scaled: same model and precision, on the same type of processor."""
    if any(getattr(config, knob) != getattr(run.config, knob) for knob in _MUST_MATCH):
        return False
    if config.precision not in (run.config.precision, run.precision):
        return False
    # A compute without a listed GPU may still have one (the user's own machine): its own runs are comparable.
    same_compute = config.compute == run.config.compute and not gpu
    return same_compute or (run.gpu == gpu and run.on_gpu == bool(gpu))


def run_to_run_variance(runs: list[TimingRecord]) -> tuple[float, float]:
    """Return the variance of log seconds a sample between runs of one config, and its degrees of freedom.

    It is pooled over all configs that ran more than once, regardless of seeds and lengths, and with RUN_SPREAD, which
    counts for two degrees of freedom because it is from three rounds.
    """
    groups: dict[tuple[object, ...], list[float]] = {}
    for run in runs:
        key = tuple(getattr(run.config, knob) for knob in _PACE_KNOBS)
        groups.setdefault(key, []).append(math.log(run.metrics["speed/seconds_per_sample"]))
    squares, freedom = 2 * RUN_SPREAD**2, 2
    for group in groups.values():
        centre = math.fsum(group) / len(group)
        squares += math.fsum((value - centre) ** 2 for value in group)
        freedom += len(group) - 1
    return squares / freedom, float(freedom)


def _doubling_variance(config: RunConfig, other: RunConfig, knob: str) -> float:
    ours, theirs = getattr(config, knob), getattr(other, knob)
    if ours == theirs:
        return 0.0
    if not (ours and theirs):  # of these knobs only num_workers may be 0
        return WORKERS_OR_NONE**2
    return SD_PER_DOUBLING[knob] ** 2 * abs(math.log2(ours / theirs))
