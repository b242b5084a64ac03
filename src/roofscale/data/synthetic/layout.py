"""The planner of a scene: streets, parcels, buildings, gardens, trees and cars."""

import dataclasses
import math
from dataclasses import dataclass

import cv2
import numpy as np

from roofscale.data.synthetic import roofs
from roofscale.data.synthetic.roofs import Colour, Frame, Points, Roof
from roofscale.data.synthetic.scene import Patch, Scene, Tree

ROOF_SHARE = (0.08, 0.60)  # of a scene's px; so that predicting roof nowhere or everywhere scores badly

_CELL = 40.0  # metres, more than the longest building: overlapping roofs are in the same or in adjacent cells

_TILES: tuple[Colour, ...] = (
    (168, 92, 58),
    (150, 78, 52),
    (122, 66, 50),
    (104, 74, 62),
    (78, 74, 76),
    (66, 66, 70),
    (96, 96, 98),
    (138, 108, 86),
    (176, 128, 100),
)
_METAL: tuple[Colour, ...] = (
    (72, 74, 80),
    (96, 102, 112),
    (128, 140, 156),
    (84, 108, 100),
    (196, 198, 198),
    (110, 74, 64),
    (150, 152, 150),
    (60, 62, 66),
)
_LAWNS: tuple[Colour, ...] = ((70, 88, 52), (58, 76, 44), (84, 96, 58), (98, 100, 66), (66, 96, 50), (110, 106, 76))
_BARE: tuple[Colour, ...] = ((150, 134, 112), (122, 100, 80), (142, 96, 70), (128, 122, 116), (164, 150, 120))
_PAVING: tuple[Colour, ...] = (
    (128, 126, 122),
    (152, 146, 138),
    (146, 98, 76),
    (92, 90, 90),
    (170, 164, 154),
    (74, 74, 76),
)
_TREES: tuple[Colour, ...] = (
    (46, 66, 34),
    (62, 84, 40),
    (78, 100, 44),
    (40, 54, 36),
    (88, 84, 46),
    (94, 70, 60),
    (104, 132, 56),
)
_CARS: tuple[Colour, ...] = ((210, 212, 214), (40, 42, 46), (120, 124, 130), (150, 40, 36), (50, 70, 120))


@dataclass(frozen=True)
class TownStyle:
    """The appearance of the settlements of one data set, lengths in metres."""

    metres_per_px: float
    roof_colours: tuple[Colour, ...]
    hip_share: float
    flat_share: float
    metal: bool  # sheet metal with ribs down the slope instead of tiles


EUROPEAN = TownStyle(0.1, _TILES, hip_share=0.2, flat_share=0.1, metal=False)
OCEANIC = TownStyle(0.075, _METAL + _TILES[:3], hip_share=0.6, flat_share=0.12, metal=True)


def plan(side: int, seed: int, style: TownStyle, *, share: tuple[float, float] = ROOF_SHARE) -> Scene:
    """Plan a scene of ``side`` px with a roof share in the range ``share``; equal arguments give equal scenes."""
    for attempt in range(1000):
        rng = np.random.default_rng((seed, attempt))
        scene = _Town(rng, side, style, seed).build()
        if share[0] <= roof_share(scene) <= share[1]:
            return scene
    raise AssertionError(f"no scene of {side} px with a roof share in {share} in 1000 tries")


def roof_share(scene: Scene) -> float:
    """Return the share of the scene's px that are roof, from a raster of at most 512 px a side."""
    scale = min(1.0, 512 / scene.side)
    mask = np.zeros((math.ceil(scene.side * scale),) * 2, np.uint8)
    for roof in scene.roofs:
        cv2.fillPoly(mask, [np.rint(roof.outline * scale).astype(np.int32)], 1)
    return float(mask.mean())


class _Town:
    """The builder of one scene: parallel streets in a random direction, with a row of parcels on either side.

    Coordinates u and p run along the streets, v and q across them; ``frame`` converts them to px of the image.
    """

    def __init__(self, rng: np.random.Generator, side: int, style: TownStyle, seed: int) -> None:
        self.rng, self.style = rng, style
        self.px = 1 / style.metres_per_px  # of a metre
        self.frame = Frame(
            (side / 2 + rng.uniform(-8, 8) * self.px, side / 2 + rng.uniform(-8, 8) * self.px), rng.uniform(0, math.pi)
        )
        self.reach = side * 0.75  # half the side of the planned area: covers the corners in any direction
        self.size = rng.uniform(0.7, 1.75)  # of buildings, relative to a house
        self.crowd = rng.uniform(0.0, 1.0)  # 0: large plots, 1: hardly any space between houses
        self.density = min(1.0, 0.3 + 0.7 * self.crowd + rng.uniform(0.0, 0.3))  # share of parcels built on
        self.green = rng.uniform(0.0, 1.0)
        self.cells: dict[tuple[int, int], list[Roof]] = {}  # roofs by grid cell, _CELL metres a side
        self.scene = Scene(
            side,
            seed,
            style.metres_per_px,
            sun=rng.uniform(0.6, 1.4) * math.pi,
            shadow_px=rng.uniform(0.4, 1.1),
            ground=self.pick(_LAWNS + _BARE[:1]),
            tint=(rng.uniform(0.9, 1.1), rng.uniform(0.94, 1.06), rng.uniform(0.9, 1.1)),
        )

    def pick(self, colours: tuple[Colour, ...]) -> Colour:
        """Return one of the colours at random, slightly varied."""
        red, green, blue = colours[int(self.rng.integers(len(colours)))]
        light = self.rng.normal(1, 0.1)
        return red * light * self.rng.normal(1, 0.03), green * light, blue * light * self.rng.normal(1, 0.03)

    def build(self) -> Scene:
        """Lay out the streets and fill the parcels between them."""
        rng, px = self.rng, self.px
        depth, street = rng.uniform(20, 30) * self.size**0.7 * (1.25 - 0.75 * self.crowd) * px, rng.uniform(5, 9) * px
        period = 2 * depth + street
        asphalt = self.pick(_PAVING[:1] + _PAVING[3:4])
        v = rng.uniform(-period, 0) - math.ceil(self.reach / period) * period
        while v < self.reach:
            self._parcels(v + street, depth, 1)
            self._parcels(v + street + depth, depth, -1)
            self._street(v, street, asphalt)
            v += period
        for _ in range(rng.poisson(self.green * 14 * (2 * self.reach * self.style.metres_per_px / 75) ** 2)):
            self._tree(rng.uniform(-self.reach, self.reach), rng.uniform(-self.reach, self.reach), 1.0)
        return self.scene

    def _patch(self, p0: float, q0: float, p1: float, q1: float, colour: Colour, roughness: float) -> None:
        corners = self.frame.to((p0, q0), (p1, q0), (p1, q1), (p0, q1))
        if self._in_sight(corners):
            self.scene.patches.append(Patch(corners, colour, roughness))

    def _in_sight(self, points: Points) -> bool:
        return bool((points.max(0) > 0).all() and (points.min(0) < self.scene.side).all())

    def _street(self, v: float, width: float, asphalt: Colour) -> None:
        px, rng = self.px, self.rng
        kerb = 1.3 * px
        self._patch(-self.reach, v, self.reach, v + width, (150, 148, 144), 0.2)
        self._patch(-self.reach, v + kerb, self.reach, v + width - kerb, asphalt, 0.25)
        u = -self.reach
        while u < self.reach:
            if rng.random() < 0.3:
                self._car(u, v + rng.choice((0.3, 0.7)) * width)
            if width > 7 * px:
                self._patch(u, v + width / 2 - 0.08 * px, u + 3 * px, v + width / 2 + 0.08 * px, (205, 205, 200), 0.1)
            u += rng.uniform(6, 14) * px

    def _car(self, u: float, v: float) -> None:
        px, colour = self.px, self.pick(_CARS)
        dark: Colour = (colour[0] * 0.4, colour[1] * 0.4, colour[2] * 0.45)
        self._patch(u - 2.2 * px, v - 0.7 * px, u + 2.3 * px, v + 1.15 * px, (38, 38, 40), 0.1)
        self._patch(u - 2.2 * px, v - 0.9 * px, u + 2.2 * px, v + 0.9 * px, colour, 0.05)
        self._patch(u - 1.3 * px, v - 0.75 * px, u - 0.7 * px, v + 0.75 * px, dark, 0.05)
        self._patch(u + 0.5 * px, v - 0.75 * px, u + 1.2 * px, v + 0.75 * px, dark, 0.05)

    def _parcels(self, v: float, depth: float, side: int) -> None:
        """Fill v to v + depth with a row of parcels; the street is at v if ``side`` is 1, at v + depth if -1."""
        u = -self.reach - self.rng.uniform(0, 20) * self.px
        while u < self.reach:
            width = self.rng.uniform(16, 28) * self.size * (1.2 - 0.6 * self.crowd) * self.px
            if self._in_sight(self.frame.to((u, v), (u + width, v), (u + width, v + depth), (u, v + depth))):
                self._parcel(u, v, width, depth, side)
            u += width

    def _parcel(self, u: float, v: float, width: float, depth: float, side: int) -> None:
        rng, px = self.rng, self.px
        bare = rng.random() < 0.22
        self._patch(u, v, u + width, v + depth, self.pick(_BARE if bare else _LAWNS), 0.9)
        for _ in range(int(rng.integers(0, 4))):  # paving, beds, vegetable plots; some in the colours of roofs
            w, d = rng.uniform(2, 9, 2) * px
            p, q = u + rng.uniform(0, max(width - w, 1)), v + rng.uniform(0, max(depth - d, 1))
            self._patch(p, q, p + w, q + d, self.pick(_PAVING + _BARE + _TILES[:3]), rng.uniform(0.1, 0.7))
        street_edge, into = (v, 1.0) if side > 0 else (v + depth, -1.0)
        if rng.random() < self.density:
            drive = u + 0.5 * px
            self._patch(drive, street_edge, drive + 3 * px, street_edge + into * 0.6 * depth, self.pick(_PAVING), 0.2)
            if rng.random() < 0.4:
                self._car_in_drive(drive + 1.5 * px, street_edge + into * 4 * px)
            self._house(u, width, street_edge, into, depth)
        if rng.random() < 0.6:
            self._hedge(u, v, depth)
        for _ in range(rng.poisson(1 + 3 * self.green)):
            self._tree(u + rng.uniform(0, width), v + depth / 2 + into * rng.uniform(0.1, 0.5) * depth, 0.6)

    def _car_in_drive(self, u: float, v: float) -> None:
        px = self.px
        self._patch(u - 0.9 * px, v - 2.2 * px, u + 0.9 * px, v + 2.2 * px, self.pick(_CARS), 0.05)
        self._patch(u - 0.75 * px, v - 1.2 * px, u + 0.75 * px, v - 0.5 * px, (40, 42, 48), 0.05)

    def _hedge(self, u: float, v: float, depth: float) -> None:
        step = 1.1 * self.px
        colour = self.pick(_TREES[:3])
        for i in range(int(depth / step)):
            self._add_tree(u + self.rng.normal(0, 0.15) * self.px, v + i * step, 0.9 * self.px, colour)

    def _tree(self, u: float, v: float, size: float) -> None:
        self._add_tree(u, v, self.rng.gamma(6, 0.45) * size * self.px, self.pick(_TREES))

    def _add_tree(self, u: float, v: float, radius: float, colour: Colour) -> None:
        x, y = self.frame.to((u, v))[0]
        if min(x, y) > -radius and max(x, y) < self.scene.side + radius and not self._on_roof(x, y, 0.6 * radius):
            self.scene.trees.append(Tree(float(x), float(y), float(radius), colour))

    def _on_roof(self, x: float, y: float, margin: float) -> bool:
        """Return whether a crown at (x, y) would hide much of a roof; ``margin`` is a distance in px."""
        return any(
            cv2.pointPolygonTest(roof.outline.astype(np.float32), (float(x), float(y)), True) > -margin
            for roof in self._roofs_near(x, y)
        )

    def _cell(self, x: float, y: float) -> tuple[int, int]:
        return int(x // (_CELL * self.px)), int(y // (_CELL * self.px))

    def _roofs_near(self, x: float, y: float) -> list[Roof]:
        column, row = self._cell(x, y)
        return [roof for i in (-1, 0, 1) for j in (-1, 0, 1) for roof in self.cells.get((column + i, row + j), ())]

    def _house(self, u: float, width: float, street_edge: float, into: float, depth: float) -> None:
        rng, px = self.rng, self.px
        a = min(rng.uniform(5, 9) * self.size * px, width / 2 - (1.5 - 1.3 * self.crowd) * px, depth / 2 - 2 * px)
        b = min(rng.uniform(4, 6) * self.size * px, a * rng.uniform(0.6, 0.98))
        if b < 2 * px:
            return
        turned = bool(rng.random() < 0.35)
        across = a if turned else b
        v = street_edge + into * (across + rng.uniform(2, max(2.5, depth / px - 2 * across / px - 3)) * px)
        centre = self.frame.to((u + width / 2 + rng.uniform(-0.5, 0.5) * px, v))[0]
        frame = Frame(
            (float(centre[0]), float(centre[1])), self.frame.angle + turned * math.pi / 2 + rng.normal(0, 0.03)
        )
        self._add_roof(frame, a, b)
        if rng.random() < 0.35:
            self._shed(u, width, street_edge, into, depth)

    def _shed(self, u: float, width: float, street_edge: float, into: float, depth: float) -> None:
        """Add a garage or shed at the far end of the parcel."""
        rng, px = self.rng, self.px
        a, b = rng.uniform(2, 3.5) * px, rng.uniform(1.5, 2.5) * px
        centre = self.frame.to((u + width - a - px, street_edge + into * (depth - b - 0.5 * px)))[0]
        build = roofs.flat if rng.random() < 0.5 else roofs.gable
        self._place(build(Frame((float(centre[0]), float(centre[1])), self.frame.angle), a, b, 2.5 * px))

    def _add_roof(self, frame: Frame, a: float, b: float) -> None:
        rng, px, style = self.rng, self.px, self.style
        height = rng.uniform(4, 8) * px
        draw, free = rng.random(), 0.85 * a
        if draw < style.flat_share:
            self._place(roofs.flat(frame, a, b, height))
            return
        if draw < style.flat_share + style.hip_share:
            roof, free = roofs.hip(frame, a, b, height), a - b
        elif draw < 0.8:
            roof = roofs.gable(frame, a, b, height)
        else:
            wing = 0.42 * b + 0.1 * a
            roof = roofs.cross_gable(frame, a, b, height, wing, rng.uniform(-0.5, 0.5) * (a - wing))
        fittings = roofs.superstructures(rng, frame, a, b, px, free) if free > px and len(roof.facets) <= 4 else []
        self._place(dataclasses.replace(roof, fittings=fittings))

    def _place(self, roof: Roof) -> None:
        """Colour a roof and add it, unless it is outside of the scene or overlaps another roof."""
        x, y = roof.outline.mean(0)
        if not self._in_sight(roof.outline) or any(
            _overlap(roof.outline, near.outline) for near in self._roofs_near(x, y)
        ):
            return
        ribs = self.style.metal and bool(self.rng.random() < 0.7)
        course = (0.6 if ribs else 0.35) * self.px * self.rng.uniform(0.9, 1.2)
        roof = dataclasses.replace(roof, colour=self.pick(self.style.roof_colours), course_px=course, ribs_down=ribs)
        self.scene.roofs.append(roof)
        self.cells.setdefault(self._cell(x, y), []).append(roof)


def _overlap(outline: Points, other: Points) -> bool:
    """Return whether the convex hulls of two outlines overlap."""
    if (outline.min(0) >= other.max(0)).any() or (other.min(0) >= outline.max(0)).any():
        return False
    hull, other_hull = (cv2.convexHull(points.astype(np.float32)) for points in (outline, other))
    area, _ = cv2.intersectConvexConvex(hull, other_hull)
    return bool(area > 0)
