"""Find images that show the same: the same pixels, or the same ground. Two parts of a split should share neither."""

import functools
import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from rasterio import warp
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError
from rasterio.transform import RPCTransformer, from_gcps
from rasterio.windows import Window

from roofscale.data import geotiff
from roofscale.data.file_error import FileError, FileErrorKind
from roofscale.data.sample import Pixels

# Tiles that abut share an edge, and rounding of their corners a sliver: that is no leak.
LEAST_OVERLAP = 0.01  # share of the smaller footprint
GLANCE_PX = 64  # side of the middle of an image that a glance reads
_OF_RPCS = "EPSG:4326"  # RPCs give longitudes and latitudes
_Corners = npt.NDArray[np.float64]
_PART_ORDER = {"train": 0, "val": 1, "test": 2}


@dataclass(frozen=True)
class Footprint:
    """A quadrangle on the ground: its corners in their order around it."""

    crs: str
    corners: tuple[tuple[float, float], ...]  # four of (x, y)


@dataclass(frozen=True)
class ImageFingerprint:
    """What one image shows."""

    path: Path
    label: str  # what to call it in a message: a file name, or a sample of a file
    digest: str  # of its pixels, or of those that a glance reads; empty: not readable, and so like no other
    footprint: Footprint | None = None
    shape: tuple[int, int] | None = None  # height and width, px; None: not known, or the file does not open


class OverlappingPair(NamedTuple):
    """Two images, by their places in a sequence, that show the same."""

    first: int  # the smaller
    second: int
    identical: bool  # the same pixels; else the same ground
    share: float  # of the smaller footprint; 1 where identical


class LeakRate(NamedTuple):
    """How much two parts of a split share."""

    split: str  # 'published 1'
    pairs: int  # of images in two different parts
    val: float  # share of the validation images that have a partner in train; NaN where there are none
    test: float
    left_out: int = 0  # images that the split uses in no part, to keep the parts apart

    def __str__(self) -> str:
        shares = ", ".join(
            f"{share:.0%} of {part}" for part, share in (("val", self.val), ("test", self.test)) if share == share
        )
        apart = f"; {self.left_out} images left out to keep the parts apart" if self.left_out else ""
        pairs = f"{self.pairs} pair{'' if self.pairs == 1 else 's'}"
        return f"{self.split}: {pairs} across parts; a partner in train have {shares or 'none'}{apart}"


def fingerprint(path: Path) -> ImageFingerprint:
    """Where an image lies and what its middle looks like, at little more than the cost of opening it (0.4 ms).

    Two images with the same pixels have the same middle. Two that differ elsewhere alone are taken for one another,
    which in a split only means that they stay together. A file that cannot be read is like no other: the reader will
    name it.
    """
    try:
        with geotiff.open_raster(path) as dataset:
            height, width = dataset.shape
            side_y, side_x = min(height, GLANCE_PX), min(width, GLANCE_PX)
            window = Window((width - side_x) // 2, (height - side_y) // 2, side_x, side_y)
            digest = hashlib.blake2b(dataset.read(window=window).tobytes(), digest_size=16).hexdigest()
            return ImageFingerprint(
                path, path.name, f"{height}x{width} {digest}", footprint_of(dataset), (height, width)
            )
    except FileError:
        return ImageFingerprint(path, path.name, "")


def read_footprint(path: Path) -> ImageFingerprint:
    """Where an image lies and how large it is, at half the cost of a glance: no pixel is read.

    A process opens a file once, as long as it does not change: a phase opens its data once for each of its steps.
    """
    try:
        state = path.stat()
    except OSError:
        return ImageFingerprint(path, path.name, "")
    return _located(path, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=4096)  # over twice the files of RID, or of AIRS; some 2 MiB
def _located(path: Path, size: int, modified: int) -> ImageFingerprint:
    try:
        with geotiff.open_raster(path) as dataset:
            return ImageFingerprint(path, path.name, "", footprint_of(dataset), dataset.shape)
    except FileError:
        return ImageFingerprint(path, path.name, "")


def footprint_of(dataset: Any) -> Footprint | None:
    """The ground that an opened raster shows, by its transform, control points or RPCs; None where it knows none."""
    height, width = dataset.shape
    corners_px = ((0, 0), (width, 0), (width, height), (0, height))
    if dataset.crs is not None:
        return Footprint(dataset.crs.to_string(), tuple(dataset.transform @ corner for corner in corners_px))
    points, crs = dataset.gcps
    if len(points) >= 3 and crs is not None:
        transform = from_gcps(points)
        return Footprint(crs.to_string(), tuple(transform @ corner for corner in corners_px))
    if dataset.rpcs is not None:
        with RPCTransformer(dataset.rpcs) as by_rpcs:
            columns, rows = zip(*corners_px, strict=True)
            corners = tuple(zip(*by_rpcs.xy(rows, columns), strict=True))
            return Footprint(_OF_RPCS, corners) if np.isfinite(corners).all() else None
    return None


def pixel_digest(image_HWC: Pixels) -> str:
    """A name for pixels that lie in memory."""
    return hashlib.blake2b(np.ascontiguousarray(image_HWC).tobytes(), digest_size=16).hexdigest()


def find_pairs(images: Sequence[ImageFingerprint]) -> list[OverlappingPair]:
    """All pairs that have the same pixels, and those that share more than LEAST_OVERLAP of the ground."""
    by_digest: dict[str, list[int]] = defaultdict(list)
    for i, image in enumerate(images):
        if image.digest:
            by_digest[image.digest].append(i)
    identical = [
        OverlappingPair(first, second, True, 1.0)
        for group in by_digest.values()
        for n, second in enumerate(group)
        for first in group[:n]
    ]
    known = {(pair.first, pair.second) for pair in identical}
    overlapping = [pair for members, corners in on_common_ground(images) for pair in _overlapping(members, corners)]
    return identical + [pair for pair in overlapping if (pair.first, pair.second) not in known]


def on_common_ground(images: Sequence[ImageFingerprint]) -> list[tuple[list[int], _Corners]]:
    """Bring the footprints into one coordinate system, that of most images.

    Returns:
        Groups of images that compare with one another, each with the corners (G,4,2) of its footprints. There is more
        than one where a coordinate system, such as a local one, cannot be brought into that of the others.
    """
    by_crs: dict[str, list[int]] = defaultdict(list)
    for i, image in enumerate(images):
        if image.footprint is not None:
            by_crs[image.footprint.crs].append(i)
    groups: list[tuple[list[int], _Corners]] = []
    for crs, members in sorted(by_crs.items(), key=lambda group: -len(group[1])):
        corners = np.array([seen.corners for i in members if (seen := images[i].footprint)])
        common = next(iter(groups), None)
        moved = _moved(corners, crs, max(by_crs, key=lambda one: len(by_crs[one]))) if common else None
        if common is not None and moved is not None:
            groups[0] = ([*common[0], *members], np.concatenate([common[1], moved]))
        else:
            groups.append((members, corners))
    return groups


def _moved(corners_G42: _Corners, crs: str, common: str) -> _Corners | None:
    """Corners in another coordinate system; None where there is no way from the one to the other."""
    try:
        xs, ys = warp.transform(crs, common, *corners_G42.reshape(-1, 2).T)
    except (RasterioError, CPLE_BaseError):
        return None
    moved = np.array([xs, ys]).T.reshape(corners_G42.shape)
    return moved if np.isfinite(moved).all() else None


def _overlapping(members: Sequence[int], corners_G42: _Corners) -> Iterator[OverlappingPair]:
    corners_G42 = corners_G42 - corners_G42.min((0, 1))  # areas of large numbers would lose digits
    low, high = corners_G42.min(1), corners_G42.max(1)
    following = np.roll(corners_G42, -1, axis=1)
    areas = abs((corners_G42[..., 0] * following[..., 1] - corners_G42[..., 1] * following[..., 0]).sum(1)) / 2
    for n, second in enumerate(members):
        common = (np.minimum(high[n], high[:n]) - np.maximum(low[n], low[:n])).clip(0).prod(1)
        smaller = np.minimum(areas[n], areas[:n])
        for m in np.flatnonzero(common > LEAST_OVERLAP * smaller).tolist():  # of the boxes around them, so at the most
            share = _common_area(corners_G42[m], corners_G42[n]) / smaller[m]
            if share > LEAST_OVERLAP:
                first, last = sorted((members[m], second))
                yield OverlappingPair(first, last, False, float(min(share, 1.0)))


def _common_area(first_42: _Corners, second_42: _Corners) -> float:
    """The area that two quadrangles share."""
    origin = first_42.min(0)  # OpenCV counts in float32, which holds no metre of a northing
    scale = float(np.ptp(first_42, axis=0).max())
    area, _ = cv2.intersectConvexConvex(*((c - origin).astype(np.float32) / scale for c in (first_42, second_42)))
    return float(area) * scale**2


def leak_rate(split: str, pairs: Sequence[OverlappingPair], parts: Sequence[str], left_out: int = 0) -> LeakRate:
    """How much the parts share; ``parts`` says for each image 'train', 'val', 'test', or '' where it is in none."""
    crossing = [pair for pair in pairs if _crosses(pair, parts)]
    partnered = {i for pair in crossing for i in pair[:2] if "train" in (parts[pair.first], parts[pair.second])}
    shares = {}
    for part in ("val", "test"):
        members = [i for i, of in enumerate(parts) if of == part]
        shares[part] = sum(i in partnered for i in members) / len(members) if members else math.nan
    return LeakRate(split, len(crossing), shares["val"], shares["test"], left_out)


def find_leaks(
    images: Sequence[ImageFingerprint], pairs: Sequence[OverlappingPair], parts: Sequence[str], split_name: str
) -> Iterator[FileError]:
    """Yield one problem for each image that shares pixels, and one for each that shares ground, with an image of
    another part; only the image whose part comes later is named as the culprit, with all its partners."""
    partners: dict[tuple[int, bool], list[tuple[int, float]]] = defaultdict(list)
    for pair in pairs:
        if _crosses(pair, parts):
            other, culprit = sorted(pair[:2], key=lambda i: (_PART_ORDER.get(parts[i], 0), i))
            partners[culprit, pair.identical].append((other, pair.share))
    for (culprit, identical), found in sorted(partners.items()):
        others = ", ".join(f"{images[other].label} in {parts[other]}" for other, _ in found)
        who = f"{images[culprit].label} in {parts[culprit]}"
        if identical:
            text = f"{who} has the same pixels as {others} ({split_name}). Remove one of them, or use split=spatial."
        else:
            text = (
                f"{who} shows up to {max(share for _, share in found):.0%} of the ground of {others} ({split_name}). "
                "Scores on it are too good; keep neighbours in one part (split=spatial)."
            )
        yield FileError(FileErrorKind.IDENTICAL if identical else FileErrorKind.OVERLAP, images[culprit].path, text)


def _crosses(pair: OverlappingPair, parts: Sequence[str]) -> bool:
    """Whether the two are in two different parts."""
    first, second = parts[pair.first], parts[pair.second]
    return bool(first and second and first != second)
