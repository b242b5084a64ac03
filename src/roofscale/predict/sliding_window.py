"""Sliding-window inference on an image of any size, from top to bottom, in the memory of one row of windows.

Predictions are worse near a window's edge, where context is missing. So the outer quarter of an overlap is taken from
the neighbour, and over the middle half one window fades linearly into the other. For a model whose receptive field is
one pixel the result equals that on the whole image bit for bit; for others it is the same if a pixel depends on none
further away than a quarter of the overlap.

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

MULTIPLE = 32  # px; encoders halve an image five times, so a window is aligned with their grid at multiples of 32

Probabilities = npt.NDArray[np.float32]
ReadRows = Callable[[int, int], Pixels]  # from the first row to before the last, (H,W,3) uint8
Segment = Callable[[Pixels], Probabilities]  # (N,H,W,3) to (N,K,H,W)


@dataclass(frozen=True)
class Tiling:
    """The division of an image into square windows, in pixels of the image.

    Every window starts at a multiple of ``cell``, so that it is aligned with the model's stride grid on the whole
    image: elsewhere the model would see a pixel at another phase of that grid.
    """

    window: int  # side; a multiple of cell
    overlap: int  # smallest overlap of neighbours; a multiple of cell, at most half a window
    cell: int = MULTIPLE  # image pixels that the model sees as 32

    @classmethod
    def of(cls, window: int, overlap: int, scale: float = 1.0) -> "Tiling":
        """Build a tiling from sizes in pixels of the model's input.

        Args:
            window: side of the model's input, px.
            overlap: smallest overlap of neighbours, px of the model's input.
            scale: factor by which the image is enlarged for the model; rounded so that 32 px of the input are a whole
                number of image pixels, see ``scale``.

        Raises:
            ConfigError: a size that the model cannot take, an overlap of more than half a window, or a scale out of
                range.
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
        """The factor by which the image is enlarged for the model."""
        return MULTIPLE / self.cell

    def padded(self, length: int) -> int:
        """Return the side of the padded image, px: at least ``length``, and covered by complete windows."""
        return max(self.window, math.ceil(length / self.cell) * self.cell)

    def starts(self, length: int) -> list[int]:
        """Return the windows' starts along a side of the image, px: as few as possible, evenly spread."""
        spare = (self.padded(length) - self.window) // self.cell
        strides = math.ceil(spare / ((self.window - self.overlap) // self.cell))
        return [spare * i // strides * self.cell for i in range(strides + 1)] if strides else [0]

    def count(self, height: int, width: int) -> int:
        """Return the number of windows of an image."""
        return len(self.starts(height)) * len(self.starts(width))


class RowBlock(NamedTuple):
    """The result for a block of rows, over the image's whole width."""

    first: int  # its first row in the image
    probability_KHW: Probabilities


def default_overlap(window: int) -> int:
    """Return a quarter of a window, rounded up to a multiple of 32 px; 0 if that is more than half of it."""
    quarter = math.ceil(window / 4 / MULTIPLE) * MULTIPLE
    return quarter if quarter <= window / 2 else 0


def _rounded(window: int) -> int:
    return max(MULTIPLE, round(window / MULTIPLE) * MULTIPLE)


def sliding_window_inference(
    read: ReadRows, height: int, width: int, tiling: Tiling, segment: Segment, batch: int = 1
) -> Iterator[RowBlock]:
    """Segment an image and yield the result from top to bottom; each row of the image is read once, in order.

    The image is mirrored at the right and the lower edge to fill the last windows.

    Args:
        read: reads rows of the image; no more than one window's height of them is in memory.
        height: of the image, px.
        width: of the image, px.
        tiling: the windows.
        segment: the model.
        batch: number of windows in one call of ``segment``.
    """
    tops, lefts = tiling.starts(height), tiling.starts(width)
    held_HWC = np.empty((0, width, 3), np.uint8)  # image rows from the window's top on that are read already
    above_KHW: Probabilities | None = None  # the result of the windows above for these rows
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
    """Segment one row of windows and blend them; return (K,H,W)."""
    strip_KHW: Probabilities | None = None
    reached = 0
    for left, window_KHW in _segment_windows(image_HWC, lefts, window, segment, batch):
        if strip_KHW is None:
            strip_KHW = np.empty((*window_KHW.shape[:2], image_HWC.shape[1]), np.float32)
        _fade(strip_KHW[:, :, left:reached], window_KHW[:, :, : reached - left], axis=2)
        reached = left + window
        strip_KHW[:, :, left:reached] = window_KHW
    assert strip_KHW is not None, "an image has at least one window"
    return strip_KHW


def _segment_windows(
    image_HWC: Pixels, lefts: list[int], window: int, segment: Segment, batch: int
) -> Iterator[tuple[int, Probabilities]]:
    for start in range(0, len(lefts), batch):
        group = lefts[start : start + batch]
        probability_NKHW = segment(np.stack([image_HWC[:, left : left + window] for left in group]))
        yield from zip(group, probability_NKHW, strict=True)


def _fade(old_KHW: Probabilities, new_KHW: Probabilities, axis: int) -> None:
    """Blend old into new along an axis, in place in ``new_KHW``; where both agree nothing changes, to the last bit."""
    old, new = np.moveaxis(old_KHW, axis, -1), np.moveaxis(new_KHW, axis, -1)  # views
    length = old.shape[-1]
    quarter = length // 4
    middle = slice(quarter, length - quarter)
    share = ((np.arange(length - 2 * quarter) + 0.5) / max(1, length - 2 * quarter)).astype(np.float32)
    new[..., :quarter] = old[..., :quarter]
    new[..., middle] = old[..., middle] + share * (new[..., middle] - old[..., middle])
