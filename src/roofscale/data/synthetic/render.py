"""The renderer of a planned scene, or of a window of it, as an aerial image with its masks.

The value of a px depends on the scene and on its coordinates, not on the window, so that a large tile can be rendered
block by block: segments agree exactly where blocks meet, edges of the ground within a px, as OpenCV rounds when it
clips. Images are (H, W, 3) float32 RGB, 0 to 255, until the last step.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from roofscale.data.rid import SEGMENT_BACKGROUND, SUPERSTRUCTURE_BACKGROUND
from roofscale.data.sample import Pixels
from roofscale.data.synthetic.roofs import (
    CHIMNEY,
    DORMER,
    LADDER,
    PV,
    SHADOW,
    TREE,
    UNKNOWN,
    WINDOW,
    Colour,
    Facet,
    Points,
    Roof,
    Superstructure,
    shadow_of,
)
from roofscale.data.synthetic.scene import Patch, Scene, Tree

Canvas = npt.NDArray[np.float32]

HALO = 8  # px rendered beyond each side of a window, so that blurs agree where windows meet
LINE_PX = 5  # thickness of Roofline's eaves, ridges and hips in the masks
_NOISE_SIDE = 1024  # px, a power of two
_SHADOW_LIGHT = 0.42  # brightness in a shadow, relative to full light
_SUPERSTRUCTURE_COLOURS: dict[int, Colour] = {
    PV: (38, 52, 88),
    WINDOW: (122, 136, 150),
    LADDER: (170, 165, 160),
    CHIMNEY: (150, 120, 105),
    UNKNOWN: (190, 188, 184),
}


@dataclass(frozen=True)
class Window:
    """A rectangle of a scene, px."""

    row: int
    col: int
    height: int
    width: int


@dataclass(frozen=True)
class RenderedImage:
    """An aerial image and its masks, all uint8."""

    image_HWC: Pixels
    segments_HW: Pixels  # RID's segment ids, 17 = no roof
    superstructures_HW: Pixels  # RID's superstructure ids, 8 = none
    elements_EHW: Pixels  # 0/1: eave, ridge, hip


@functools.cache
def _noise(octaves: int) -> Canvas:
    """Return periodic fractal noise of mean 0 and standard deviation 1: (side, side); one octave is white noise."""
    rng, total = np.random.default_rng(20260101 + octaves), np.zeros((_NOISE_SIDE, _NOISE_SIDE), np.float32)
    for octave in range(octaves):
        coarse = rng.standard_normal((_NOISE_SIDE >> octave,) * 2, np.float32)
        wrapped = np.pad(coarse, 2, mode="wrap")
        scaled = cv2.resize(wrapped, None, fx=1 << octave, fy=1 << octave, interpolation=cv2.INTER_LINEAR)
        total += scaled[(cut := 2 << octave) : cut + _NOISE_SIDE, cut : cut + _NOISE_SIDE] * 1.6**octave
    return np.asarray((total - total.mean()) / total.std(), np.float32)


def _noise_at(octaves: int, row: int, col: int, height: int, width: int) -> Canvas:
    """Return a window of the periodic noise at scene coordinates: (height, width)."""
    rows = np.arange(row, row + height) % _NOISE_SIDE
    cols = np.arange(col, col + width) % _NOISE_SIDE
    return _noise(octaves)[rows[:, None], cols[None, :]]


def paint(scene: Scene, window: Window | None = None) -> RenderedImage:
    """Render a window of a scene (default: all of it)."""
    window = window or Window(0, 0, scene.side, scene.side)
    wide = Window(window.row - HALO, window.col - HALO, window.height + 2 * HALO, window.width + 2 * HALO)
    scene = scene.clipped(wide.col, wide.row, wide.width, wide.height)
    renderer = _Renderer(scene, wide)
    renderer.ground()
    renderer.shadows()
    for roof in scene.roofs:
        if renderer.sees(roof.outline):
            renderer.roof(roof)
    for tree in scene.trees:
        renderer.tree(tree)
    inner = slice(HALO, HALO + window.height), slice(HALO, HALO + window.width)
    return RenderedImage(
        renderer.camera_image()[inner],
        renderer.segments[inner],
        renderer.superstructures[inner],
        renderer.elements[:, *inner],
    )


class _Renderer:
    """The canvas of one window and its masks, to which objects are drawn one after the other."""

    def __init__(self, scene: Scene, window: Window) -> None:
        self.scene, self.window = scene, window
        shape = window.height, window.width
        self.origin = np.array((window.col, window.row), np.float64)
        self.fall = scene.fall
        self.image: Canvas = np.empty((*shape, 3), np.float32)
        self.segments: Pixels = np.full(shape, SEGMENT_BACKGROUND, np.uint8)
        self.superstructures: Pixels = np.full(shape, SUPERSTRUCTURE_BACKGROUND, np.uint8)
        self.elements: Pixels = np.zeros((3, *shape), np.uint8)

    def sees(self, points: Points) -> bool:
        """Return whether the bounding box of the points touches the window."""
        low, high = points.min(0) - self.origin, points.max(0) - self.origin
        return bool(high[0] >= 0 and high[1] >= 0 and low[0] < self.window.width and low[1] < self.window.height)

    def _local(self, points: Points) -> npt.NDArray[np.int32]:
        return np.floor(points - self.origin + 0.5).astype(np.int32)  # rint would depend on the window's parity

    def _texture(self, octaves: int, shift: int) -> Canvas:
        w = self.window
        offset = (self.scene.seed * 7919 + shift * 104729) % _NOISE_SIDE
        return _noise_at(octaves, w.row + offset, w.col + 3 * offset, w.height, w.width)

    def ground(self) -> None:
        """Fill the canvas with the ground colour and the patches in their order, and apply noise to all of it."""
        self.image[:] = self.scene.ground
        rough = np.full(self.image.shape[:2], 0.9, np.float32)
        for patch in self.scene.patches:
            if self.sees(patch.polygon):
                self._patch(patch, rough)
        relief = 0.09 * self._texture(7, 1) + 0.07 * self._texture(4, 2) + 0.06 * self._texture(2, 3)
        self.image *= (1 + relief * (0.25 + rough))[..., None]
        self.image[..., 0] *= 1 + 0.06 * rough * self._texture(7, 4)  # dry and fresh grass

    def _patch(self, patch: Patch, rough: Canvas) -> None:
        corners = self._local(patch.polygon)
        cv2.fillPoly(self.image, [corners], patch.colour)
        cv2.fillPoly(rough, [corners], patch.roughness)

    def shadows(self) -> None:
        """Darken the ground in the shadows of buildings and trees."""
        light = np.ones(self.image.shape[:2], np.float32)
        for roof in self.scene.roofs:
            shadow = shadow_of(roof.outline, self.fall * roof.height)
            if self.sees(shadow):
                cv2.fillPoly(light, [self._local(shadow)], _SHADOW_LIGHT)
        for tree in self.scene.trees:
            centre = np.array((tree.x, tree.y)) + self.fall * tree.radius * 1.1
            if self.sees(np.stack([centre - tree.radius, centre + tree.radius])):
                x, y = self._local(centre)
                cv2.circle(light, (int(x), int(y)), max(1, round(tree.radius)), _SHADOW_LIGHT + 0.08, -1)
        light[:] = cv2.GaussianBlur(light, (7, 7), 1.5)
        self.image *= light[..., None]
        self.image[..., 2] += (1 - light) * 10  # shadows get the blue light of the sky

    def roof(self, roof: Roof) -> None:
        """Draw one roof: facets, lines, then its superstructures."""
        for facet in roof.facets:
            self._facet(facet, roof.colour, roof)
        for channel, lines in enumerate((roof.eaves, roof.ridges, roof.hips)):
            self._lines(lines, channel, roof.colour)
        for item in roof.fittings:
            if self.sees(item.polygon):
                self._superstructure(item, roof)

    def _superstructure(self, item: Superstructure, roof: Roof) -> None:
        rows, cols, inside = self._stencil(item.polygon)
        if item.kind == DORMER:
            for facet in item.facets:
                self._facet(facet, roof.colour, roof)
        elif item.kind == SHADOW:
            self.image[rows, cols][inside] *= _SHADOW_LIGHT
        else:
            self.image[rows, cols][inside] = _SUPERSTRUCTURE_COLOURS[item.kind]
        if item.kind == PV:
            cv2.polylines(self.image, [self._local(item.polygon)], True, (92, 104, 132), 1)
        self.superstructures[rows, cols][inside] = item.kind

    def _box(self, points: Points) -> tuple[slice, slice]:
        """Return the slices of the canvas that contain some points."""
        local = self._local(points)
        low = np.clip(local.min(0), 0, (self.window.width, self.window.height))
        high = np.clip(local.max(0) + 1, 0, (self.window.width, self.window.height))
        return slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0]))

    def _stencil(self, points: Points) -> tuple[slice, slice, npt.NDArray[np.bool_]]:
        """Return the slices of the canvas that contain a polygon, and the mask of the polygon in them.

        The whole polygon is filled and then cut, because OpenCV fills a clipped one slightly differently, and masks
        must agree where windows meet.
        """
        rows, cols = self._box(points)
        local = self._local(points)
        left, top = local.min(0).tolist()
        width, height = (local.max(0) - local.min(0) + 1).tolist()
        inside = np.zeros((height, width), np.uint8)
        cv2.fillPoly(inside, [local - (left, top)], 1)
        return rows, cols, inside[rows.start - top : rows.stop - top, cols.start - left : cols.stop - left].astype(bool)

    def _facet(self, facet: Facet, colour: Colour, roof: Roof) -> None:
        if not self.sees(facet.polygon):
            return
        rows, cols, inside = self._stencil(facet.polygon)
        painted = np.asarray(colour, np.float32) * self._material(facet, roof, rows, cols)[..., None]
        np.copyto(self.image[rows, cols], painted, where=inside[..., None])
        self.segments[rows, cols][inside] = facet.segment_id

    def _material(self, facet: Facet, roof: Roof, rows: slice, cols: slice) -> Canvas:
        """Return the brightness of a facet's px: light by azimuth, courses of tiles or ribs, weathering."""
        top, left = rows.start + self.window.row, cols.start + self.window.col
        height, width = rows.stop - rows.start, cols.stop - cols.start
        weather = 0.05 * _noise_at(4, top, left, height, width) + 0.05 * _noise_at(1, top, left, height, width)
        if facet.downslope is None:
            return np.asarray(1.0 + 1.2 * weather, np.float32)
        slope = facet.downslope + (math.pi / 2 if roof.ribs_down else 0)
        y, x = np.ogrid[top : top + height, left : left + width]
        phase = (x * math.sin(slope) - y * math.cos(slope)) * (2 * math.pi / roof.course_px)
        light = 0.92 + 0.34 * math.cos(facet.downslope - self.scene.sun)
        return np.asarray(light * (1 + weather + 0.06 * np.sin(phase)), np.float32)

    def _lines(self, lines: tuple[Points, ...], channel: int, colour: Colour) -> None:
        bright = (1.18, 1.22, 1.12)[channel]
        for line in lines:
            start, end = (tuple(map(int, point)) for point in self._local(line))
            cv2.line(self.elements[channel], start, end, 1, LINE_PX)
            cv2.line(self.image, start, end, tuple(value * bright for value in colour), 1)

    def tree(self, tree: Tree) -> None:
        """Draw a crown: a ragged disc, bright towards the sun; over a roof it is a superstructure, as in RID."""
        reach = tree.radius * 1.3
        corners = np.array(((tree.x - reach, tree.y - reach), (tree.x + reach, tree.y + reach)))
        rows, cols = self._box(corners)
        part = self.image[rows, cols]
        if not part.size:
            return
        top, left = rows.start + self.window.row, cols.start + self.window.col
        y, x = np.ogrid[top : top + part.shape[0], left : left + part.shape[1]]
        dx, dy = (x - tree.x) / tree.radius, (y - tree.y) / tree.radius
        leaves = _noise_at(3, top + int(tree.x), left + int(tree.y), *part.shape[:2])
        inside = dx * dx + dy * dy < 1 + 0.22 * leaves
        towards_sun = dx * math.sin(self.scene.sun) - dy * math.cos(self.scene.sun)
        light: Any = np.clip(0.95 + 0.35 * towards_sun + 0.28 * leaves, 0.3, 2.0)
        np.copyto(
            part, np.asarray(tree.colour, np.float32) * light[..., None].astype(np.float32), where=inside[..., None]
        )
        roof = inside & (self.segments[rows, cols] != SEGMENT_BACKGROUND)
        self.superstructures[rows, cols][roof] = TREE

    def camera_image(self) -> Pixels:
        """Return the image as from a camera, uint8: with tint, blur of the lens and noise of the sensor."""
        image = self.image * np.asarray(self.scene.tint, np.float32)
        blurred = cv2.GaussianBlur(image, (5, 5), 0.7)
        return np.clip(blurred + 3.5 * self._texture(1, 5)[..., None], 0, 255).astype(np.uint8)
