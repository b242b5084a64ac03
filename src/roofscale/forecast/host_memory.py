"""Forecast of a CPU training's peak host memory, from measured peaks and traced tensors.

    peak = base + scale x tensors(batch_size) + num_workers x MiB a worker + shared + copied

The tensors of a step are traced (``step_tensors``), shared and copied memory is computed. Base, scale and MiB a worker
are fitted to measured runs with the same memory profile; that the scale is near 1 enters the fit as prior knowledge.
Errors grow with the peak, so the fit weighs each run by one over its peak, and the spread is a share of the peak. The
forecast covers the measured range and somewhat beyond; further out it raises ConfigError.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from roofscale.compute import MIB
from roofscale.config import RunConfig, affecting
from roofscale.data.sample import CHANNELS
from roofscale.errors import ConfigError
from roofscale.memory_margin import MEMORY_MARGIN, MemoryFit, memory_fit
from roofscale.stats.intervals import CONFIDENCE
from roofscale.train.malloc import DEFAULT_SETTINGS

Values = npt.NDArray[np.float64]

# A spread from few runs may be near zero by chance. U-Net on ResNet-34 at 512 px, fitted on batch 1, 2, 4 with
# 0 and 2 workers, missed nine held-out runs (batch 1 to 16, 0 to 4 workers) by 1.8 % on average and 6.2 % at worst; a
# normal deviation of that mean has this standard deviation: 0.018 x sqrt(pi / 2).
MIN_SPREAD = 0.018 * math.sqrt(math.pi / 2)
# Prior standard deviation of the scale around 1. Memory that a kernel allocates internally is not traced: the scales
# fitted to ResNet-34 at 512 px, batch 1 to 16, were 0.99 in bf16 and 1.01 in fp32.
SCALE_SPREAD = 0.04
# How far a forecast extrapolates. The runs of MIN_SPREAD: fitted up to batch 4 and 2 workers, checked up to batch 16
# and 4 workers.
FURTHEST_BATCH = 4  # times the largest batch measured
FURTHEST_WORKERS = 2  # times the most workers measured, but at least 4 workers
_MIN_FREEDOM = 2  # the fewest degrees of freedom whose 90 % interval is narrower than three standard errors
FEWEST_POINTS = 1 + _MIN_FREEDOM  # measured runs that a forecast needs if all have the same number of workers
# Knobs that decide the tensors of one process, in addition to batch size and precision: fields of MemoryProfile.
_PROFILE_KNOBS = affecting("step") - {"batch_size", "precision", "compute", "threads", "processes", "instance_count"}


@dataclass(frozen=True)
class MemoryProfile:
    """Settings that all fitted coefficients depend on: only peaks of the same profile are fitted together."""

    encoder: str
    decoder: str
    image_size: int
    precision: str  # as it ran, never auto
    channels_last: bool
    threads: int  # as it ran, never 0
    malloc: str = ""  # settings of the allocator, as train.malloc has them
    micro_batches: int = 1
    activation_checkpointing: bool = False
    ema: float = 0.0
    compile: bool = False

    @classmethod
    def of(cls, config: RunConfig, precision: str, threads: int, malloc: str = "") -> "MemoryProfile":
        """Return the profile of a run config that runs in this precision, with these threads and this allocator."""
        knobs = {knob: getattr(config, knob) for knob in _PROFILE_KNOBS}
        return cls(precision=precision, threads=threads, malloc=malloc, **knobs)

    @classmethod
    def of_run(cls, config: RunConfig, facts: Mapping[str, str]) -> "MemoryProfile":
        """Return the profile of a measured run from the facts of its measurement.

        If the threads follow the free cores, the profile has the most threads that the run may use.
        """
        threads = int(facts.get("cores_free", facts["threads"]).split()[-1])  # such as '1.0 of 2'
        return cls.of(config, facts["precision"], threads, facts.get("malloc", ""))

    def __str__(self) -> str:
        layout = "channels_last" if self.channels_last else "contiguous"
        return (
            f"{self.decoder} on {self.encoder}, {self.image_size} px, {self.precision}, {layout}, "
            f"{self.threads} thread{'s' * (self.threads != 1)}"
            f"{'' if self.malloc == DEFAULT_SETTINGS else ', ' + (self.malloc or 'defaults of malloc')}"
            f"{f', batches in {self.micro_batches} parts' * (self.micro_batches > 1)}"
            f"{', activations recomputed' * self.activation_checkpointing}"
            f"{f', weights averaged ({self.ema:g})' * (self.ema > 0)}{', compiled' * self.compile}"
        )

    def tensors_mib(self, batch: int) -> float:
        """Return the peak MiB of a step's tensors, heap gaps included; one trace serves every batch size.

        Raises:
            ConfigError: the model cannot be built or traced.
        """
        config = RunConfig().with_overrides({knob: getattr(self, knob) for knob in _PROFILE_KNOBS})
        return _tensors_mib(config, self.precision, self.malloc, math.ceil(batch / self.micro_batches))


@cache
def _tensors_mib(config: RunConfig, precision: str, malloc: str, batch: int) -> float:
    from roofscale.forecast.step_tensors import tensors_mib  # imports PyTorch, which reading a record does without

    return tensors_mib(config, precision, malloc, batch)


@dataclass(frozen=True)
class PeakObservation:
    """Measured peak of a run on a CPU."""

    config: RunConfig
    kind: MemoryProfile
    peak_mib: float
    source: str  # its MLflow run, or the folder of a probe
    copied_mib: float = math.nan  # weights, gradients and optimiser's state; NaN if no worker was forked

    @classmethod
    def of_run(
        cls, config: RunConfig, facts: Mapping[str, str], metrics: Mapping[str, float], source: str
    ) -> "PeakObservation":
        """Build the observation from the facts and metrics of a run."""
        peak, copied = (metrics.get(f"memory/{name}_mib", math.nan) for name in ("peak", "copied"))
        return cls(config, MemoryProfile.of_run(config, facts), peak, source, copied)

    @property
    def is_informative(self) -> bool:
        """Whether the run had a peak, a single process, and enough samples to fill a batch."""
        config = self.config
        sets = len(config.datasets) if config.schedule == "mixed" else 1
        full = not config.max_samples or config.max_samples * sets >= config.batch_size
        return full and config.world_size == 1 and math.isfinite(self.peak_mib) and self.peak_mib > 0


@dataclass(frozen=True)
class Peak:
    """Forecast peak with its 90 % interval, MiB."""

    mib: float
    low_mib: float
    high_mib: float


@dataclass(frozen=True)
class PeakParts:
    """Terms of a forecast peak, MiB."""

    base: float  # interpreter and libraries
    tensors: float  # weights, gradients, optimiser's state, activations, and gaps between them
    workers: float
    shared: float  # upper bound of the loader's batches in /dev/shm
    copied: float  # pages that the trainer overwrites and forked workers keep


@dataclass(frozen=True)
class Probe:
    """Short run that would narrow a forecast."""

    batch_size: int
    num_workers: int
    reach_mib: float  # half width of the forecast's interval after the probe


@dataclass(frozen=True)
class HostForecast:
    """Forecast of a run's peak on a compute, and of the batches that fit."""

    fit: MemoryFit
    peak: Peak
    memory_mib: float  # of the compute
    shm_free_mib: float | None  # None if not known
    parts: PeakParts
    largest_batch: int  # that fits by its whole interval; 0 if not even one sample does
    furthest_batch: int  # largest that the measured runs allow to forecast
    next_probe: Probe | None  # that would narrow the interval most; None if no cheap probe is left


def shared_mib(config: RunConfig) -> float:
    """Return the most MiB of shared memory that the loader's batches take: the prefetched ones and the one in use."""
    sample = (3 + len(CHANNELS)) * config.image_size**2  # bytes of image and target, see data.sample.Batch
    ahead = config.num_workers * config.prefetch_factor
    return (ahead + 1) * config.batch_size * sample / MIB if config.num_workers else 0.0


def fit_host_model(kind: MemoryProfile, points: Sequence[PeakObservation]) -> "HostModel":
    """Fit the model to the observations of one memory profile, by weighted least squares.

    The prior scale of 1 with standard deviation SCALE_SPREAD counts as one more observation (Theil and Goldberger, On
    pure and mixed statistical estimation in economics, 1961), so that small, cheap runs suffice to forecast large ones.

    Raises:
        ConfigError: too few informative observations of that profile, or the model cannot be traced.
    """
    used = tuple(point for point in points if point.kind == kind and point.is_informative)
    terms = 3 if len({point.config.num_workers for point in used}) > 1 else 2
    freedom = len(used) + 1 - terms
    if freedom < _MIN_FREEDOM:
        raise ConfigError(
            f"{kind}: {len(used)} measured run{'s' * (len(used) != 1)} of this kind; a forecast needs at least "
            f"{terms - 1 + _MIN_FREEDOM}. Add --probe: six short runs of six steps each, which take about three "
            "minutes at 512 px on two idle cores and are kept."
        )
    copied = max((p.copied_mib for p in used if math.isfinite(p.copied_mib)), default=0.0)
    peaks = np.array([point.peak_mib for point in used])
    computed = np.array([shared_mib(point.config) + _copied_mib(point.config, copied) for point in used])
    near_one = MIN_SPREAD / SCALE_SPREAD  # row of the prior: an error of SCALE_SPREAD weighs as MIN_SPREAD of a peak
    rows = np.vstack([
        np.array([_row(kind, point.config, terms) for point in used]) / peaks[:, None],
        np.eye(terms)[1] * near_one,
    ])  # fmt: skip
    shares = np.append((peaks - computed) / peaks, near_one)
    coefficients, *_ = np.linalg.lstsq(rows, shares, rcond=None)
    spread = math.sqrt(float(((shares - rows @ coefficients) ** 2).sum()) / freedom)
    return HostModel(kind, used, coefficients, np.linalg.inv(rows.T @ rows), spread, freedom, copied)


@dataclass(frozen=True)
class HostModel:
    """Fitted model of one memory profile, made by ``fit_host_model``."""

    kind: MemoryProfile
    points: tuple[PeakObservation, ...]
    coefficients: Values  # base in MiB, scale of the tensors, and MiB a worker if the points differ in workers
    inverse: Values  # of the weighted normal matrix; times spread squared it is the coefficients' covariance
    spread: float  # standard deviation of these runs' peaks, as a share of them
    freedom: int  # degrees of freedom of the spread
    copied_mib: float  # most that a run of these overwrites in each step; 0 if none had workers

    def forecast(
        self,
        config: RunConfig,
        memory_mib: float,
        shm_free_mib: float | None = None,
        max_share: float = MEMORY_MARGIN,
    ) -> HostForecast:
        """Forecast a run's peak, and the largest batch that fits ``max_share`` of its compute's memory and /dev/shm.

        If the free MiB of /dev/shm are not known, it sets no limit.

        Raises:
            ConfigError: batch size or workers are too far from the measured ones.
        """
        self._check_range(config)
        limits = memory_mib, shm_free_mib, max_share
        furthest = FURTHEST_BATCH * max(point.config.batch_size for point in self.points)
        sizes = (dataclasses.replace(config, batch_size=size) for size in range(1, furthest + 1))
        fitting = [size.batch_size for size in sizes if self._fit(size, *limits) is MemoryFit.FITS]
        return HostForecast(
            fit=self._fit(config, *limits),
            peak=self.peak(config),
            memory_mib=memory_mib,
            shm_free_mib=shm_free_mib,
            parts=self.parts(config),
            largest_batch=max(fitting, default=0),
            furthest_batch=furthest,
            next_probe=self.next_probe(config, memory_mib, max_share),
        )

    def parts(self, config: RunConfig) -> PeakParts:
        """Return the terms of the peak."""
        terms = self.coefficients * self._row(config)
        workers = float(terms[2]) if terms.size > 2 else 0.0
        copied = _copied_mib(config, self.copied_mib)
        return PeakParts(float(terms[0]), float(terms[1]), workers, shared_mib(config), copied)

    def peak(self, config: RunConfig) -> Peak:
        """Return the peak with its prediction interval (Draper and Smith, Applied Regression Analysis, ch. 3 and 9).

        The interval is Student's from these runs' own spread, or the normal one from MIN_SPREAD if that is wider.
        """
        mib = math.fsum(dataclasses.astuple(self.parts(config)))
        reach = self._reach(mib, self.leverage(config), self.freedom)
        return Peak(mib, mib - reach, mib + reach)

    def leverage(self, config: RunConfig) -> float:
        """Return the variance of the fitted terms at a config, divided by the spread squared, in MiB^2."""
        row = self._row(config)
        return float(row @ self.inverse @ row)

    def next_probe(self, config: RunConfig, memory_mib: float, max_share: float = MEMORY_MARGIN) -> Probe | None:
        """Return the cheap new run that would leave the smallest variance at ``config`` (c-optimality), None if none.

        A further run adds its row to the normal matrix, so the inverse changes by the Sherman-Morrison formula.
        """
        mib = self.peak(config).mib
        row = self._row(config)
        probes = []
        for candidate in self._candidates(config, max_share * memory_mib):
            new_row = self._row(candidate)
            projected = self.inverse @ new_row
            weight = self.peak(candidate).mib ** 2 + new_row @ projected
            leverage = self.leverage(config) - float(row @ projected) ** 2 / float(weight)
            reach = self._reach(mib, leverage, self.freedom + 1)
            probes.append(Probe(candidate.batch_size, candidate.num_workers, reach))
        return min(probes, key=lambda probe: probe.reach_mib, default=None)

    def _candidates(self, config: RunConfig, most_mib: float) -> Iterator[RunConfig]:
        """Yield new runs of at most 8 samples a batch, no larger than ``config`` and surely under ``most_mib``."""
        made = {(point.config.batch_size, point.config.num_workers) for point in self.points}
        workers = (0, 2, 4) if self.coefficients.size > 2 else (config.num_workers,)
        for size, count in itertools.product((1, 2, 4, 8), workers):
            candidate = dataclasses.replace(config, batch_size=size, num_workers=count)
            cheap = size <= config.batch_size and self.peak(candidate).high_mib <= most_mib
            if cheap and (size, count) not in made:
                yield candidate

    def _fit(self, config: RunConfig, memory_mib: float, shm_free_mib: float | None, max_share: float) -> MemoryFit:
        peak, shared = self.peak(config), shared_mib(config)
        memory = memory_fit(peak.low_mib, peak.high_mib, memory_mib, max_share)
        if shm_free_mib is None or memory is MemoryFit.TOO_LARGE:
            return memory
        if shared > shm_free_mib:
            return MemoryFit.TOO_LARGE
        return memory if shared <= max_share * shm_free_mib else MemoryFit.UNCERTAIN

    def _reach(self, mib: float, leverage: float, freedom: int) -> float:
        """Return the half width of the interval around a peak, MiB."""
        from scipy import special  # SciPy's stats, whose ppf of t and norm call these two, take seconds to import

        share = (1 + CONFIDENCE) / 2
        student, normal = float(special.stdtrit(float(freedom), share)), float(special.ndtri(share))
        deviation = max(student * self.spread, normal * MIN_SPREAD)
        return deviation * math.sqrt(mib**2 + leverage)

    def _row(self, config: RunConfig) -> Values:
        return _row(self.kind, config, self.coefficients.size)

    def _check_range(self, config: RunConfig) -> None:
        largest = max(point.config.batch_size for point in self.points)
        if config.batch_size > FURTHEST_BATCH * largest:
            raise ConfigError(
                f"batch_size={config.batch_size}: the largest measured batch of this kind is {largest}, and a "
                f"forecast goes to {FURTHEST_BATCH} times that, {FURTHEST_BATCH * largest}. Add --probe, which "
                "measures a larger one, or ask for less."
            )
        measured = {point.config.num_workers for point in self.points}
        most = max(4, FURTHEST_WORKERS * max(measured))
        if config.num_workers not in measured and (len(measured) == 1 or config.num_workers > most):
            raise ConfigError(
                f"num_workers={config.num_workers}: measured with {', '.join(map(str, sorted(measured)))} only, and "
                f"a forecast needs two different counts and goes to {most}. Add --probe, which measures further "
                "ones, or ask for a measured count."
            )


def _row(kind: MemoryProfile, config: RunConfig, terms: int) -> Values:
    return np.array([1.0, kind.tensors_mib(config.batch_size), config.num_workers][:terms])


def first_pass_copied_share(config: RunConfig) -> float:
    """Return the share of the memory overwritten in each step of which forked workers keep a copy in the first pass.

    The workers together keep one copy of everything that existed when they were forked and was overwritten since: in
    the first pass the weights and their EMA, in a later one the gradients and AdamW's two moments as well.
    """
    before = 2 if config.ema else 1
    return before / (before + 3)


def _copied_mib(config: RunConfig, copied_mib: float) -> float:
    """Return the most MiB of overwritten weights, gradients and optimiser's state that forked workers keep."""
    share = 1.0 if config.passes > 1 else first_pass_copied_share(config)
    return share * copied_mib if config.num_workers else 0.0
