"""Peak host memory of the tensors of a training step on a CPU, traced without computing them."""

import math
import re
from dataclasses import replace
from functools import cache

from roofscale.config import RunConfig
from roofscale.forecast.trace import Trace, trace_run
from roofscale.forecast.workspace import WORKSPACE

_MIB = 2**20
# Bytes from which glibc maps a block by itself and unmaps it once it is freed (mallopt(3): M_MMAP_THRESHOLD, which
# rises up to DEFAULT_MMAP_THRESHOLD_MAX). Smaller blocks lie on a heap, with gaps between them that no block fits into.
_LARGEST_ON_HEAP = 32 * _MIB
# Gaps as a share of the bytes on the heap. U-Net on ResNet-34 at 512 px without workers, batch 1 to 16 in bf16 and 1 to
# 8 in fp32 (15 runs): the errors of "base + tensors + share x heap" are least at 0.23 and 0.35.
_GAPS = 0.25
# Most bytes of gaps if larger blocks are mapped: malloc's counts (mallinfo2) at the peak of five runs at 512 px were
# 845 to 1,548 MiB in use on the heap, and 124 to 295 MiB of gaps, no more with more in use. If large blocks are on the
# heap too, its gaps grow with it: 330 MiB at batch 4, 820 at batch 12 (ResNet-34 in bf16: peak less tensors and base).
_MOST_GAPS = 200 * _MIB
_THRESHOLD = re.compile(r"(?:MALLOC_MMAP_THRESHOLD_|glibc\.malloc\.mmap_threshold)=(\d+)")
_NOTHING_MAPPED = re.compile(r"(?:MALLOC_MMAP_MAX_|glibc\.malloc\.mmap_max)=0\b")


@cache
def tensors_mib(config: RunConfig, precision: str, malloc: str, batch: int) -> float:
    """Return the peak MiB of a step's tensors, heap gaps included, with ``batch`` samples in each micro-batch.

    Configs whose knobs beyond the tensors' have their defaults share a trace. ``malloc`` is that of ``train.malloc``.

    Raises:
        ConfigError: the model cannot be built or traced.
    """
    return peak_mib(_trace(config, precision), batch, _largest_on_heap(malloc))


def peak_mib(trace: Trace, batch: int, largest_on_heap: float = _LARGEST_ON_HEAP) -> float:
    """Return the most MiB alive at once in a trace, with the gaps on the heap."""
    sized = trace.at(batch)
    most_gaps = _MOST_GAPS if largest_on_heap <= _LARGEST_ON_HEAP else math.inf
    on_heap = peak = 0.0  # bytes
    for index, allocated, alive in sized.live_bytes():
        nbytes = sized.storages[index].nbytes
        if nbytes < largest_on_heap:
            on_heap += nbytes if allocated else -nbytes
        peak = max(peak, alive + min(_GAPS * on_heap, most_gaps))
    return peak / _MIB


@cache
def _trace(config: RunConfig, precision: str) -> Trace:
    trace = trace_run(config, precision)
    on_host = [replace(s, nbytes=0.0, per_sample=0.0, least=0.0) if s.kind == WORKSPACE else s for s in trace.storages]
    return replace(trace, storages=tuple(on_host)).first_two_steps(in_parts=config.micro_batches > 1)


def _largest_on_heap(malloc: str) -> float:
    """Return the threshold in bytes; glibc does not raise one that the user has set."""
    if _NOTHING_MAPPED.search(malloc):
        return math.inf
    match = _THRESHOLD.search(malloc)
    return float(match[1]) if match else _LARGEST_ON_HEAP
