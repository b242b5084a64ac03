"""Roof geometry: facets, eaves, ridges, hips and superstructures. Points are (x, y) in px, y downwards."""

import math
from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

from roofscale.data.rid import FLAT, SUPERSTRUCTURE_IDS

Points = npt.NDArray[np.float64]  # (n, 2)
Colour = tuple[float, float, float]  # RGB, 0 to 255

AZIMUTHS = 16  # directions of RID's segment ids, N first, clockwise
PV, DORMER, WINDOW, LADDER, CHIMNEY, SHADOW, TREE, UNKNOWN, _ = range(len(SUPERSTRUCTURE_IDS))


@dataclass(frozen=True)
class Facet:
    """A planar piece of a roof."""

    polygon: Points
    downslope: float | None  # azimuth of the fall line, radians clockwise from north; None: flat

    @property
    def segment_id(self) -> int:
        """RID's segment id: 0 to 15 by azimuth, 16 flat."""
        if self.downslope is None:
            return FLAT
        return round(self.downslope / (2 * math.pi / AZIMUTHS)) % AZIMUTHS


@dataclass(frozen=True)
class Superstructure:
    """An object on a roof: a PV module, a dormer, a chimney, ..."""

    kind: int  # RID's superstructure id
    polygon: Points
    facets: tuple[Facet, ...] = ()  # of a dormer's own roof


@dataclass(frozen=True)
class Roof:
    """The roof of one building."""

    outline: Points
    facets: tuple[Facet, ...]
    height: float  # px, for the length of the shadow
    eaves: tuple[Points, ...] = ()  # each (2, 2): from, to
    ridges: tuple[Points, ...] = ()
    hips: tuple[Points, ...] = ()
    fittings: list[Superstructure] = field(default_factory=list)
    colour: Colour = (130, 70, 50)
    course_px: float = 3.5  # distance between tile rows or metal ribs
    ribs_down: bool = False  # ribs run down the slope (sheet metal) instead of across (tiles)


@dataclass(frozen=True)
class Frame:
    """The local axes of a building: p along the ridge, q across, origin at the centre."""

    centre: tuple[float, float]
    angle: float  # of the p axis in the image, radians

    def to(self, *points: tuple[float, float]) -> Points:
        """Return image coordinates (n, 2) of local points (p, q)."""
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        return np.array([(self.centre[0] + p * cos - q * sin, self.centre[1] + p * sin + q * cos) for p, q in points])

    def azimuth(self, p: float, q: float) -> float:
        """Return the azimuth of a local vector, radians clockwise from north."""
        x, y = self.to((p, q))[0] - self.centre
        return math.atan2(x, -y) % (2 * math.pi)

    def facet(self, *points: tuple[float, float], fall: tuple[float, float] | None) -> Facet:
        """Return the facet with these local corners; ``fall`` is the local direction of its fall line, None if flat."""
        return Facet(self.to(*points), None if fall is None else self.azimuth(*fall))

    def lines(self, *corners: tuple[tuple[float, float], tuple[float, float]]) -> tuple[Points, ...]:
        """Return line segments, each (2, 2), between these local end points."""
        return tuple(self.to(start, end) for start, end in corners)


def gable(frame: Frame, a: float, b: float, height: float) -> Roof:
    """Return a roof of two slopes; ``a`` is half its length, ``b`` half its width, px."""
    outline = ((-a, -b), (a, -b), (a, b), (-a, b))
    return Roof(
        frame.to(*outline),
        (
            frame.facet((-a, 0), (a, 0), (a, b), (-a, b), fall=(0, 1)),
            frame.facet((-a, 0), (a, 0), (a, -b), (-a, -b), fall=(0, -1)),
        ),
        height,
        eaves=frame.lines(((-a, b), (a, b)), ((-a, -b), (a, -b))),
        ridges=frame.lines(((-a, 0), (a, 0))),
    )


def hip(frame: Frame, a: float, b: float, height: float) -> Roof:
    """Return a roof of four slopes, a pyramid if length equals width; ``a`` and ``b`` as of ``gable``."""
    r = a - b
    outline = ((-a, -b), (a, -b), (a, b), (-a, b))
    return Roof(
        frame.to(*outline),
        (
            frame.facet((-r, 0), (r, 0), (a, b), (-a, b), fall=(0, 1)),
            frame.facet((-r, 0), (r, 0), (a, -b), (-a, -b), fall=(0, -1)),
            frame.facet((r, 0), (a, b), (a, -b), fall=(1, 0)),
            frame.facet((-r, 0), (-a, b), (-a, -b), fall=(-1, 0)),
        ),
        height,
        eaves=frame.lines(*zip(outline, (*outline[1:], outline[0]), strict=True)),
        ridges=frame.lines(((-r, 0), (r, 0))),
        hips=frame.lines(((r, 0), (a, b)), ((r, 0), (a, -b)), ((-r, 0), (-a, b)), ((-r, 0), (-a, -b))),
    )


def flat(frame: Frame, a: float, b: float, height: float) -> Roof:
    """Return a flat roof; ``a`` and ``b`` as of ``gable``."""
    outline = ((-a, -b), (a, -b), (a, b), (-a, b))
    return Roof(
        frame.to(*outline),
        (frame.facet(*outline, fall=None),),
        height,
        eaves=frame.lines(*zip(outline, (*outline[1:], outline[0]), strict=True)),
    )


def cross_gable(frame: Frame, a: float, b: float, height: float, wing: float, at: float) -> Roof:
    """Return a gable roof with a lower gabled wing of half-width ``wing`` on the +q side at ``p = at``, px."""
    main, w, out = gable(frame, a, b, height), wing, b + 1.3 * wing
    inner = b - 0.9 * w  # where the wing's ridge meets the main slope
    facets = (
        frame.facet((at, inner), (at, out), (at + w, out), (at + w, b), fall=(1, 0)),
        frame.facet((at, inner), (at, out), (at - w, out), (at - w, b), fall=(-1, 0)),
    )
    outline = frame.to((-a, -b), (a, -b), (a, b), (at + w, b), (at + w, out), (at - w, out), (at - w, b), (-a, b))
    return Roof(
        outline,
        (*main.facets, *facets),
        height,
        eaves=(
            main.eaves[1],
            *frame.lines(
                ((-a, b), (at - w, b)),
                ((at + w, b), (a, b)),
                ((at + w, b), (at + w, out)),
                ((at - w, b), (at - w, out)),
            ),
        ),
        ridges=(*main.ridges, *frame.lines(((at, inner), (at, out)))),
    )


def superstructures(
    rng: np.random.Generator, frame: Frame, a: float, b: float, px: float, free: float
) -> list[Superstructure]:
    """Return random superstructures for the two main slopes of a gable or hip roof.

    Args:
        rng: the source of randomness.
        frame: the building's axes.
        a: half the length of the roof, px.
        b: half its width, px.
        px: of a metre.
        free: half the length that is clear of hips, px.
    """
    items: list[Superstructure] = []
    for side in (1.0, -1.0):
        sunny = frame.to((0, side))[0][1] > frame.centre[1]
        draw = rng.random()
        if sunny and draw < 0.4:
            items += _pv(rng, frame, side, free, b, px)
        elif draw < 0.75:
            items += _row(rng, frame, side, free, b, px)
    items += _chimneys(rng, frame, free, b, px)
    if rng.random() < 0.15:
        items.append(_box(frame, LADDER, 0.5 * free, 0.35 * b * rng.choice((-1, 1)), 0.15 * px, 0.2 * b))
    if rng.random() < 0.2:
        items.append(_box(frame, UNKNOWN, -0.6 * free, 0.5 * b, 0.35 * px, 0.35 * px))
    return items


def _box(frame: Frame, kind: int, p: float, q: float, half_p: float, half_q: float) -> Superstructure:
    return Superstructure(
        kind,
        frame.to(
            (p - half_p, q - half_q), (p + half_p, q - half_q), (p + half_p, q + half_q), (p - half_p, q + half_q)
        ),
    )


def _pv(rng: np.random.Generator, frame: Frame, side: float, free: float, b: float, px: float) -> list[Superstructure]:
    module_p, module_q = 1.0 * px, 1.4 * px
    columns = int(2 * free * rng.uniform(0.4, 0.85) / module_p)
    rows = int(0.75 * b / module_q)
    start = -columns * module_p / 2 + rng.uniform(-0.1, 0.1) * free
    return [
        _box(
            frame,
            PV,
            start + (i + 0.5) * module_p,
            side * (0.14 * b + (j + 0.5) * module_q),
            0.46 * module_p,
            0.47 * module_q,
        )
        for i in range(columns)
        for j in range(rows)
    ]


def _row(rng: np.random.Generator, frame: Frame, side: float, free: float, b: float, px: float) -> list[Superstructure]:
    """Return a row of dormers or of roof windows."""
    count = int(rng.integers(1, 4))
    positions = np.linspace(-0.7, 0.7, count) * free if count > 1 else [rng.uniform(-0.5, 0.5) * free]
    if rng.random() < 0.55 and free > count * 1.6 * px:
        return [_dormer(frame, float(p), side, 0.9 * px, 0.3 * b, 0.78 * b) for p in positions]
    return [_box(frame, WINDOW, float(p), side * rng.uniform(0.35, 0.7) * b, 0.4 * px, 0.55 * px) for p in positions]


def _dormer(frame: Frame, p: float, side: float, half: float, inner: float, outer: float) -> Superstructure:
    near, far = side * inner, side * outer
    facets = tuple(
        frame.facet((p, near), (p + s * half, near + side * half), (p + s * half, far), (p, far), fall=(s, 0))
        for s in (1.0, -1.0)
    )
    outline = frame.to(
        (p, near), (p + half, near + side * half), (p + half, far), (p - half, far), (p - half, near + side * half)
    )
    return Superstructure(DORMER, outline, facets)


def _chimneys(rng: np.random.Generator, frame: Frame, free: float, b: float, px: float) -> list[Superstructure]:
    items = []
    for _ in range(int(rng.integers(0, 3))):
        p, q = rng.uniform(-0.8, 0.8) * free, rng.uniform(-0.25, 0.25) * b
        items.append(_box(frame, SHADOW, p + 0.5 * px, q, 0.6 * px, 0.3 * px))
        items.append(_box(frame, CHIMNEY, p, q, 0.32 * px, 0.32 * px))
    return items


def shadow_of(outline: Points, fall: Points) -> Points:
    """Return the shadow of a prism: the convex hull of its outline and of the outline moved by ``fall`` px."""
    both = np.vstack([outline, outline + fall]).astype(np.float32)
    return cv2.convexHull(both)[:, 0].astype(np.float64)
