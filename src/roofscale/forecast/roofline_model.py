"""Roofline estimate of the least time that a training step takes on a GPU, from its FLOPs and memory traffic.

Each traced operation takes as long as its arithmetic at the GPU's peak, or its memory traffic at the GPU's bandwidth,
whichever is longer (Williams, Waterman and Patterson 2009, Communications of the ACM 52:65). Costs beyond that
(launches, kernels that do not reach the peak) are left out, and so are savings by caches and fused kernels. It has not
been compared with a GPU here.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from roofscale.errors import ConfigError

if TYPE_CHECKING:
    from roofscale.forecast.op_cost import OpCost

# Published comparisons find a roofline 32 % off on average. ERROR is the standard deviation of a normal error of the
# logarithm with that mean: 0.32 x sqrt(pi / 2).
MEAN_ERROR = 0.32
ERROR = MEAN_ERROR * math.sqrt(math.pi / 2)
_PEAKS = Path(__file__).with_name("gpu_peaks.yaml")


@dataclass(frozen=True)
class GpuPeaks:
    """Peak arithmetic and memory bandwidth of a GPU; see ``gpu_peaks.yaml``."""

    fp32: float  # TFLOP/s
    tf32: float | None  # used for convolutions in fp32; None if the GPU does not support it
    fp16: float
    bf16: float | None  # None if the GPU does not support it
    memory: float  # GB/s
    source: str

    def flops_per_second(self, precision: str, *, convolution: bool) -> float:
        """Return the peak FLOP/s of an operation on tensors of a precision."""
        if precision == "fp32":  # PyTorch's default: TF32 in cuDNN's convolutions, not in cuBLAS's products
            return 1e12 * (self.tf32 if convolution and self.tf32 else self.fp32)
        peak = self.bf16 if precision == "bf16" else self.fp16
        assert peak is not None, "resolve_precision raises if the GPU does not support bf16"
        return 1e12 * peak


@dataclass(frozen=True)
class StepEstimate:
    """Estimated time and work of one training step."""

    seconds: float
    forward_seconds: float  # of the forward pass and the loss, part of ``seconds``
    flops: float
    nbytes: float  # read and written
    arithmetic_share: float  # share of the seconds in operations that arithmetic limits, not memory
    gpu: str
    precision: str
    samples: int

    def with_samples(self, samples: int) -> "StepEstimate":
        """Scale the estimate in proportion to the samples."""
        factor = samples / self.samples
        scaled = {name: factor * getattr(self, name) for name in ("seconds", "forward_seconds", "flops", "nbytes")}
        return replace(self, samples=samples, **scaled)


def estimate_step(
    work: Iterable["OpCost"], gpu: str, precision: str, samples: int, peaks: GpuPeaks | None = None
) -> StepEstimate:
    """Sum up the operations of one step.

    Args:
        work: operations of the step, see ``op_cost``.
        gpu: GPU model of ``gpu_peaks.yaml``.
        precision: fp32, bf16 or fp16, as resolved for the GPU.
        samples: samples of the step.
        peaks: measured peaks of the GPU; None takes those of ``gpu_peaks.yaml``.

    Raises:
        ConfigError: ``gpu_peaks.yaml`` has no entry for the GPU.
    """
    peaks = peaks or peaks_of(gpu)
    seconds = forward = arithmetic = flops = nbytes = 0.0
    for op in work:
        peak = peaks.flops_per_second("fp32" if op.is_fp32 else precision, convolution=op.is_convolution)
        computing = op.flops / peak
        longer = max(computing, op.nbytes / (1e9 * peaks.memory))
        seconds += longer
        forward += longer if op.forward else 0.0
        arithmetic += longer if computing == longer else 0.0
        flops, nbytes = flops + op.flops, nbytes + op.nbytes
    return StepEstimate(seconds, forward, flops, nbytes, arithmetic / seconds, gpu, precision, samples)


def peaks_of(gpu: str) -> GpuPeaks:
    """Return the peaks of a GPU model.

    Raises:
        ConfigError: ``gpu_peaks.yaml`` has no entry for it.
    """
    known = _read(_PEAKS)
    if gpu not in known:
        raise ConfigError(
            f"{gpu}: its peaks are not known, so its step's time cannot be estimated; known are {', '.join(known)}. "
            "Add its data sheet's figures to forecast/gpu_peaks.yaml."
        )
    return known[gpu]


def gpu_from_driver_name(device: str) -> str:
    """Return the GPU model of ``gpu_peaks.yaml`` in a driver's device name, such as V100 for "Tesla V100-SXM2-16GB".

    The device name itself if no model matches.
    """
    words = re.split(r"[^A-Za-z0-9]+", device)
    return next((model for model in _read(_PEAKS) if model in words), device)


@cache
def _read(file: Path) -> dict[str, GpuPeaks]:
    return {name: GpuPeaks(**entry) for name, entry in yaml.safe_load(file.read_text(encoding="utf-8")).items()}
