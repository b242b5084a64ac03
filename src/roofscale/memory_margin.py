"""The memory margin: the share of a memory that a run may use, and the comparison of a forecast peak with it.

A step of a phase file sets it by the limit ``max_share`` of its criterion ``memory_margin``. MEMORY_MARGIN is the
default of such a step, and the margin outside phases.
"""

import enum

# Our own choice, not from literature: a fifth stays free for peaks between two samples of ``monitoring.sampler``.
MEMORY_MARGIN = 0.80


class MemoryFit(enum.StrEnum):
    """The comparison of a forecast peak's interval with the memory margin."""

    FITS = "fits"  # the whole interval lies within it
    TOO_LARGE = "too large"  # the whole interval lies beyond it
    UNCERTAIN = "cannot be told"  # the margin lies inside the interval


def memory_fit(low: float, high: float, memory: float, max_share: float = MEMORY_MARGIN) -> MemoryFit:
    """Compare the interval of a peak with the share ``max_share`` of a memory; all three in the same unit."""
    if high <= max_share * memory:
        return MemoryFit.FITS
    return MemoryFit.TOO_LARGE if low > max_share * memory else MemoryFit.UNCERTAIN
