"""The scene: plain data that ``layout`` makes and ``render`` draws."""

import dataclasses
import functools
import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from roofscale.data.synthetic.roofs import Colour, Points, Roof

_CROWN_REACH = 1.4  # of the ragged edge of a crown, in radii


@dataclass(frozen=True)
class Patch:
    """A polygon of ground in one colour."""

    polygon: Points
    colour: Colour
    roughness: float  # 0 smooth as asphalt, 1 rough as a meadow


@dataclass(frozen=True)
class Tree:
    """A crown seen from above."""

    x: float
    y: float
    radius: float  # px
    colour: Colour


@dataclass(frozen=True)
class Scene:
    """All objects to draw, with coordinates in px of the whole image, in the order of drawing."""

    side: int
    seed: int
    metres_per_px: float
    sun: float  # azimuth of the sun, radians clockwise from north
    shadow_px: float  # length of the shadow of an object 1 px high
    ground: Colour
    tint: Colour  # factors of red, green and blue
    patches: list[Patch] = field(default_factory=list)
    roofs: list[Roof] = field(default_factory=list)
    trees: list[Tree] = field(default_factory=list)

    @property
    def fall(self) -> Points:
        """Offset (x, y) in px of the end of the shadow of an object 1 px high."""
        return np.array((-math.sin(self.sun), math.cos(self.sun))) * self.shadow_px

    def clipped(self, left: int, top: int, width: int, height: int) -> "Scene":
        """Return the scene without the objects that, with their shadows, lie outside of a window (px)."""
        low, high = np.array((left, top)), np.array((left + width, top + height))
        visible = [(boxes[:, 2:] >= low).all(1) & (boxes[:, :2] <= high).all(1) for boxes in self._boxes]
        patches, roofs, trees = (np.flatnonzero(mask) for mask in visible)
        return dataclasses.replace(
            self,
            patches=[self.patches[i] for i in patches],
            roofs=[self.roofs[i] for i in roofs],
            trees=[self.trees[i] for i in trees],
        )

    @functools.cached_property
    def _boxes(self) -> tuple[npt.NDArray[np.float64], ...]:
        """Bounding boxes of patches, roofs and trees with their shadows: (n, 4) of left, top, right, bottom."""
        patches = [np.concatenate([p.polygon.min(0), p.polygon.max(0)]) for p in self.patches]
        roofs = [_with_shadow(r.outline.min(0), r.outline.max(0), self.fall * r.height) for r in self.roofs]
        trees = [
            _with_shadow(
                np.array((t.x, t.y)) - _CROWN_REACH * t.radius,
                np.array((t.x, t.y)) + _CROWN_REACH * t.radius,
                self.fall * t.radius * 1.1,
            )
            for t in self.trees
        ]
        return tuple(np.array(boxes).reshape(-1, 4) for boxes in (patches, roofs, trees))


def _with_shadow(low: Points, high: Points, fall: Points) -> Points:
    return np.concatenate([np.minimum(low, low + fall), np.maximum(high, high + fall)])
