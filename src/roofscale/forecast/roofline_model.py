"""How long a training step takes on a GPU at the least, from what it computes and moves: a roofline estimate.

Each traced operation takes as long as its arithmetic at the GPU's peak, or its memory traffic at the GPU's bandwidth,
whichever is longer (Williams, Waterman and Patterson 2009, Communications of the ACM 52:65). What operations cost
beyond that, launches, a kernel that does not reach the peak, is not in it, nor what a cache or a fused kernel saves.
It was compared with no GPU here.
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

# Others find a roofline 32 % off on average, and it was not compared with a GPU here. The standard deviation of a
# normal error with that mean, of the logarithm: 0.32 x sqrt(pi / 2).
MEAN_ERROR = 0.32
ERROR = MEAN_ERROR * math.sqrt(math.pi / 2)
_PEAKS = Path(__file__).with_name("gpu_peaks.yaml")


@dataclass(frozen=True)
class GpuPeaks:
    """What a GPU can do at best; see ``gpu_peaks.yaml``."""

    fp32: float  # TFLOP/s
    tf32: float | None  # of convolutions in fp32, where the GPU has it and PyTorch so uses it
    fp16: float
    bf16: float | None  # None: the GPU has none
    memory: float  # GB/s
    source: str

    def flops_per_second(self, precision: str, *, convolution: bool) -> float:
        """Peak of an operation on tensors of a precision."""
        if precision == "fp32":  # PyTorch's default: TF32 in cuDNN's convolutions, not in cuBLAS's products
            return 1e12 * (self.tf32 if convolution and self.tf32 else self.fp32)
        found = self.bf16 if precision == "bf16" else self.fp16
        assert found is not None, "resolve_precision asks for what a GPU has"
        return 1e12 * found


@dataclass(frozen=True)
class StepEstimate:
    """What one training step would take."""

    seconds: float
    forward_seconds: float  # of these, the forward pass and the loss
    flops: float
    nbytes: float  # read and written
    arithmetic_share: float  # of the seconds that arithmetic takes, and not memory
    gpu: str
    precision: str
    samples: int

    def with_samples(self, samples: int) -> "StepEstimate":
        """The same work done for more samples or for fewer."""
        times = samples / self.samples
        grown = {name: times * getattr(self, name) for name in ("seconds", "forward_seconds", "flops", "nbytes")}
        return replace(self, samples=samples, **grown)


def estimate_step(
    work: Iterable["OpCost"], gpu: str, precision: str, samples: int, peaks: GpuPeaks | None = None
) -> StepEstimate:
    """Sum up the operations of one step.

    Args:
        work: its operations, see ``work``.
        gpu: a model of ``gpu_peaks.yaml``.
        precision: of the run, as resolved for the GPU.
        samples: that the step takes.
        peaks: of the GPU, where somebody has measured them; else those of ``gpu_peaks.yaml``.

    Raises:
        ConfigError: a GPU whose peaks are not known.
    """
    peaks = peaks or peaks_of(gpu)
    seconds = forward = arithmetic = flops = nbytes = 0.0
    for one in work:
        computing = one.flops / peaks.flops_per_second(
            "fp32" if one.is_fp32 else precision, convolution=one.is_convolution
        )
        longer = max(computing, one.nbytes / (1e9 * peaks.memory))
        seconds += longer
        forward += longer if one.forward else 0.0
        arithmetic += longer if computing == longer else 0.0
        flops, nbytes = flops + one.flops, nbytes + one.nbytes
    return StepEstimate(seconds, forward, flops, nbytes, arithmetic / seconds, gpu, precision, samples)


def peaks_of(gpu: str) -> GpuPeaks:
    """The peaks of a GPU model.

    Raises:
        ConfigError: it has no entry.
    """
    known = _read(_PEAKS)
    if gpu not in known:
        raise ConfigError(
            f"{gpu}: its peaks are not known, so its step's time cannot be estimated; known are {', '.join(known)}. "
            "Add its data sheet's figures to forecast/gpu_peaks.yaml."
        )
    return known[gpu]


def gpu_from_driver_name(device: str) -> str:
    """The model in ``gpu_peaks.yaml`` that a driver's name for a device stands for ("Tesla V100-SXM2-16GB": V100); that
    name itself where there is none."""
    words = re.split(r"[^A-Za-z0-9]+", device)
    return next((model for model in _read(_PEAKS) if model in words), device)


@cache
def _read(file: Path) -> dict[str, GpuPeaks]:
    return {name: GpuPeaks(**entry) for name, entry in yaml.safe_load(file.read_text(encoding="utf-8")).items()}
