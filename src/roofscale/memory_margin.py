"""The memory margin: the share of a memory that a run may take, and whether a forecast peak stays within it.

A step of a phase file sets it by the limit ``max_share`` of its criterion ``memory_margin``. MEMORY_MARGIN holds where
it sets none, and outside a phase.
"""

import enum

# Our own choice, from no literature: a fifth is kept free for what the samples of a peak (``monitoring.sampler``) miss.
MEMORY_MARGIN = 0.80


class MemoryFit(enum.StrEnum):
    """Whether a run stays within its memory margin, by the interval of its forecast peak."""

    FITS = "fits"  # the whole interval lies within it
    TOO_LARGE = "too large"  # the whole interval lies beyond it
    UNCERTAIN = "cannot be told"


def memory_fit(low: float, high: float, memory: float, max_share: float = MEMORY_MARGIN) -> MemoryFit:
    """Compare the interval of a peak with ``max_share`` of a memory, all in the same unit."""
    if high <= max_share * memory:
        return MemoryFit.FITS
    return MemoryFit.TOO_LARGE if low > max_share * memory else MemoryFit.UNCERTAIN
