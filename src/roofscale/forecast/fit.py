"""Whether what is foreseen fits: one word for host memory and for GPU memory."""

import enum

MAX_SHARE = 0.80  # of the memory that a run may take: what the mission watches, as the criterion memory_margin has it


class Fit(enum.StrEnum):
    """Whether a run stays under MAX_SHARE of the memory."""

    FITS = "fits"  # the whole interval does
    TOO_LARGE = "too large"  # none of it does
    UNCERTAIN = "cannot be told"


def fit_of(low: float, high: float, memory: float) -> Fit:
    """Where the interval of a peak lies to MAX_SHARE of a memory of the same unit."""
    if high <= MAX_SHARE * memory:
        return Fit.FITS
    return Fit.TOO_LARGE if low > MAX_SHARE * memory else Fit.UNCERTAIN
