"""Leaks between the parts of a split: images with identical pixels, and images that overlap on the ground."""

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

# Adjacent tiles share an edge and, by rounding of their corners, a sliver of ground: not a leak.
LEAST_OVERLAP = 0.01  # share of the smaller footprint
GLANCE_PX = 64  # side of the central square of an image that ``fingerprint`` reads
_RPC_CRS = "EPSG:4326"  # RPCs give longitudes and latitudes
_Corners = npt.NDArray[np.float64]
_PART_ORDER = {"train": 0, "val": 1, "test": 2}


@dataclass(frozen=True)
class Footprint:
    """The quadrangle on the ground that an image covers."""

    crs: str
    corners: tuple[tuple[float, float], ...]  # four (x, y) in units of the crs, in order around the quadrangle


@dataclass(frozen=True)
class ImageFingerprint:
    """What is compared of one image: a digest of its pixels, its footprint and its size."""

    path: Path
    label: str  # its name in a message: a file name, or a sample of a file
    digest: str  # of all pixels, or of the central square; empty: not read, and so equal to no other image
    footprint: Footprint | None = None
    shape: tuple[int, int] | None = None  # height and width, px; None: not known, or the file does not open


class OverlappingPair(NamedTuple):
    """Two images, by their indices, that have identical pixels or overlap on the ground."""

    first: int  # the smaller index
    second: int
    identical: bool  # pixels; else the images overlap on the ground
    share: float  # common area over the area of the smaller footprint; 1 if identical


class LeakRate(NamedTuple):
    """The number of pairs across the parts of one split, and the share of images that they affect."""

    split: str  # name and number of the split, such as 'published 1'
    pairs: int  # of images in two different parts
    val: float  # share of the validation images that have a partner in train; NaN if there are no such images
    test: float  # the same of the test images
    left_out: int = 0  # images that the split uses in no part, to keep the parts apart

    def __str__(self) -> str:
        shares = ", ".join(
            f"{share:.0%} of {part}"
            for part, share in (("val", self.val), ("test", self.test))
            if not math.isnan(share)
        )
        apart = f"; {self.left_out} images left out to keep the parts apart" if self.left_out else ""
        pairs = f"{self.pairs} pair{'' if self.pairs == 1 else 's'}"
        return f"{self.split}: {pairs} across parts; with a partner in train: {shares or 'none'}{apart}"


def fingerprint(path: Path) -> ImageFingerprint:
    """Return an image's footprint, size and a digest of its central square; 0.4 ms, little more than opening it.

    Identical images have identical central squares. Two images that differ outside of it only are taken for identical,
    which in a split only means that they stay together. A file that cannot be read has no digest, so that it equals no
    other; reading the sample raises the error.
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
    """Return an image's footprint and size without reading pixels, at half the cost of ``fingerprint``.

    Results are cached until the file changes, because a phase opens its data again for each of its steps.
    """
    try:
        state = path.stat()
    except OSError:
        return ImageFingerprint(path, path.name, "")
    return _located(path, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=4096)  # more than twice the files of RID or of AIRS; about 2 MiB
def _located(path: Path, size: int, modified: int) -> ImageFingerprint:
    try:
        with geotiff.open_raster(path) as dataset:
            return ImageFingerprint(path, path.name, "", footprint_of(dataset), dataset.shape)
    except FileError:
        return ImageFingerprint(path, path.name, "")


def footprint_of(dataset: Any) -> Footprint | None:
    """Return the footprint of an open raster, by its transform, ground control points or RPCs; None if it has none."""
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
            return Footprint(_RPC_CRS, corners) if np.isfinite(corners).all() else None
    return None


def pixel_digest(image_HWC: Pixels) -> str:
    """Return a 128-bit BLAKE2b digest of an image in memory, as hex digits."""
    return hashlib.blake2b(np.ascontiguousarray(image_HWC).tobytes(), digest_size=16).hexdigest()


def find_pairs(images: Sequence[ImageFingerprint]) -> list[OverlappingPair]:
    """Return all pairs with identical pixels, and those whose footprints overlap by more than LEAST_OVERLAP."""
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
    identical_indices = {(pair.first, pair.second) for pair in identical}
    overlapping = [pair for members, corners in on_common_ground(images) for pair in _overlapping(members, corners)]
    return identical + [pair for pair in overlapping if (pair.first, pair.second) not in identical_indices]


def on_common_ground(images: Sequence[ImageFingerprint]) -> list[tuple[list[int], _Corners]]:
    """Reproject the footprints to one coordinate system, that of most images.

    Returns:
        Groups of images (indices) that can be compared with each other, each with the corners (G,4,2) of its
        footprints. A coordinate system that cannot be transformed to the common one, such as a local one, has a group
        of its own.
    """
    by_crs: dict[str, list[int]] = defaultdict(list)
    for i, image in enumerate(images):
        if image.footprint is not None:
            by_crs[image.footprint.crs].append(i)
    groups: list[tuple[list[int], _Corners]] = []
    for crs, members in sorted(by_crs.items(), key=lambda group: -len(group[1])):
        corners = np.array([footprint.corners for i in members if (footprint := images[i].footprint)])
        common = next(iter(groups), None)
        moved = _reprojected(corners, crs, max(by_crs, key=lambda name: len(by_crs[name]))) if common else None
        if common is not None and moved is not None:
            groups[0] = ([*common[0], *members], np.concatenate([common[1], moved]))
        else:
            groups.append((members, corners))
    return groups


def _reprojected(corners_G42: _Corners, crs: str, common: str) -> _Corners | None:
    """Transform corners to another coordinate system; None if there is no transformation."""
    try:
        xs, ys = warp.transform(crs, common, *corners_G42.reshape(-1, 2).T)
    except (RasterioError, CPLE_BaseError):
        return None
    moved = np.array([xs, ys]).T.reshape(corners_G42.shape)
    return moved if np.isfinite(moved).all() else None


def _overlapping(members: Sequence[int], corners_G42: _Corners) -> Iterator[OverlappingPair]:
    """Yield the pairs of one group whose footprints overlap by more than LEAST_OVERLAP."""
    corners_G42 = corners_G42 - corners_G42.min((0, 1))  # areas of large coordinates would lose digits
    low, high = corners_G42.min(1), corners_G42.max(1)
    following = np.roll(corners_G42, -1, axis=1)
    areas = abs((corners_G42[..., 0] * following[..., 1] - corners_G42[..., 1] * following[..., 0]).sum(1)) / 2
    for n, second in enumerate(members):
        common = (np.minimum(high[n], high[:n]) - np.maximum(low[n], low[:n])).clip(0).prod(1)
        smaller = np.minimum(areas[n], areas[:n])
        # ``common`` is the overlap of the bounding boxes, an upper bound: only its candidates are intersected exactly.
        for m in np.flatnonzero(common > LEAST_OVERLAP * smaller).tolist():
            share = _common_area(corners_G42[m], corners_G42[n]) / smaller[m]
            if share > LEAST_OVERLAP:
                first, last = sorted((members[m], second))
                yield OverlappingPair(first, last, False, float(min(share, 1.0)))


def _common_area(first_42: _Corners, second_42: _Corners) -> float:
    """Return the area of the intersection of two quadrangles."""
    origin = first_42.min(0)  # OpenCV computes in float32, too coarse for the metres of a northing
    scale = float(np.ptp(first_42, axis=0).max())
    area, _ = cv2.intersectConvexConvex(*((c - origin).astype(np.float32) / scale for c in (first_42, second_42)))
    return float(area) * scale**2


def leak_rate(split: str, pairs: Sequence[OverlappingPair], parts: Sequence[str], left_out: int = 0) -> LeakRate:
    """Return the leak rate of a split; ``parts`` holds 'train', 'val', 'test' or '' (in none) for each image."""
    crossing = [pair for pair in pairs if _crosses(pair, parts)]
    partnered = {i for pair in crossing for i in pair[:2] if "train" in (parts[pair.first], parts[pair.second])}
    shares = {}
    for part in ("val", "test"):
        members = [i for i, part_of_image in enumerate(parts) if part_of_image == part]
        shares[part] = sum(i in partnered for i in members) / len(members) if members else math.nan
    return LeakRate(split, len(crossing), shares["val"], shares["test"], left_out)


def find_leaks(
    images: Sequence[ImageFingerprint], pairs: Sequence[OverlappingPair], parts: Sequence[str], split_name: str
) -> Iterator[FileError]:
    """Yield one error for each image with the pixels of an image of another part, and one for each that overlaps one.

    Of a pair only the image of the later part (train, val, test) is reported, with all its partners.
    """
    partners: dict[tuple[int, bool], list[tuple[int, float]]] = defaultdict(list)
    for pair in pairs:
        if _crosses(pair, parts):
            other, reported = sorted(pair[:2], key=lambda i: (_PART_ORDER.get(parts[i], 0), i))
            partners[reported, pair.identical].append((other, pair.share))
    for (reported, identical), leaks in sorted(partners.items()):
        others = ", ".join(f"{images[other].label} in {parts[other]}" for other, _ in leaks)
        name = f"{images[reported].label} in {parts[reported]}"
        if identical:
            text = f"{name} has the same pixels as {others} ({split_name}). Remove one of them, or use split=spatial."
        else:
            text = (
                f"{name} shows up to {max(share for _, share in leaks):.0%} of the ground of {others} ({split_name}). "
                "Scores on it are too good; keep neighbours in one part (split=spatial)."
            )
        yield FileError(FileErrorKind.IDENTICAL if identical else FileErrorKind.OVERLAP, images[reported].path, text)


def _crosses(pair: OverlappingPair, parts: Sequence[str]) -> bool:
    """Return whether the images of a pair are in two different parts."""
    first, second = parts[pair.first], parts[pair.second]
    return bool(first and second and first != second)
