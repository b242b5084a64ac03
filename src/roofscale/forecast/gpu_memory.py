"""Forecast of a training's GPU memory, made on a machine without a GPU.

A trace of a training step (``trace``) is replayed through a simulation of PyTorch's caching allocator (``allocator``).
What neither can see (the CUDA context, cuBLAS's workspace, gaps between blocks) is added from ``gpu_terms.yaml``. One
trace serves every batch size.
"""

import contextlib
import itertools
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import yaml

from roofscale.compute import Compute
from roofscale.config import RunConfig, affecting
from roofscale.data.sample import CHANNELS
from roofscale.errors import ConfigError
from roofscale.forecast.allocator import MIB, CachingAllocator, Settings
from roofscale.forecast.results import GpuForecast, require_gpu
from roofscale.forecast.roofline_model import StepEstimate, estimate_step
from roofscale.forecast.trace import Trace, trace_run, trace_step
from roofscale.forecast.training_step import TrainingStep
from roofscale.forecast.workspace import TERMS
from roofscale.memory_margin import MEMORY_MARGIN, MemoryFit
from roofscale.train.prefetch import BATCHES_ON_GPU

ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the newer spelling first
LARGEST_BATCH = 4096  # upper end of the search for the largest batch that fits
_LINEAR_TRIES = 6
_LIGHTER_DECODERS = ("fpn", "linknet")
_BATCHES = "batches ahead"  # on the GPU in addition to the one that the step computes
_BUCKETS = "gradient buckets"  # of DistributedDataParallel
_BEFORE_AMPERE = ("K80", "M60", "P100", "V100", "T4")  # compute capability below 8.0: no bf16
# Knobs that a trace depends on beside the precision. It serves every batch size, split or not, on any GPU.
_TRACED_KNOBS = affecting("step") - {"batch_size", "compute", "precision", "threads", "micro_batches"}


@dataclass(frozen=True)
class Terms:
    """GPU memory beyond the traced tensors; ``gpu_terms.yaml`` explains each value and names its evidence."""

    context_mib: float
    cublas_mib: float
    gaps: float  # free memory between blocks that cannot be given back, as a share of what is allocated
    intervals: Mapping[str, tuple[float, float]]  # by fp32 or half: the ends, as shares of the centre
    evidence: Mapping[str, str]  # by fp32 or half: the measurements that the interval stands on
    workspace_floor_mib: Mapping[str, float]  # see ``workspace``

    @classmethod
    def load(cls, file: Path = TERMS) -> "Terms":
        """Read the terms from a YAML file, by default the shipped one."""
        return cls(**yaml.safe_load(file.read_text(encoding="utf-8")))


class MemoryState(NamedTuple):
    """Allocator state after one event of the replay, in bytes."""

    allocated: int
    reserved: int


@dataclass(frozen=True)
class GpuForecaster:
    """Forecaster of GPU memory and time of a training step on one GPU, at any batch size, from one trace.

    Copies made by ``replace`` share the trace.
    """

    name: str  # of the model
    where: Compute
    precision: str  # fp32, bf16 or fp16
    traced: Callable[[], Trace]  # cached; the first call raises a ConfigError if the step cannot be traced
    ddp: bool = False
    parts: int = 1  # micro-batches of a batch
    waiting: int = 0  # bytes a sample of the batches that wait on the GPU, see ``train.prefetch``
    terms: Terms = field(default_factory=lambda: Terms.load())
    settings: Settings = field(default_factory=lambda: settings_from_environment())

    def __post_init__(self) -> None:
        require_gpu(self.where)

    @classmethod
    def of_step(cls, step: TrainingStep, where: Compute, **settings: Any) -> Self:
        """Forecast a step of any model; ``settings`` are fields.

        Raises:
            ConfigError: the compute has no GPU, or the GPU does not support the precision.
        """
        precision = resolve_precision(step.precision, where.gpu)
        return cls(step.name, where, precision, cache(lambda: trace_step(step, precision)), step.ddp, **settings)

    @classmethod
    def of_run(cls, config: RunConfig, where: Compute, **settings: Any) -> Self:
        """Forecast the step of a run, as ``of_step``; all runs with the same step share its trace."""
        precision = resolve_precision(config.precision, where.gpu)
        # All other knobs at their defaults, so that configs with the same trace share it.
        same = RunConfig().with_overrides({knob: getattr(config, knob) for knob in _TRACED_KNOBS})
        traced = partial(_trace_of_run, same, "fp32" if precision == "fp32" else "bf16")
        name = f"{config.encoder} {config.decoder}, {config.image_size} px"
        sample = (3 + len(CHANNELS)) * config.image_size**2  # bytes, see data.sample.Batch
        return cls(name, where, precision, traced, config.world_size > 1, config.micro_batches, sample, **settings)

    def forecast(self, batch: int) -> GpuForecast:
        """Forecast the peak memory with ``batch`` samples a step."""
        trace, untraced = self._two_steps(batch), self._untraced(batch)
        timeline = self._replay(trace, untraced)
        peak = max(range(len(timeline)), key=lambda i: timeline[i].allocated)
        allocated = timeline[peak].allocated / MIB
        kinds, modules = _peak_breakdown(trace, peak, allocated, untraced)
        kind = "fp32" if self.precision == "fp32" else "half"
        return GpuForecast(
            name=self.name,
            batch=batch,
            precision=self.precision,
            usable_mib=self.where.gpu_memory_gib * 1024,
            allocated_mib=allocated,
            reserved_mib=max(state.reserved for state in timeline) / MIB,
            context_mib=self.terms.context_mib,
            gaps_mib=self.terms.gaps * allocated,
            interval=self.terms.intervals[kind],
            evidence=self.terms.evidence[kind],
            kinds=kinds,
            modules=modules,
        )

    def step(self, batch: int) -> StepEstimate:
        """Estimate the time of one training step with ``batch`` samples, see ``roofline_model``."""
        return estimate_step(self.traced().at(batch).work, self.where.gpu, self.precision, batch)

    def timeline(self, batch: int) -> list[MemoryState]:
        """Return the allocator's state after each event of the first two steps."""
        return self._replay(self._two_steps(batch), self._untraced(batch))

    def _replay(self, trace: Trace, untraced: Mapping[str, int]) -> list[MemoryState]:
        allocator = CachingAllocator(self.settings)
        for name, (kind, nbytes) in enumerate(untraced.items()):
            # Batches are copied ahead on a stream of their own. The names of traced storages are 0 and above.
            allocator.malloc(-2 - name, nbytes, stream="copies" if kind == _BATCHES else 0)
        allocator.malloc(-1, math.ceil(self.terms.cublas_mib * MIB))
        timeline = []
        for index, born in trace.events_in_order():
            if born:
                allocator.malloc(index, math.ceil(trace.storages[index].nbytes))
            else:
                allocator.free(index)
            timeline.append(MemoryState(allocator.allocated, allocator.reserved))
        return timeline

    def largest_batch(self, *, for_sure: bool = True) -> int:
        """Find the largest batch whose forecast stays within the memory margin, 0 if none does.

        ``for_sure`` asks it of the interval's upper end, else of the centre. Memory grows nearly in proportion to the
        batch, so a step along its line finds it in a few tries; from the sixth on the interval is halved.
        """
        limit = MEMORY_MARGIN * self.where.gpu_memory_gib * 1024

        def size_of(batch: int) -> float:
            forecast = self.forecast(batch)
            return forecast.high_mib if for_sure else forecast.total_mib

        size = size_of(1)
        slope = max(size_of(2) - size, 1.0)  # MiB a sample
        guess, tries = 1, 0
        low, high = (1, LARGEST_BATCH + 1) if size <= limit else (0, 1)
        while high - low > 1:
            guess = guess + math.floor((limit - size) / slope) if tries < _LINEAR_TRIES else (low + high) // 2
            guess = min(max(guess, low + 1), high - 1)
            size, tries = size_of(guess), tries + 1
            low, high = (guess, high) if size <= limit else (low, guess)
        return low

    def _two_steps(self, batch: int) -> Trace:
        """Return the first two steps; the largest of a batch's parts decides the peak."""
        return self.traced().first_two_steps(in_parts=self.parts > 1).at(math.ceil(batch / self.parts))

    def _untraced(self, batch: int) -> dict[str, int]:
        """Return the bytes, by kind, that are on the GPU from before the first step and not in the trace.

        DDP's buckets live through the whole step and gradients are views of them, so the traced gradients count twice;
        at the peak they are few.
        """
        ahead = (BATCHES_ON_GPU * batch - math.ceil(batch / self.parts)) * self.waiting
        found = {_BATCHES: ahead, _BUCKETS: self.traced().gradient_bytes if self.ddp else 0}
        return {kind: nbytes for kind, nbytes in found.items() if nbytes}


@cache
def _trace_of_run(config: RunConfig, precision: str) -> Trace:
    return trace_run(config, precision)


def _peak_breakdown(
    trace: Trace, peak: int, allocated_mib: float, untraced: Mapping[str, int]
) -> tuple[dict[str, float], dict[str, float]]:
    """Return what is alive after event number ``peak``: MiB by kind, and of the activations MiB by module."""
    alive: set[int] = set()
    for index, born in itertools.islice(trace.events_in_order(), peak + 1):
        (alive.add if born else alive.remove)(index)
    kinds: dict[str, float] = defaultdict(float)
    modules: dict[str, float] = defaultdict(float)
    for storage in (trace.storages[index] for index in alive):
        kinds[storage.kind] += storage.nbytes / MIB
        if storage.kind == "activations":
            modules[_model_stage(storage.module)] += storage.nbytes / MIB
    kinds.update({kind: nbytes / MIB for kind, nbytes in untraced.items()})
    kinds["cuBLAS and rounding"] = allocated_mib - sum(kinds.values())
    return _largest_first(kinds), _largest_first(modules)


def _largest_first(sizes: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def _model_stage(module: str) -> str:
    """Shorten a module's name to a stage of the encoder or a block of the decoder."""
    parts = [part for part in module.split(".") if part not in ("net", "model")]
    return ".".join(parts[: 3 if parts[1:2] == ["blocks"] else 2]) or "input and loss"


def forecast_gpu_memory(config: RunConfig, where: Compute) -> GpuForecast | None:
    """Forecast a config's GPU memory, None if its compute has no GPU.

    Raises:
        ConfigError: the GPU does not support the precision, or the step cannot be traced.
    """
    return GpuForecaster.of_run(config, where).forecast(config.batch_size) if where.gpu else None


def resolve_precision(precision: str, gpu: str) -> str:
    """Return the precision (fp32, bf16 or fp16) that ``train.device`` would choose for this knob on a GPU model.

    Raises:
        ConfigError: bf16 on a GPU without native bf16.
    """
    has_bf16 = gpu not in _BEFORE_AMPERE
    if precision == "bf16" and not has_bf16:
        raise ConfigError(f"precision=bf16: {gpu} has no native bf16 (compute capability 8.0); use fp16 or auto.")
    if precision != "auto":
        return precision
    return "bf16" if has_bf16 else "fp16"


def settings_from_environment() -> Settings:
    """Read the allocator's settings from the environment; the defaults if neither variable is set."""
    text = next((os.environ[name] for name in ALLOCATOR_VARIABLES if name in os.environ), "")
    return Settings.parse(text)


def suggest_lighter_configs(
    config: RunConfig, forecaster: GpuForecaster, largest: int
) -> Iterator[tuple[str, GpuForecast]]:
    """Yield the changes of a config that would take less GPU memory: the setting as text, and its forecast.

    Those that share the config's trace come first; each of the others takes a trace of its own. ``largest`` is the
    largest batch that fits for sure.
    """
    current = forecaster.forecast(config.batch_size)
    for setting, other, batch in _changes(config, forecaster, largest):
        with contextlib.suppress(ConfigError):  # the encoder does not support the change, or cannot be traced with it
            if (forecast := other.forecast(batch)).total_mib < current.total_mib:
                yield setting, forecast


def _changes(config: RunConfig, forecaster: GpuForecaster, largest: int) -> Iterator[tuple[str, GpuForecaster, int]]:
    """Yield settings, each with its forecaster and its batch."""
    batch, settings = config.batch_size, forecaster.settings
    if split := smallest_split(config, forecaster):
        yield f"micro_batches={split.parts}", split, batch
    if 0 < largest < batch:
        yield f"batch_size={largest}", forecaster, largest
    if not settings.expandable_segments:
        expandable = replace(forecaster, settings=replace(settings, expandable_segments=True))
        yield f"{ALLOCATOR_VARIABLES[0]}=expandable_segments:True", expandable, batch
    changes = [
        *(["precision=auto"] if forecaster.precision == "fp32" else []),
        *(f"{knob}=true" for knob in ("channels_last", "activation_checkpointing") if not getattr(config, knob)),
        *(f"decoder={name}" for name in _LIGHTER_DECODERS if name != config.decoder),
    ]
    for change in changes:
        changed = config.with_overrides([change])
        yield change, GpuForecaster.of_run(changed, forecaster.where, terms=forecaster.terms, settings=settings), batch


def smallest_split(config: RunConfig, forecaster: GpuForecaster) -> GpuForecaster | None:
    """Return the forecaster with the fewest micro-batches that fit for sure, None if none do.

    The optimiser takes the same steps.
    """
    batch, now = config.batch_size, config.micro_batches
    most = batch // (config.least_batch // now or 1)  # micro-batches
    # Counts of micro-batches with the same largest one take the same memory: only the fewest of each size is tried.
    sizes = dict.fromkeys(math.ceil(batch / parts) for parts in range(max(2, now + 1), most + 1))
    splits = (replace(forecaster, parts=math.ceil(batch / size)) for size in sizes)
    return next((split for split in splits if split.forecast(batch).fit() is MemoryFit.FITS), None)
