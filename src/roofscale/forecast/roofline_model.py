"""Estimate of the time of a training step on a GPU, from its FLOPs, memory traffic and number of operations.

Each traced operation is limited by its arithmetic at the GPU's peak or by its memory traffic at the GPU's bandwidth
(roofline: Williams, Waterman and Patterson 2009, Communications of the ACM 52:65). The sums of both kinds and the
number of operations, each of which is launched, have one coefficient each by device family, calibrated on published
steps (``gpu_time.yaml``).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from roofscale.errors import ConfigError

if TYPE_CHECKING:
    from roofscale.forecast.op_cost import OpCost

_PEAKS, _TIMES = (Path(__file__).with_name(f"gpu_{name}.yaml") for name in ("peaks", "time"))


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
    deviation: float  # standard deviation of the logarithm of the seconds
    evidence: str  # measurements that the estimate stands on


@dataclass(frozen=True)
class Calibration:
    """Coefficients of a device family; ``gpu_time.yaml`` explains them."""

    arithmetic: float  # seconds for each second at the GPU's peak FLOP/s
    grouped: float  # the same of convolutions in groups
    memory: float  # seconds for each second at its bandwidth
    launch: float  # seconds an operation
    deviation: float  # standard deviation of the logarithm of measured / estimated seconds
    evidence: str


def estimate_step(
    work: Iterable["OpCost"], gpu: str, precision: str, samples: int, peaks: GpuPeaks | None = None
) -> StepEstimate:
    """Sum up the operations of one step; ``peaks`` are those measured on the GPU, None takes its data sheet's.

    Raises:
        ConfigError: ``gpu_peaks.yaml`` has no entry for the GPU.
    """
    peaks, fitted = peaks or peaks_of(gpu), calibration_of(gpu)
    seconds = forward = arithmetic = flops = nbytes = 0.0
    for op in work:
        computing, moving = roofline_seconds(op, precision, peaks)
        is_arithmetic = computing >= moving
        slower = fitted.grouped if op.is_grouped else fitted.arithmetic
        taken = fitted.launch + (slower * computing if is_arithmetic else fitted.memory * moving)
        seconds += taken
        forward += taken if op.forward else 0.0
        arithmetic += taken if is_arithmetic else 0.0
        flops, nbytes = flops + op.flops, nbytes + op.nbytes
    share = arithmetic / seconds
    return StepEstimate(
        seconds, forward, flops, nbytes, share, gpu, precision, samples, fitted.deviation, fitted.evidence
    )


def roofline_seconds(op: "OpCost", precision: str, peaks: GpuPeaks) -> tuple[float, float]:
    """Return the least seconds of an operation's arithmetic and of its memory traffic."""
    peak = peaks.flops_per_second("fp32" if op.is_fp32 else precision, convolution=op.is_convolution)
    return op.flops / peak, op.nbytes / (1e9 * peaks.memory)


@cache
def calibration_of(gpu: str) -> Calibration:
    """Return the calibration of a GPU's family, or that of the others."""
    families = yaml.safe_load(_TIMES.read_text(encoding="utf-8"))
    entry = next((entry for entry in families.values() if gpu in entry["gpus"]), families["others"])
    return Calibration(**{name: value for name, value in entry.items() if name != "gpus"})


def peaks_of(gpu: str) -> GpuPeaks:
    """Return the peaks of a GPU model.

    Raises:
        ConfigError: ``gpu_peaks.yaml`` has no entry for it.
    """
    known = known_peaks()
    if gpu not in known:
        raise ConfigError(
            f"{gpu}: its peaks are not known, so its step's time cannot be estimated; known are {', '.join(known)}. "
            "Add its data sheet's figures to forecast/gpu_peaks.yaml."
        )
    return known[gpu]


@cache
def known_peaks() -> dict[str, GpuPeaks]:
    """Return the peaks of every GPU model in ``gpu_peaks.yaml``."""
    return {name: GpuPeaks(**entry) for name, entry in yaml.safe_load(_PEAKS.read_text(encoding="utf-8")).items()}
