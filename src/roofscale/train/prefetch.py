"""Prefetching to the GPU: the next batch is copied while the current one is computed; on a CPU nothing is copied.

Not run on a GPU yet: its gain is unmeasured.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch

from roofscale.data.sample import Batch

# Batches in GPU memory at once: the current, the next, and the previous one, which the loop's variable still holds.
BATCHES_ON_GPU = 3


class PositionedLoader(Protocol):
    """The part of ``BatchLoader`` that prefetching needs: batches, and the index after the last one."""

    position: int

    def __iter__(self) -> Iterator[Batch]: ...


class PrefetchedBatch(NamedTuple):
    """A batch on the device, ready to be computed."""

    batch: Batch  # on the device
    host: Batch  # the same batch in host memory, as it was loaded
    position: int  # of the loader after this batch; the loader itself is already one further


class CudaPrefetcher:
    """A CUDA stream for copies from pinned memory, so that they overlap with the kernels of a step.

    One prefetcher serves a whole run, because the CUDA allocator caches memory per stream.

    Args:
        move: copies a batch to the device, on the current stream.
    """

    def __init__(self, move: Callable[[Batch], Batch]) -> None:
        self._move = move
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def begin(self, batch: Batch) -> Batch:
        """Start copying a batch and return its tensors on the device, which must not be used before ``finish``."""
        with torch.cuda.stream(self._stream):
            return self._move(batch)

    def finish(self, batch: Batch) -> None:
        """Make the current stream wait for the copies started so far; keep their memory until it has used it."""
        current = torch.cuda.current_stream()
        current.wait_stream(self._stream)
        for tensor in batch[:-1]:
            tensor.record_stream(current)


def prefetch(loader: PositionedLoader, prefetcher: CudaPrefetcher | None) -> Iterator[PrefetchedBatch]:
    """Yield each batch of a loader; with a prefetcher, copied to the device while the previous one is computed."""
    if prefetcher is None:
        for batch in loader:
            yield PrefetchedBatch(batch, batch, loader.position)
        return
    ready: PrefetchedBatch | None = None
    for batch in loader:
        current, position = ready, loader.position
        if current is not None:
            # Before the next copy starts, so that the stream does not wait for that too.
            prefetcher.finish(current.batch)
        ready = PrefetchedBatch(prefetcher.begin(batch), batch, position)
        if current is not None:
            yield current
    if ready is not None:
        prefetcher.finish(ready.batch)
        yield ready
