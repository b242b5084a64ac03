"""Forecast of a training run's GPU memory, made on a machine without a GPU.

A trace of real training steps (``trace``) is replayed through a simulation of PyTorch's caching allocator
(``allocator``). Costs that neither can see (CUDA context, cuDNN and cuBLAS workspaces) are added from
``gpu_terms.yaml``. One trace serves every batch size.
"""

import contextlib
import copy
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import islice
from pathlib import Path

import yaml

from roofscale.compute import Compute
from roofscale.config import RunConfig, affecting
from roofscale.data.sample import CHANNELS
from roofscale.errors import ConfigError
from roofscale.forecast.allocator import MIB, CachingAllocator, Settings
from roofscale.forecast.results import GpuForecast
from roofscale.forecast.roofline_model import StepEstimate, estimate_step
from roofscale.forecast.trace import CONVOLUTION, PARTS, Trace, trace_training
from roofscale.memory_margin import MEMORY_MARGIN, MemoryFit
from roofscale.train.prefetch import BATCHES_ON_GPU

ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the newer spelling first
LARGEST_BATCH = 4096  # upper end of the search for the largest batch that fits
_BEFORE_AMPERE = ("K80", "M60", "P100", "V100", "T4")  # compute capability below 8.0: no bf16
# Knobs that a trace depends on. It serves every batch size, the compute is an argument of its own, and what a step
# holds on a GPU does not depend on CPU threads.
_TRACED_KNOBS = affecting("step") - {"batch_size", "compute", "threads"}
_TERMS = Path(__file__).with_name("gpu_terms.yaml")


@dataclass(frozen=True)
class FixedCosts:
    """GPU memory beyond the traced tensors; ``gpu_terms.yaml`` explains each value and gives its source."""

    context_mib: float
    workspace_mib: float
    cublas_mib: float
    spread: float  # half width of the forecast's interval, as a share of its centre
    calibrated_on: str  # empty if never compared with a GPU

    @classmethod
    def load(cls, file: Path = _TERMS) -> "FixedCosts":
        """Read the costs from a YAML file, by default the shipped one."""
        return cls(**yaml.safe_load(file.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class MemoryState:
    """Allocator state after one event of the replay, in bytes."""

    allocated: int
    reserved: int


class GpuForecaster:
    """Forecaster of GPU memory and step time for one model, image size and GPU, at any batch size, from one trace.

    Args:
        config: run config; forecasts replace its ``batch_size``.
        where: compute that the run will use.
        terms: fixed costs, added to the traced tensors; None reads the shipped ones.
        settings: allocator settings; None reads them from the environment.

    Raises:
        ConfigError: the compute has no GPU, or the GPU does not support the precision. The first forecast raises it
            too if the model cannot be built or traced.
    """

    def __init__(
        self, config: RunConfig, where: Compute, terms: FixedCosts | None = None, settings: Settings | None = None
    ) -> None:
        if not where.gpu:
            raise ConfigError(
                f"compute={where.name}: it has no GPU to forecast; name one that has, such as --compute ml.g5.xlarge."
            )
        self.config, self.where = config, where
        self.terms = terms or FixedCosts.load()
        self.settings = settings or settings_from_environment()
        self.precision = resolve_precision(config, where.gpu)

    def forecast(self, batch: int) -> GpuForecast:
        """Forecast the peak memory with ``batch`` samples a step."""
        trace = self._trace_at(batch)
        timeline = self.timeline(batch)
        peak = max(range(len(timeline)), key=lambda i: timeline[i].allocated)
        untraced = {"batches ahead": self._batches_bytes(batch), "gradient buckets": self._buckets_bytes}
        kinds, modules = _peak_breakdown(trace, peak, timeline[peak].allocated, untraced)
        return GpuForecast(
            config=self.config.with_overrides({"batch_size": batch}),
            precision=self.precision,
            usable_mib=self.where.gpu_memory_gib * 1024,
            allocated_mib=timeline[peak].allocated / MIB,
            reserved_mib=max(state.reserved for state in timeline) / MIB,
            context_mib=self.terms.context_mib,
            spread=self.terms.spread,
            calibrated_on=self.terms.calibrated_on,
            kinds=kinds,
            modules=modules,
        )

    def step(self, batch: int) -> StepEstimate:
        """Estimate the least time of one training step with ``batch`` samples, see ``roofline_model``.

        If the batch has more micro-batches than were traced, the traced step is scaled up by the number of samples. The
        optimiser's update is then counted more than once, which is a small part of a step with large images.
        """
        parts = self.config.micro_batches
        traced = min(parts, PARTS) * math.ceil(batch / parts)
        estimate = estimate_step(self._trace_at(batch).work, self.where.gpu, self.precision, traced)
        return estimate.with_samples(batch)

    def with_settings(self, settings: Settings) -> "GpuForecaster":
        """Return a forecaster of the same run under other allocator settings, which shares the trace."""
        assert self.trace, "made now, so that the copy has it"
        other = copy.copy(self)
        other.settings = settings
        return other

    def in_parts(self, parts: int) -> "GpuForecaster":
        """Return a forecaster of the same run with ``parts`` micro-batches; two or more of them share the trace."""
        config = self.config.with_overrides({"micro_batches": parts})
        if min(parts, self.config.micro_batches) < PARTS:
            return GpuForecaster(config, self.where, self.terms, self.settings)
        assert self.trace, "made now, so that the copy has it"
        other = copy.copy(self)
        other.config = config
        return other

    def timeline(self, batch: int) -> list[MemoryState]:
        """Return the allocator's state after each event of the traced steps."""
        return list(self._replay(self._trace_at(batch), self._batches_bytes(batch)))

    def largest_batch(self, *, for_sure: bool = True) -> int:
        """Find the largest batch that stays within the memory margin, 0 if none does.

        Memory grows with the batch, so doubling and bisection find it.

        Args:
            for_sure: whether the upper end of the forecast's interval must stay within the margin; else its centre.
        """

        def fits(batch: int) -> bool:
            forecast = self.forecast(batch)
            return forecast.fit() is MemoryFit.FITS if for_sure else forecast.share <= MEMORY_MARGIN

        low, high = 0, 1
        while high <= LARGEST_BATCH and fits(high):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    @cached_property
    def trace(self) -> Trace:
        """Trace of two training steps, for every batch size."""
        # Weights from a model hub have the same shapes as random ones.
        return trace_training(self.config.with_overrides({"pretrained": False}), self.precision)

    def _trace_at(self, batch: int) -> Trace:
        """Return the trace with ``batch`` samples a step; the largest micro-batch decides the peak."""
        return self.trace.at(math.ceil(batch / self.config.micro_batches))

    def _batches_bytes(self, batch: int) -> int:
        """Return the bytes of the batches on the GPU (``train.prefetch``) that the trace of one micro-batch misses."""
        sample = (3 + len(CHANNELS)) * self.config.image_size**2  # bytes, see data.sample.Batch
        return (BATCHES_ON_GPU * batch - math.ceil(batch / self.config.micro_batches)) * sample

    @property
    def _buckets_bytes(self) -> int:
        """Bytes of DistributedDataParallel's gradient buckets, 0 for a single process.

        The buckets live through the whole step and gradients are views of them, so the traced gradients count twice; at
        the peak they are few.
        """
        weights = sum(storage.nbytes for storage in self.trace.storages if storage.kind == "parameters")
        return math.ceil(weights) if self.config.world_size > 1 else 0

    def _replay(self, trace: Trace, batches_bytes: int) -> Iterator[MemoryState]:
        """Yield the allocator's state after each event; a convolution's workspace is allocated and freed at once."""
        allocator = CachingAllocator(self.settings)
        allocator.malloc(_BATCHES, batches_bytes, stream="copies")  # prefetch copies on a stream of its own
        allocator.malloc(_CUBLAS, math.ceil(self.terms.cublas_mib * MIB))
        if self._buckets_bytes:
            allocator.malloc(_BUCKETS, self._buckets_bytes)
        workspace = math.ceil(self.terms.workspace_mib * MIB)
        for index, born in trace.events_in_order():
            if index == CONVOLUTION:
                allocator.malloc(CONVOLUTION, workspace)
            elif born:
                allocator.malloc(index, math.ceil(trace.storages[index].nbytes))
            else:
                allocator.free(index)
            yield MemoryState(allocator.allocated, allocator.reserved)
            if index == CONVOLUTION:
                allocator.free(CONVOLUTION)


# Names of blocks that are no traced storage: those have indices from 0, and CONVOLUTION is -1.
_CUBLAS = -2  # its workspace, which is kept
_BATCHES = -3  # that are on the GPU in addition to the micro-batch that the step computes
_BUCKETS = -4  # of DistributedDataParallel


def _peak_breakdown(
    trace: Trace, peak: int, allocated: int, untraced: Mapping[str, int]
) -> tuple[dict[str, float], dict[str, float]]:
    """Return what is alive after event number ``peak``: MiB by kind, and of the activations MiB by module.

    Args:
        untraced: bytes by kind that are allocated before the first event.
    """
    alive: set[int] = set()
    for index, born in islice(trace.events_in_order(), peak + 1):
        if index != CONVOLUTION:
            (alive.add if born else alive.remove)(index)
    kinds: dict[str, float] = defaultdict(float)
    modules: dict[str, float] = defaultdict(float)
    for storage in (trace.storages[index] for index in alive):
        kinds[storage.kind] += storage.nbytes / MIB
        if storage.kind == "activations":
            modules[_model_stage(storage.module)] += storage.nbytes / MIB
    kinds.update({kind: nbytes / MIB for kind, nbytes in untraced.items() if nbytes})
    kinds["workspace and rounding"] = allocated / MIB - sum(kinds.values())
    return _largest_first(kinds), _largest_first(modules)


def _largest_first(sizes: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def _model_stage(module: str) -> str:
    """Shorten a module's name to a stage of the encoder or a block of the decoder."""
    parts = [part for part in module.split(".") if part not in ("net", "model")]
    return ".".join(parts[: 3 if parts[1:2] == ["blocks"] else 2]) or "input and loss"


def forecast_gpu_memory(config: RunConfig, where: Compute) -> GpuForecast | None:
    """Forecast a config's GPU memory, None if its compute has no GPU; one trace serves every batch size.

    Raises:
        ConfigError: as ``GpuForecaster`` does.
    """
    return replace(_forecaster(config, where).forecast(config.batch_size), config=config) if where.gpu else None


def estimate_step_time(config: RunConfig, where: Compute) -> StepEstimate:
    """Estimate the least time of a config's step, from the same trace as its memory.

    Raises:
        ConfigError: as ``GpuForecaster`` does, or the peaks of the GPU are not known.
    """
    return _forecaster(config, where).step(config.batch_size)


def _forecaster(config: RunConfig, where: Compute) -> GpuForecaster:
    # All other knobs at their defaults, so that configs with the same trace share a cache entry.
    traced = {knob: getattr(config, knob) for knob in _TRACED_KNOBS}
    return _cached_forecaster(RunConfig().with_overrides(traced), where)


@cache
def _cached_forecaster(config: RunConfig, where: Compute) -> GpuForecaster:
    return GpuForecaster(config, where)


def resolve_precision(config: RunConfig, gpu: str) -> str:
    """Return the precision (fp32, bf16 or fp16) that ``train.device`` would choose on a GPU model.

    Raises:
        ConfigError: bf16 on a GPU without native bf16.
    """
    has_bf16 = gpu not in _BEFORE_AMPERE
    if config.precision == "bf16" and not has_bf16:
        raise ConfigError(f"precision=bf16: {gpu} has no native bf16 (compute capability 8.0); use fp16 or auto.")
    if config.precision != "auto":
        return config.precision
    return "bf16" if has_bf16 else "fp16"


def settings_from_environment() -> Settings:
    """Read the allocator's settings from the environment; the defaults if neither variable is set."""
    text = next((os.environ[name] for name in ALLOCATOR_VARIABLES if name in os.environ), "")
    return Settings.parse(text)


_LIGHTER_DECODERS = ("fpn", "linknet")


def suggest_lighter_configs(forecaster: GpuForecaster, largest: int) -> list[tuple[str, GpuForecast]]:
    """Return the changes of a config that would take less GPU memory: the setting as text, and its forecast.

    Args:
        forecaster: forecaster of the config.
        largest: largest batch that fits for sure, from ``GpuForecaster.largest_batch``.
    """
    config, where = forecaster.config, forecaster.where
    changes: list[dict[str, object]] = []
    if forecaster.precision == "fp32":
        changes.append({"precision": "auto"})
    if not config.channels_last:
        changes.append({"channels_last": True})
    if not config.activation_checkpointing:
        changes.append({"activation_checkpointing": True})
    changes += [{"decoder": name} for name in _LIGHTER_DECODERS if name != config.decoder]
    suggestions = _smallest_split(forecaster)
    if 0 < largest < config.batch_size:
        suggestions.append((f"batch_size={largest}", forecaster.forecast(largest)))
    if not forecaster.settings.expandable_segments:
        expandable = forecaster.with_settings(replace(forecaster.settings, expandable_segments=True))
        setting = f"{ALLOCATOR_VARIABLES[0]}=expandable_segments:True"
        suggestions.append((setting, expandable.forecast(config.batch_size)))
    for change in changes:
        other = GpuForecaster(config.with_overrides(change), where, forecaster.terms, forecaster.settings)
        setting = " ".join(f"{key}={other.config.to_strings()[key]}" for key in change)
        with contextlib.suppress(ConfigError):  # the encoder does not support the change, or cannot be traced with it
            suggestions.append((setting, other.forecast(config.batch_size)))
    current = forecaster.forecast(config.batch_size)
    return [(setting, forecast) for setting, forecast in suggestions if forecast.total_mib < current.total_mib]


def _smallest_split(forecaster: GpuForecaster) -> list[tuple[str, GpuForecast]]:
    """Return the fewest micro-batches that fit for sure, empty if none do; the optimiser takes the same steps."""
    batch, now = forecaster.config.batch_size, forecaster.config.micro_batches
    most = batch // (forecaster.config.least_batch // now or 1)  # micro-batches
    if most < 2:
        return []
    split = forecaster.in_parts(max(2, now))
    # Counts of micro-batches with the same largest one take the same memory: only the fewest of each size is tried.
    sizes = dict.fromkeys(math.ceil(batch / parts) for parts in range(max(2, now + 1), most + 1))
    for parts in (math.ceil(batch / size) for size in sizes):
        if (forecast := split.in_parts(parts).forecast(batch)).fit() is MemoryFit.FITS:
            return [(f"micro_batches={parts}", forecast)]
    return []
