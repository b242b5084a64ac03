"""GPU memory of a training run, foreseen on a machine without a GPU.

A trace of real training steps (``trace``) is replayed through a simulation of PyTorch's allocator (``allocator``); what
neither can see is added as named terms (``gpu_terms.yaml``). One trace serves every batch size.
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
LARGEST_BATCH = 4096  # beyond this nobody asks
_BEFORE_AMPERE = ("K80", "M60", "P100", "V100", "T4")  # compute capability below 8.0: no bf16
# One trace serves every batch size; the compute is known by itself, and a GPU's step does not depend on CPU threads.
_DECISIVE = affecting("step") - {"batch_size", "compute", "threads"}
_TERMS = Path(__file__).with_name("gpu_terms.yaml")


@dataclass(frozen=True)
class FixedCosts:
    """What a GPU holds beyond traced tensors; see ``gpu_terms.yaml`` for what each is and where it comes from."""

    context_mib: float
    workspace_mib: float
    cublas_mib: float
    spread: float  # half width of the interval, as a share
    calibrated_on: str  # empty where never compared with a GPU

    @classmethod
    def load(cls, file: Path = _TERMS) -> "FixedCosts":
        """Read the shipped terms."""
        return cls(**yaml.safe_load(file.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class MemoryState:
    """What is held after one event of the replay, bytes."""

    allocated: int
    reserved: int


class GpuForecaster:
    """Forecasts for one model, image size and GPU, at any batch size, from one trace.

    Args:
        config: of the run to come.
        where: the compute that it will run on.
        terms: what is added to the traced tensors; the shipped ones where None.
        settings: of the allocator; from the environment where None.

    Raises:
        ConfigError: the compute has no GPU, the GPU cannot do the precision asked for, or the model cannot be built.
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
        """The forecast with ``batch`` samples a step."""
        trace = self._trace_at(batch)
        timeline = self.timeline(batch)
        peak = max(range(len(timeline)), key=lambda i: timeline[i].allocated)
        beside = {"batches ahead": self._batches_bytes(batch), "gradient buckets": self._buckets_bytes}
        kinds, modules = _parts(trace, peak, timeline[peak].allocated, beside)
        return GpuForecast(
            config=self.config.with_overrides({"batch_size": batch}),
            precision=self.precision,
            usable_mib=self.where.gpu_memory_gib * 1024,
            allocated_mib=timeline[peak].allocated / MIB,
            reserved_mib=max(point.reserved for point in timeline) / MIB,
            context_mib=self.terms.context_mib,
            spread=self.terms.spread,
            calibrated_on=self.terms.calibrated_on,
            kinds=kinds,
            modules=modules,
        )

    def step(self, batch: int) -> StepEstimate:
        """How long one training step with ``batch`` samples takes at the least, see ``roofline``.

        Of a batch in more parts than were traced, as much longer as it has more samples than these: what the optimiser
        does once a step is then counted more than once, which with large images is a small part.
        """
        parts = self.config.micro_batches
        traced = min(parts, PARTS) * math.ceil(batch / parts)
        found = estimate_step(self._trace_at(batch).work, self.where.gpu, self.precision, traced)
        return found.with_samples(batch)

    def with_settings(self, settings: Settings) -> "GpuForecaster":
        """The same run under other settings of the allocator; the trace is shared."""
        assert self.trace, "made now, so that the copy has it"
        other = copy.copy(self)
        other.settings = settings
        return other

    def in_parts(self, parts: int) -> "GpuForecaster":
        """The same run with its batches cut into so many parts; among two and more the trace is shared."""
        config = self.config.with_overrides({"micro_batches": parts})
        if min(parts, self.config.micro_batches) < PARTS:
            return GpuForecaster(config, self.where, self.terms, self.settings)
        assert self.trace, "made now, so that the copy has it"
        other = copy.copy(self)
        other.config = config
        return other

    def timeline(self, batch: int) -> list[MemoryState]:
        """What is held after each event of the traced steps."""
        return list(self._replay(self._trace_at(batch), self._batches_bytes(batch)))

    def largest_batch(self, *, for_sure: bool = True) -> int:
        """The largest batch whose interval (or, unless ``for_sure``, whose centre) stays within the margin; 0 for none.

        By doubling and bisection: memory grows with the batch.
        """

        def holds(batch: int) -> bool:
            found = self.forecast(batch)
            return found.fit() is MemoryFit.FITS if for_sure else found.share <= MEMORY_MARGIN

        low, high = 0, 1
        while high <= LARGEST_BATCH and holds(high):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if holds(middle) else (low, middle)
        return low

    @cached_property
    def trace(self) -> Trace:
        """Of two training steps, for every batch size."""
        # Weights from a model hub have the same shapes as random ones.
        return trace_training(self.config.with_overrides({"pretrained": False}), self.precision)

    def _trace_at(self, batch: int) -> Trace:
        """The trace with ``batch`` samples a step, of which the largest part is alive at a time."""
        return self.trace.at(math.ceil(batch / self.config.micro_batches))

    def _batches_bytes(self, batch: int) -> int:
        """Bytes of whole batches on the GPU (``train.prefetch``) that the trace of one part does not have."""
        sample = (3 + len(CHANNELS)) * self.config.image_size**2  # bytes, see data.sample.Batch
        return (BATCHES_ON_GPU * batch - math.ceil(batch / self.config.micro_batches)) * sample

    @property
    def _buckets_bytes(self) -> int:
        """What DistributedDataParallel keeps for the gradients of several processes, theirs to lie in, over the whole
        step; the traced gradients, few at the peak, count beside it."""
        weights = sum(storage.nbytes for storage in self.trace.storages if storage.kind == "parameters")
        return math.ceil(weights) if self.config.world_size > 1 else 0

    def _replay(self, trace: Trace, batches_bytes: int) -> Iterator[MemoryState]:
        """Run the events through the allocator; a convolution's workspace comes and goes."""
        allocator = CachingAllocator(self.settings)
        allocator.malloc(_BATCHES, batches_bytes, stream="copies")
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


_CUBLAS = -2  # the allocator's name for cuBLAS's workspace, which stays
_BATCHES = -3  # and for the batches beside the one that is worked on
_BUCKETS = -4


def _parts(
    trace: Trace, peak: int, allocated: int, beside: Mapping[str, int]
) -> tuple[dict[str, float], dict[str, float]]:
    """What lives after event number ``peak``: MiB by kind, and of the activations by module.

    Args:
        beside: bytes of what is there from the start and was not traced, by kind.
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
            modules[_part_of_model(storage.module)] += storage.nbytes / MIB
    kinds.update({kind: nbytes / MIB for kind, nbytes in beside.items() if nbytes})
    kinds["workspace and rounding"] = allocated / MIB - sum(kinds.values())
    return _largest_first(kinds), _largest_first(modules)


def _largest_first(sizes: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def _part_of_model(module: str) -> str:
    """A module's name cut down to a stage of the encoder or a block of the decoder."""
    parts = [part for part in module.split(".") if part not in ("net", "model")]
    return ".".join(parts[: 3 if parts[1:2] == ["blocks"] else 2]) or "input and loss"


def forecast_gpu_memory(config: RunConfig, where: Compute) -> GpuForecast | None:
    """The forecast of a config, None where its compute has no GPU; configs alike but for the batch share a trace.

    Raises:
        ConfigError: as ``GpuForecaster`` does.
    """
    return replace(_forecaster(config, where).forecast(config.batch_size), config=config) if where.gpu else None


def estimate_step_time(config: RunConfig, where: Compute) -> StepEstimate:
    """The roofline of a config's step, from the same trace as its memory.

    Raises:
        ConfigError: as ``GpuForecaster`` does, or a GPU whose peaks are not known.
    """
    return _forecaster(config, where).step(config.batch_size)


def _forecaster(config: RunConfig, where: Compute) -> GpuForecaster:
    return _of_decisive(RunConfig().with_overrides({knob: getattr(config, knob) for knob in _DECISIVE}), where)


@cache
def _of_decisive(config: RunConfig, where: Compute) -> GpuForecaster:
    return GpuForecaster(config, where)


def resolve_precision(config: RunConfig, gpu: str) -> str:
    """The arithmetic that ``train.device`` would choose on a GPU model.

    Raises:
        ConfigError: bf16 on a GPU that lacks it.
    """
    has_bf16 = gpu not in _BEFORE_AMPERE
    if config.precision == "bf16" and not has_bf16:
        raise ConfigError(f"precision=bf16: {gpu} has no native bf16 (compute capability 8.0); use fp16 or auto.")
    if config.precision != "auto":
        return config.precision
    return "bf16" if has_bf16 else "fp16"


def settings_from_environment() -> Settings:
    """The allocator's settings as the environment has them; the defaults where it has none."""
    text = next((os.environ[name] for name in ALLOCATOR_VARIABLES if name in os.environ), "")
    return Settings.parse(text)


_LIGHTER_DECODERS = ("fpn", "linknet")


def suggest_lighter_configs(forecaster: GpuForecaster, largest: int) -> list[tuple[str, GpuForecast]]:
    """What would take less than the config asked for, each with its own forecast: what to set, and what comes of it.

    Args:
        forecaster: of the config.
        largest: batch that surely fits, as ``largest_batch`` has found.
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
    found = _in_parts(forecaster)
    if 0 < largest < config.batch_size:
        found.append((f"batch_size={largest}", forecaster.forecast(largest)))
    if not forecaster.settings.expandable_segments:
        expandable = forecaster.with_settings(replace(forecaster.settings, expandable_segments=True))
        found.append((f"{ALLOCATOR_VARIABLES[0]}=expandable_segments:True", expandable.forecast(config.batch_size)))
    for change in changes:
        other = GpuForecaster(config.with_overrides(change), where, forecaster.terms, forecaster.settings)
        words = " ".join(f"{key}={other.config.to_strings()[key]}" for key in change)
        with contextlib.suppress(ConfigError):  # an encoder that cannot do it, or not be traced while it does
            found.append((words, other.forecast(config.batch_size)))
    asked = forecaster.forecast(config.batch_size)
    return [(words, forecast) for words, forecast in found if forecast.total_mib < asked.total_mib]


def _in_parts(forecaster: GpuForecaster) -> list[tuple[str, GpuForecast]]:
    """The same batch in as few parts as surely fit, which takes the same optimiser steps; nothing where none do."""
    batch, now = forecaster.config.batch_size, forecaster.config.micro_batches
    most = batch // (forecaster.config.least_batch // now or 1)  # parts
    if most < 2:
        return []
    cut = forecaster.in_parts(max(2, now))
    sizes = dict.fromkeys(math.ceil(batch / parts) for parts in range(max(2, now + 1), most + 1))
    for parts in (math.ceil(batch / size) for size in sizes):
        if (found := cut.in_parts(parts).forecast(batch)).fit() is MemoryFit.FITS:
            return [(f"micro_batches={parts}", found)]
    return []
