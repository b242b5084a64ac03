"""The next batch is copied to the GPU while this one is computed on; on a CPU there is nothing to copy.

It has not run on a GPU yet: what it gains is unmeasured.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch

from roofscale.data.sample import Batch

# Batches that lie on the GPU at once: this one, the next, and the one before, which the loop lets go of last.
BATCHES_ON_GPU = 3


class PositionedLoader(Protocol):
    """Batches, and where in their order the last one stood: a ``BatchLoader``."""

    position: int

    def __iter__(self) -> Iterator[Batch]: ...


class PrefetchedBatch(NamedTuple):
    """A batch that is ready to be computed on."""

    batch: Batch  # on the device
    host: Batch  # the same as it was loaded
    position: int  # of the loader after it, and not after the one that is copied meanwhile


class CudaPrefetcher:
    """Copies to the GPU on a stream of its own, from pinned memory, so that the kernels of a step run beside it.

    One serves a whole run: the allocator keeps each stream's memory for itself.

    Args:
        move: copies a batch to the device, on the stream that is current when it is called.
    """

    def __init__(self, move: Callable[[Batch], Batch]) -> None:
        self._move = move
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def begin(self, batch: Batch) -> Batch:
        """Begin to copy."""
        with torch.cuda.stream(self._stream):
            return self._move(batch)

    def finish(self, batch: Batch) -> None:
        """Let what follows on the current stream wait for the copies begun so far, and say that it will use them."""
        now = torch.cuda.current_stream()
        now.wait_stream(self._stream)
        for tensor in batch[:-1]:
            tensor.record_stream(now)


def prefetch(loader: PositionedLoader, side: CudaPrefetcher | None) -> Iterator[PrefetchedBatch]:
    """Each batch of a loader on the device; with a side stream the next one is copied while its user works."""
    if side is None:
        for batch in loader:
            yield PrefetchedBatch(batch, batch, loader.position)
        return
    ready: PrefetchedBatch | None = None
    for batch in loader:
        waited, position = ready, loader.position
        if waited is not None:
            side.finish(waited.batch)  # before the next copy begins, which is not to be waited for
        ready = PrefetchedBatch(side.begin(batch), batch, position)
        if waited is not None:
            yield waited
    if ready is not None:
        side.finish(ready.batch)
        yield ready
