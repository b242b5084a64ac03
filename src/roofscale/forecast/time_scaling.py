"""What a measured run tells of the time that another one takes for a sample. Pure functions.

A step takes as long as the model, or as the loader where that is slower. The model's part goes with the image's area,
since a convolutional net does the same work on every pixel; the loader's part does too, and is shared out among the
loader processes. Whatever else differs moves the time by an amount that is not known beforehand, and so widens the
interval instead of moving it: ``DOUBLING`` and ``OTHER`` say by how much.
"""

import enum
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import NormalDist

from roofscale.config import RunConfig, affecting
from roofscale.stats.intervals import CONFIDENCE, RUN_SPREAD

LOADER_BOUND = 0.10  # share of a step that waits for the loader, from which it holds the model up; as data_stall has it
_REACH = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)  # standard deviations to either end of an interval

# Standard deviation of log seconds a sample for each doubling of a knob, beyond what is accounted for.
SD_PER_DOUBLING: Mapping[str, float] = {
    # Phase 2 on record (experiments/results/phase2.json, ResNet-34 at 512 px): 2 to 4, 8 and 16 samples a batch moved
    # it by -0.04, 0.10 and 0.26. Their root mean square.
    "batch_size": 0.16,
    # Assumed. A step has parts that do not shrink with the image, so the area alone says too little for small ones.
    "image_size": 0.40,
    # Phase 3 on record: 2 to 4 workers moved it by -0.07; 1 to 2 by -0.08 (trials in benchmarks/results/2026-11-24).
    "num_workers": 0.08,
    "prefetch_factor": 0.08,  # assumed: as of the workers, which prepare as many batches ahead
}
SD_PER_CHANGE: Mapping[str, float] = {  # of a difference that is no matter of degree
    "augment": 0.40,  # assumed: the heavy one takes longer than the model's part of a small image
    "fit": 0.10,  # assumed
    "datasets": 0.05,  # phase 4 on record: Roofline and AIRS beside RID moved it by 0.00 and 0.04
    "roof_sampling": 0.05,  # assumed: as many windows, and others, as with another data set
    # Assumed. Without copies compressed strips stall a GPU's step by 48 % and other layouts by nothing (decision 0011):
    # the root mean square of log(1 / 0.52) and 0.
    "tile_cache_gib": 0.46,
    "ema": 0.05,  # three rounds moved it by -0.07, -0.02 and 0.05 (benchmarks/results/switches.json); root mean square
    "compute": 0.20,  # assumed: another CPU
}
WORKERS_OR_NONE = 0.30  # 0 against 2 loader processes moved it by 0.30 (benchmarks/results/2026-11-24)
_TIMED = affecting("step", "loader")
# How far these move it is not known, so seconds a sample cannot be carried over. Precision and threads are compared as
# they ran.
_ALIKE = _TIMED - {*SD_PER_DOUBLING, *SD_PER_CHANGE, "precision", "threads"}


class Bound(enum.StrEnum):
    """What a training's pace hangs on."""

    MODEL = "compute-bound"
    LOADER = "loader-bound"
    UNKNOWN = "bound not known"


@dataclass(frozen=True)
class TimingRecord:
    """A run that was measured: what it ran and what it took."""

    config: RunConfig
    metrics: Mapping[str, float]
    run_id: str
    precision: str = ""  # as it ran, never auto; empty: not known
    threads: int = 0  # as it ran; 0: not known
    on_gpu: bool = False
    gpu: str = ""  # model, as its compute names it

    @property
    def passes(self) -> int:
        """Over its data."""
        return passes_of(self.config)

    @property
    def is_timed(self) -> bool:
        """Whether it says how long a whole run takes; one that stopped once its pace was known does not."""
        needed = ("speed/seconds_per_sample", "speed/run_seconds", "train/samples", "train/steps")
        known = all(math.isfinite(self.metrics.get(name, math.nan)) for name in needed)
        validated = bool(self.config.val_samples) or "speed/seconds_per_validated" in self.metrics
        return known and validated and self.metrics["speed/seconds_per_sample"] > 0 and not self.config.stop_precision

    @property
    def loader_share(self) -> float:
        """The share of a step that waits for the loader: what the wait and a cached batch agree on."""
        names = ("speed/data_stall", "speed/loader_wait")
        return min(self.metrics.get(name, 0.0) for name in names)

    @property
    def log_error(self) -> float:
        """Standard error of its log seconds a sample, as its own steps show it."""
        assumed = _STEP_SPREAD / math.sqrt(max(1.0, self.metrics["train/steps"]))
        return self.metrics.get("speed/pace_error", assumed)


_STEP_SPREAD = 0.10  # assumed of a run that does not say its pace_error: relative deviation of a step's seconds


@dataclass(frozen=True)
class SampleTime:
    """What one sample takes, in seconds."""

    model: float
    loader: float | None  # of one loader process; None: not known, as it has never held the model up

    @classmethod
    def of(cls, run: TimingRecord) -> "SampleTime":
        """As a run was measured."""
        seconds, share, workers = run.metrics["speed/seconds_per_sample"], run.loader_share, run.config.num_workers
        if workers == 0:
            return cls(seconds * (1 - share), seconds * share)
        if share <= LOADER_BOUND:
            return cls(seconds, None)
        return cls(seconds * (1 - share), seconds * workers)

    def scaled(self, factor: float) -> "SampleTime":
        """With ``factor`` times the work."""
        return SampleTime(self.model * factor, None if self.loader is None else self.loader * factor)

    def with_workers(self, workers: int) -> tuple[float, Bound]:
        """Seconds a sample with so many loader processes, and what they hang on."""
        if self.loader is None:
            return self.model, Bound.MODEL
        if workers == 0:
            total = self.model + self.loader
            return total, Bound.LOADER if self.loader > LOADER_BOUND * total else Bound.MODEL
        loading = self.loader / workers
        return max(self.model, loading), Bound.LOADER if loading > self.model else Bound.MODEL


def passes_of(config: RunConfig) -> int:
    """Passes of a run over its data."""
    return config.epochs * (1 if config.schedule == "mixed" else len(config.datasets))


def area_ratio(config: RunConfig, run: TimingRecord) -> float:
    """Pixels of an image over those of a measured run's."""
    return (config.image_size / run.config.image_size) ** 2


def core_speedup(threads: int, run: TimingRecord) -> tuple[float, float]:
    """Factor on the seconds of a sample with other threads, and the deviation of its logarithm.

    Assumed: somewhere between no gain from more cores and a gain in proportion, so that the 90 % interval spans both.
    """
    if not (threads and run.threads):
        return 1.0, 0.0
    half = math.log(threads / run.threads) / 2
    return math.exp(-half), abs(half) / _REACH


def deviation(config: RunConfig, threads: int, run: TimingRecord) -> float:
    """Standard deviation of log seconds a sample that comes of the differences between a config and a measured run."""
    by_degree = (_variance_by_degree(config, run.config, knob) for knob in SD_PER_DOUBLING)
    other = (SD_PER_CHANGE[knob] ** 2 for knob in SD_PER_CHANGE if getattr(config, knob) != getattr(run.config, knob))
    return math.sqrt(sum(by_degree) + sum(other) + core_speedup(threads, run)[1] ** 2)


def differences(config: RunConfig, threads: int, run: TimingRecord) -> Iterator[str]:
    """What a forecast had to be scaled over, in words."""
    for knob in (*SD_PER_DOUBLING, *SD_PER_CHANGE):
        ours, theirs = config.to_strings()[knob], run.config.to_strings()[knob]
        if ours != theirs:
            yield f"{knob} {theirs} to {ours}"
    if threads and run.threads and threads != run.threads:
        yield f"threads {run.threads} to {threads}"


def is_comparable(config: RunConfig, gpu: str, run: TimingRecord) -> bool:
    """Whether a run's seconds say anything: of the same net in the same arithmetic, on the same kind of processor."""
    if any(getattr(config, knob) != getattr(run.config, knob) for knob in _ALIKE):
        return False
    if config.precision not in (run.config.precision, run.precision):
        return False
    here = config.compute == run.config.compute and not gpu  # a machine of one's own may have a GPU of any name
    return here or (run.gpu == gpu and run.on_gpu == bool(gpu))


def run_to_run_variance(runs: list[TimingRecord]) -> tuple[float, float]:
    """Variance of log seconds a sample between runs of one config, and its degrees of freedom.

    Pooled over the configs that ran more than once, whatever their seeds and lengths, with RUN_SPREAD, which three
    rounds gave and which so counts for two degrees of freedom.
    """
    groups: dict[tuple[object, ...], list[float]] = {}
    for run in runs:
        key = tuple(getattr(run.config, knob) for knob in _TIMED)
        groups.setdefault(key, []).append(math.log(run.metrics["speed/seconds_per_sample"]))
    squares, freedom = 2 * RUN_SPREAD**2, 2
    for group in groups.values():
        centre = math.fsum(group) / len(group)
        squares += math.fsum((value - centre) ** 2 for value in group)
        freedom += len(group) - 1
    return squares / freedom, float(freedom)


def _variance_by_degree(config: RunConfig, other: RunConfig, knob: str) -> float:
    ours, theirs = getattr(config, knob), getattr(other, knob)
    if ours == theirs:
        return 0.0
    if not (ours and theirs):  # only the workers may be none
        return WORKERS_OR_NONE**2
    return SD_PER_DOUBLING[knob] ** 2 * abs(math.log2(ours / theirs))
