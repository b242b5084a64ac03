"""What this device computes and moves at best: one large matrix product, one large copy."""

import time
from collections.abc import Callable

import torch

from roofscale.forecast.roofline_model import GpuPeaks
from roofscale.train.device import Execution

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_SIDES = {"cuda": 8192, "cpu": 2048}  # of the matrices
_COPIED = {"cuda": 2**30, "cpu": 2**28}  # bytes, far beyond any cache
_TRIES, _REPEATS = 5, 5


def measured(where: Execution) -> GpuPeaks:
    """The peaks of this device in the precision of a run, each the best of some tries.

    The product's rate stands for every precision: a run is judged by its own. With fp32 on a GPU that is IEEE's, while
    convolutions have TF32 and may be faster than this peak.
    """
    kind, dtype = where.device.type, _DTYPES[where.precision]
    side, count = _SIDES[kind], _COPIED[kind]
    a, b = (torch.randn(side, side, device=where.device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(a)
    tera = 2 * side**3 / _best_seconds(where.device, lambda: torch.mm(a, b, out=product)) / 1e12
    source = torch.zeros(count, dtype=torch.uint8, device=where.device)
    target = torch.empty_like(source)
    giga = 2 * count / _best_seconds(where.device, lambda: target.copy_(source)) / 1e9  # read and written
    return GpuPeaks(fp32=tera, tf32=tera, fp16=tera, bf16=tera, memory=giga, source="measured here")


def _best_seconds(device: torch.device, work: Callable[[], object]) -> float:
    work()  # chooses its kernel, fills the allocator
    return min(_seconds(device, work) for _ in range(_TRIES)) / _REPEATS


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    """Of some calls; on a GPU by its own clock, between events in the queue that the kernels stand in."""
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(_REPEATS):
            work()
        return time.perf_counter() - start
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    for _ in range(_REPEATS):
        work()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / 1000
