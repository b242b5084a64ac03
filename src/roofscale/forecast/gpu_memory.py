"""Forecast of a training's GPU memory, made on a machine without a GPU.

A trace of a training step (``trace``) is replayed through a simulation of PyTorch's caching allocator (``allocator``).
What neither can see (the CUDA context, cuBLAS's workspace, gaps between blocks) is added from ``gpu_terms.yaml``. One
trace serves every batch size.
"""

import contextlib
import copy
import itertools
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Self

import yaml

from roofscale.compute import Compute
from roofscale.config import RunConfig, affecting
from roofscale.data.sample import CHANNELS
from roofscale.errors import ConfigError
from roofscale.forecast.allocator import MIB, CachingAllocator, Settings
from roofscale.forecast.results import GpuForecast
from roofscale.forecast.roofline_model import StepEstimate, estimate_step
from roofscale.forecast.trace import Trace, trace_run, trace_step
from roofscale.forecast.training_step import TrainingStep
from roofscale.forecast.workspace import TERMS
from roofscale.memory_margin import MEMORY_MARGIN, MemoryFit
from roofscale.train.prefetch import BATCHES_ON_GPU

ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the newer spelling first
LARGEST_BATCH = 4096  # upper end of the search for the largest batch that fits
_LINEAR_TRIES = 6
_BEFORE_AMPERE = ("K80", "M60", "P100", "V100", "T4")  # compute capability below 8.0: no bf16
# Knobs that a trace depends on. It serves every batch size, split or not; the compute is an argument of its own, and
# what a step holds on a GPU does not depend on CPU threads.
_TRACED_KNOBS = affecting("step") - {"batch_size", "compute", "threads", "micro_batches"}


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


@dataclass(frozen=True)
class MemoryState:
    """Allocator state after one event of the replay, in bytes."""

    allocated: int
    reserved: int


class StepForecaster:
    """Forecaster of GPU memory and time of a training step on one GPU, at any batch size, from one trace.

    Args:
        step: training step.
        where: compute that it will be taken on.
        terms: added to the traced tensors; None reads the shipped ones.
        settings: allocator settings; None reads them from the environment.

    Raises:
        ConfigError: the compute has no GPU, or the GPU does not support the precision. The first forecast raises it
            too if the step cannot be traced.
    """

    def __init__(
        self, step: TrainingStep, where: Compute, terms: Terms | None = None, settings: Settings | None = None
    ) -> None:
        self.training_step, self.name = step, step.name
        self._set(where, step.precision, terms, settings)

    def _set(self, where: Compute, precision: str, terms: Terms | None, settings: Settings | None) -> None:
        if not where.gpu:
            raise ConfigError(
                f"compute={where.name}: it has no GPU to forecast; name one that has, such as --compute ml.g5.xlarge."
            )
        self.where = where
        self.terms = terms or Terms.load()
        self.settings = settings or settings_from_environment()
        self.precision = resolve_precision(precision, where.gpu)

    def forecast(self, batch: int) -> GpuForecast:
        """Forecast the peak memory with ``batch`` samples a step."""
        trace, untraced = self._trace_at(batch), self._untraced(batch)
        timeline = self.timeline(batch)
        peak = max(range(len(timeline)), key=lambda i: timeline[i].allocated)
        kinds, modules = _peak_breakdown(trace, peak, timeline[peak].allocated, untraced)
        kind = "fp32" if self.precision == "fp32" else "half"
        allocated = timeline[peak].allocated / MIB
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
        return estimate_step(self._trace.at(batch).work, self.where.gpu, self.precision, batch)

    def with_settings(self, settings: Settings) -> Self:
        """Return a forecaster of the same step under other allocator settings, which shares the trace."""
        return self._copy(settings=settings)

    def _copy(self, **changes: Any) -> Self:
        assert self._trace, "made now, so that the copy has it"
        other = copy.copy(self)
        vars(other).update(changes)
        return other

    def timeline(self, batch: int) -> list[MemoryState]:
        """Return the allocator's state after each event of the first two steps."""
        return list(self._replay(self._trace_at(batch), self._untraced(batch)))

    def largest_batch(self, *, for_sure: bool = True) -> int:
        """Find the largest batch that stays within the memory margin, 0 if none does.

        Memory grows nearly in proportion to the batch, so a step along its line finds it in a few tries; from the sixth
        on the interval is halved.

        Args:
            for_sure: whether the upper end of the forecast's interval must stay within the margin; else its centre.
        """
        limit = MEMORY_MARGIN * self.where.gpu_memory_gib * 1024

        def size_of(batch: int) -> float:
            forecast = self.forecast(batch)
            return forecast.high_mib if for_sure else forecast.total_mib

        size = size_of(1)
        slope = max(size_of(2) - size, 1.0)  # MiB a sample
        low, high, guess = 0, LARGEST_BATCH + 1, 1
        for tries in itertools.count():
            low, high = (guess, high) if size <= limit else (low, guess)
            if high - low < 2:
                return low
            guess = guess + math.floor((limit - size) / slope) if tries < _LINEAR_TRIES else (low + high) // 2
            guess = min(max(guess, low + 1), high - 1)
            size = size_of(guess)
        raise AssertionError("the interval has no batch left")

    @cached_property
    def _trace(self) -> Trace:
        """Trace of one training step, for every batch size."""
        return trace_step(self.training_step, self.precision)

    def _trace_at(self, batch: int) -> Trace:
        """Return the first two steps with ``batch`` samples each."""
        return self._trace.first_two_steps().at(batch)

    def _untraced(self, batch: int) -> dict[str, int]:
        """Return the bytes, by kind, that are on the GPU from before the first step and not in the trace."""
        return {_BUCKETS: self._trace.gradient_bytes} if self.training_step.ddp else {}

    def _replay(self, trace: Trace, untraced: Mapping[str, int]) -> Iterator[MemoryState]:
        """Yield the allocator's state after each event."""
        allocator = CachingAllocator(self.settings)
        for name, (kind, nbytes) in enumerate(untraced.items()):
            # Batches are copied ahead on a stream of their own. The names of traced storages are 0 and above.
            allocator.malloc(-2 - name, nbytes, stream="copies" if kind == _BATCHES else 0)
        allocator.malloc(-1, math.ceil(self.terms.cublas_mib * MIB))
        for index, born in trace.events_in_order():
            if born:
                allocator.malloc(index, math.ceil(trace.storages[index].nbytes))
            else:
                allocator.free(index)
            yield MemoryState(allocator.allocated, allocator.reserved)


class GpuForecaster(StepForecaster):
    """Forecaster of the GPU memory and step time of a run, with its micro-batches and the batches copied ahead.

    Args:
        config: run config; forecasts replace its ``batch_size``.
        where, terms, settings: as of ``StepForecaster``.

    Raises:
        ConfigError: as ``StepForecaster`` does; the first forecast also if the model cannot be built.
    """

    def __init__(
        self, config: RunConfig, where: Compute, terms: Terms | None = None, settings: Settings | None = None
    ) -> None:
        self.config, self.name = config, f"{config.encoder} {config.decoder}, {config.image_size} px"
        self._set(where, config.precision, terms, settings)

    def in_parts(self, parts: int) -> "GpuForecaster":
        """Return a forecaster of the same run with ``parts`` micro-batches, which shares the trace."""
        return self._copy(config=self.config.with_overrides({"micro_batches": parts}))

    @cached_property
    def _trace(self) -> Trace:
        return trace_run(self.config, self.precision)

    def _trace_at(self, batch: int) -> Trace:
        parts = self.config.micro_batches  # the largest of them decides the peak
        return self._trace.first_two_steps(in_parts=parts > 1).at(math.ceil(batch / parts))

    def _untraced(self, batch: int) -> dict[str, int]:
        """Return the bytes of the batches on the GPU (``train.prefetch``) beyond the traced one, and of DDP's buckets.

        The buckets live through the whole step and gradients are views of them, so the traced gradients count twice; at
        the peak they are few.
        """
        sample = (3 + len(CHANNELS)) * self.config.image_size**2  # bytes, see data.sample.Batch
        ahead = (BATCHES_ON_GPU * batch - math.ceil(batch / self.config.micro_batches)) * sample
        return {_BATCHES: ahead, **({_BUCKETS: self._trace.gradient_bytes} if self.config.world_size > 1 else {})}


_BATCHES = "batches ahead"  # on the GPU in addition to the one that the step computes
_BUCKETS = "gradient buckets"  # of DistributedDataParallel


def _peak_breakdown(
    trace: Trace, peak: int, allocated: int, untraced: Mapping[str, int]
) -> tuple[dict[str, float], dict[str, float]]:
    """Return what is alive after event number ``peak``: MiB by kind, and of the activations MiB by module.

    Args:
        untraced: bytes by kind that are allocated before the first event.
    """
    alive: set[int] = set()
    for index, born in itertools.islice(trace.events_in_order(), peak + 1):
        (alive.add if born else alive.remove)(index)
    kinds: dict[str, float] = defaultdict(float)
    modules: dict[str, float] = defaultdict(float)
    for storage in (trace.storages[index] for index in alive):
        kinds[storage.kind] += storage.nbytes / MIB
        if storage.kind == "activations":
            modules[_model_stage(storage.module)] += storage.nbytes / MIB
    kinds.update({kind: nbytes / MIB for kind, nbytes in untraced.items() if nbytes})
    kinds["cuBLAS and rounding"] = allocated / MIB - sum(kinds.values())
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
    return forecaster_of(config, where).forecast(config.batch_size) if where.gpu else None


def estimate_step_time(config: RunConfig, where: Compute) -> StepEstimate:
    """Estimate the time of a config's step, from the same trace as its memory.

    Raises:
        ConfigError: as ``GpuForecaster`` does, or the peaks of the GPU are not known.
    """
    return forecaster_of(config, where).step(config.batch_size)


def forecaster_of(config: RunConfig, where: Compute) -> GpuForecaster:
    """Return a forecaster of a run that shares its trace with those of all runs with the same step.

    Raises:
        ConfigError: as ``GpuForecaster`` does.
    """
    forecaster = GpuForecaster(config, where)
    # All other knobs at their defaults, so that configs with the same trace share it.
    traced = {knob: getattr(config, knob) for knob in _TRACED_KNOBS - {"precision"}}
    vars(forecaster)["_trace"] = _shared_trace(RunConfig().with_overrides(traced), forecaster.precision == "fp32")
    return forecaster


@cache
def _shared_trace(config: RunConfig, is_fp32: bool) -> Trace:
    return trace_run(config, "fp32" if is_fp32 else "bf16")


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


_LIGHTER_DECODERS = ("fpn", "linknet")


def suggest_lighter_configs(forecaster: GpuForecaster, largest: int) -> Iterator[tuple[str, GpuForecast]]:
    """Yield the changes of a config that would take less GPU memory: the setting as text, and its forecast.

    Those that share the config's trace come first; each of the others takes a trace of its own.

    Args:
        forecaster: forecaster of the config.
        largest: largest batch that fits for sure, from ``GpuForecaster.largest_batch``.
    """
    current = forecaster.forecast(forecaster.config.batch_size)
    for setting, forecast in itertools.chain(_of_the_same_trace(forecaster, largest), _of_other_traces(forecaster)):
        if forecast.total_mib < current.total_mib:
            yield setting, forecast


def _of_the_same_trace(forecaster: GpuForecaster, largest: int) -> Iterator[tuple[str, GpuForecast]]:
    batch = forecaster.config.batch_size
    for parts, forecast in smallest_split(forecaster):
        yield f"micro_batches={parts}", forecast
    if 0 < largest < batch:
        yield f"batch_size={largest}", forecaster.forecast(largest)
    if not forecaster.settings.expandable_segments:
        expandable = forecaster.with_settings(replace(forecaster.settings, expandable_segments=True))
        yield f"{ALLOCATOR_VARIABLES[0]}=expandable_segments:True", expandable.forecast(batch)


def _of_other_traces(forecaster: GpuForecaster) -> Iterator[tuple[str, GpuForecast]]:
    config = forecaster.config
    changes: list[dict[str, object]] = []
    if forecaster.precision == "fp32":
        changes.append({"precision": "auto"})
    if not config.channels_last:
        changes.append({"channels_last": True})
    if not config.activation_checkpointing:
        changes.append({"activation_checkpointing": True})
    changes += [{"decoder": name} for name in _LIGHTER_DECODERS if name != config.decoder]
    for change in changes:
        other = GpuForecaster(config.with_overrides(change), forecaster.where, forecaster.terms, forecaster.settings)
        setting = " ".join(f"{key}={other.config.to_strings()[key]}" for key in change)
        with contextlib.suppress(ConfigError):  # the encoder does not support the change, or cannot be traced with it
            yield setting, other.forecast(config.batch_size)


def smallest_split(forecaster: GpuForecaster) -> Iterator[tuple[int, GpuForecast]]:
    """Yield the fewest micro-batches that fit for sure, nothing if none do; the optimiser takes the same steps."""
    batch, now = forecaster.config.batch_size, forecaster.config.micro_batches
    most = batch // (forecaster.config.least_batch // now or 1)  # micro-batches
    # Counts of micro-batches with the same largest one take the same memory: only the fewest of each size is tried.
    sizes = dict.fromkeys(math.ceil(batch / parts) for parts in range(max(2, now + 1), most + 1))
    for parts in (math.ceil(batch / size) for size in sizes):
        if (forecast := forecaster.in_parts(parts).forecast(batch)).fit() is MemoryFit.FITS:
            yield parts, forecast
            return
