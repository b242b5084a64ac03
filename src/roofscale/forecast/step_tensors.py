"""The host memory that the tensors of a training step on a CPU take at their peak, traced without computing them."""

import re
from functools import cache

from roofscale.config import RunConfig
from roofscale.forecast.trace import Trace, trace_training

_MIB = 2**20
# glibc maps a block this large on its own and gives it back as soon as it is freed (mallopt(3): M_MMAP_THRESHOLD, which
# moves up to DEFAULT_MMAP_THRESHOLD_MAX). Smaller ones lie on a heap, between gaps that no block fits into.
_LARGEST_ON_HEAP = 32 * _MIB
# Gaps as a share of what lies on the heap. U-Net on ResNet-34 at 512 px without workers, batch 1 to 16 in bf16 and 1 to
# 8 in fp32 (15 runs): the errors of "base + tensors + share x heap" are least at 0.23 and 0.35.
_GAPS = 0.25
# At the most: malloc's own counts (mallinfo2) at the peak of five runs at 512 px, with 845 to 1,548 MiB in use on the
# heap, were 124 to 295 MiB of gaps, no more with more in use.
_MOST_GAPS = 200 * _MIB
_THRESHOLD = re.compile(r"(?:MALLOC_MMAP_THRESHOLD_|glibc\.malloc\.mmap_threshold)=(\d+)")


@cache
def tensors_mib(config: RunConfig, precision: str, malloc: str, batch: int) -> float:
    """The most that a step's tensors take, gaps between them included.

    Args:
        config: encoder, decoder, image size and memory format; the rest should be at its defaults, so that the trace
            is shared.
        precision: fp32, bf16 or fp16, as it runs.
        malloc: settings of the allocator, as ``train.malloc`` has them.
        batch: samples a step.

    Raises:
        ConfigError: a model that cannot be built or traced.
    """
    return peak_mib(_trace(config, precision), batch, _largest_on_heap(malloc))


def peak_mib(trace: Trace, batch: int, largest_on_heap: float = _LARGEST_ON_HEAP) -> float:
    """The most that is alive at once, with the gaps on the heap."""
    sized = trace.at(batch)
    on_heap = most = 0.0
    for index, born, alive in sized.live_bytes():
        nbytes = sized.storages[index].nbytes
        if nbytes < largest_on_heap:
            on_heap += nbytes if born else -nbytes
        most = max(most, alive + min(_GAPS * on_heap, _MOST_GAPS))
    return most / _MIB


@cache
def _trace(config: RunConfig, precision: str) -> Trace:
    return trace_training(config, precision)


def _largest_on_heap(malloc: str) -> float:
    """Bytes; a threshold that is set stays where it is."""
    found = _THRESHOLD.search(malloc)
    return float(found[1]) if found else _LARGEST_ON_HEAP
