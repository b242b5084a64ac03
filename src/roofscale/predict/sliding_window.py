"""Segments an image of any size by overlapping windows, from top to bottom, in memory for one row of windows.

A window knows nothing of what lies beyond its edge. So the outer quarter of an overlap is left to the neighbour, and
over the middle half one window fades linearly into the other. The result is, bit for bit, that of a model that looks at
one px at a time; and it is what the whole image at once would give, where all that a px depends on lies within a
quarter of the overlap on either side.

Shape suffixes: N windows, K channels, C = 3 colours (RGB), H height, W width.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from roofscale.data.sample import Pixels
from roofscale.errors import ConfigError

MULTIPLE = 32  # px; the encoders halve an image five times, so that a window's place is one of their grid's only by 32

Probabilities = npt.NDArray[np.float32]
ReadRows = Callable[[int, int], Pixels]  # rows from the first to before the last, as (H,W,3)
Segment = Callable[[Pixels], Probabilities]  # (N,H,W,3) to (N,K,H,W)


@dataclass(frozen=True)
class Tiling:
    """How an image is cut into square windows, in px of the image.

    Every window begins at a multiple of ``cell``, where the model's grid of strides begins anew: elsewhere a px would
    be seen by another phase of that grid than in the whole image.
    """

    window: int  # side; a multiple of cell
    overlap: int  # least overlap of neighbours; a multiple of cell, at most half a window
    cell: int = MULTIPLE

    @classmethod
    def of(cls, window: int, overlap: int, scale: float = 1.0) -> "Tiling":
        """Windows of so many px for the model, which sees the image enlarged by ``scale``.

        The scale is rounded to one at which 32 px for the model are whole px of the image, see ``scale``.

        Raises:
            ConfigError: a size that the model cannot take, or windows that overlap by more than half.
        """
        if window < MULTIPLE or window % MULTIPLE:
            raise ConfigError(f"window={window}: expected a multiple of {MULTIPLE} px; try {_rounded(window)}.")
        if overlap % MULTIPLE or not 0 <= overlap <= window / 2:
            raise ConfigError(
                f"overlap={overlap}: expected a multiple of {MULTIPLE} px, at most half of window={window}; "
                f"try {default_overlap(window)}."
            )
        if not 1 / 16 <= scale <= 16:
            raise ConfigError(f"scale={scale:g}: expected a factor between 0.0625 and 16; 1 leaves the image as it is.")
        cell = round(MULTIPLE / scale)
        return cls(window // MULTIPLE * cell, overlap // MULTIPLE * cell, cell)

    @property
    def scale(self) -> float:
        """By how much the model sees the image enlarged."""
        return MULTIPLE / self.cell

    def padded(self, length: int) -> int:
        """The side of an image that whole windows cover, at least ``length``."""
        return max(self.window, math.ceil(length / self.cell) * self.cell)

    def starts(self, length: int) -> list[int]:
        """Where windows begin along a side of the image: as few as will do, and evenly spread."""
        spare = (self.padded(length) - self.window) // self.cell
        strides = math.ceil(spare / ((self.window - self.overlap) // self.cell))
        return [spare * i // strides * self.cell for i in range(strides + 1)] if strides else [0]

    def count(self, height: int, width: int) -> int:
        """How many windows an image takes."""
        return len(self.starts(height)) * len(self.starts(width))


class RowBlock(NamedTuple):
    """A part of the result, over the image's whole width."""

    first: int  # row of the image
    probability_KHW: Probabilities


def default_overlap(window: int) -> int:
    """A quarter of a window, as a multiple of 32 px, where that is no more than half of it."""
    quarter = math.ceil(window / 4 / MULTIPLE) * MULTIPLE
    return quarter if quarter <= window / 2 else 0


def _rounded(window: int) -> int:
    return max(MULTIPLE, round(window / MULTIPLE) * MULTIPLE)


def sliding_window_inference(
    read: ReadRows, height: int, width: int, tiling: Tiling, segment: Segment, batch: int = 1
) -> Iterator[RowBlock]:
    """Segment an image, and yield the result from top to bottom; each row of the image is read once, in order.

    Where windows hang over the right or the lower edge the image is mirrored.

    Args:
        read: gives rows of the image, which is all that is ever held of it.
        height: of the image, px.
        width: of the image, px.
        tiling: the windows.
        segment: the model.
        batch: how many windows it is given at once.
    """
    tops, lefts = tiling.starts(height), tiling.starts(width)
    held_HWC = np.empty((0, width, 3), np.uint8)  # rows from the window's top on
    above_KHW: Probabilities | None = None  # what the row of windows above says of them
    for top, following in pairwise([*tops, tiling.padded(height)]):
        new_HWC = read(top + len(held_HWC), min(top + tiling.window, height))
        held_HWC = np.concatenate([held_HWC, new_HWC])
        missing = (0, tiling.window - len(held_HWC)), (0, tiling.padded(width) - width), (0, 0)
        strip_KHW = _segment_strip(np.pad(held_HWC, missing, "symmetric"), lefts, tiling.window, segment, batch)
        if above_KHW is not None:
            _fade(above_KHW, strip_KHW[:, : above_KHW.shape[1]], axis=1)
        yield RowBlock(top, strip_KHW[:, : min(following, height) - top, :width])
        held_HWC, above_KHW = held_HWC[following - top :], strip_KHW[:, following - top :]


def _segment_strip(image_HWC: Pixels, lefts: list[int], window: int, segment: Segment, batch: int) -> Probabilities:
    """Segment one row of windows, as (K,H,W)."""
    strip_KHW: Probabilities | None = None
    reached = 0
    for left, one_KHW in _segment_windows(image_HWC, lefts, window, segment, batch):
        if strip_KHW is None:
            strip_KHW = np.empty((*one_KHW.shape[:2], image_HWC.shape[1]), np.float32)
        _fade(strip_KHW[:, :, left:reached], one_KHW[:, :, : reached - left], axis=2)
        reached = left + window
        strip_KHW[:, :, left:reached] = one_KHW
    assert strip_KHW is not None, "an image has at least one window"
    return strip_KHW


def _segment_windows(
    image_HWC: Pixels, lefts: list[int], window: int, segment: Segment, batch: int
) -> Iterator[tuple[int, Probabilities]]:
    for start in range(0, len(lefts), batch):
        group = lefts[start : start + batch]
        found_NKHW = segment(np.stack([image_HWC[:, left : left + window] for left in group]))
        yield from zip(group, found_NKHW, strict=True)


def _fade(old_KHW: Probabilities, new_KHW: Probabilities, axis: int) -> None:
    """Along an axis, let the old go over into the new, which is written to: where they agree nothing changes."""
    old, new = np.moveaxis(old_KHW, axis, -1), np.moveaxis(new_KHW, axis, -1)  # views
    length = old.shape[-1]
    quarter = length // 4
    middle = slice(quarter, length - quarter)
    share = ((np.arange(length - 2 * quarter) + 0.5) / max(1, length - 2 * quarter)).astype(np.float32)
    new[..., :quarter] = old[..., :quarter]
    new[..., middle] = old[..., middle] + share * (new[..., middle] - old[..., middle])
