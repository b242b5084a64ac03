"""Find images that two parts of a split share: the same pixels, or the same ground."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from roofscale.data.problem import FileProblem, Kind

# Tiles that abut share an edge, and rounding of their corners a sliver: that is no leak.
LEAST_OVERLAP = 0.01  # share of the smaller footprint


@dataclass(frozen=True)
class Footprint:
    """A box on the ground; boxes compare within one coordinate system only."""

    crs: str
    left: float
    bottom: float
    right: float
    top: float


@dataclass(frozen=True)
class Placed:
    """One image as it lies in a part of a split."""

    part: str
    path: Path
    label: str  # what to call it in a message: a file name, or a sample of a file
    digest: str  # of its pixels
    footprint: Footprint | None = None


def find_leaks(images: Sequence[Placed], split_name: str) -> Iterator[FileProblem]:
    """Yield one problem for each image that shares pixels, and one for each that shares ground, with an image of
    another part; only the image whose part comes later is named as the culprit, with all its partners."""
    yield from _identical(images, split_name)
    by_crs: dict[str, list[Placed]] = defaultdict(list)
    for image in images:
        if image.footprint is not None:
            by_crs[image.footprint.crs].append(image)
    for group in by_crs.values():
        yield from _overlapping(group, split_name)


def _identical(images: Sequence[Placed], split_name: str) -> Iterator[FileProblem]:
    first_seen: dict[str, list[Placed]] = defaultdict(list)
    for image in images:
        others = [other for other in first_seen[image.digest] if other.part != image.part]
        if others:
            yield FileProblem(
                Kind.IDENTICAL,
                image.path,
                f"{image.label} in {image.part} has the same pixels as "
                f"{_named(others)} ({split_name}). Remove one of them, or use another split.",
            )
        first_seen[image.digest].append(image)


def _overlapping(images: Sequence[Placed], split_name: str) -> Iterator[FileProblem]:
    boxes = np.array([(f.left, f.bottom, f.right, f.top) for image in images if (f := image.footprint)])
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    parts = np.array([image.part for image in images])
    digests = np.array([image.digest for image in images])
    for i, image in enumerate(images):
        common = np.minimum(boxes[i, 2:], boxes[:i, 2:]) - np.maximum(boxes[i, :2], boxes[:i, :2])
        shares = common.clip(0).prod(1) / np.minimum(areas[i], areas[:i])
        found = (shares > LEAST_OVERLAP) & (parts[:i] != image.part) & (digests[:i] != image.digest)
        if found.any():
            others = [images[j] for j in np.flatnonzero(found).tolist()]
            yield FileProblem(
                Kind.OVERLAP,
                image.path,
                f"{image.label} in {image.part} shows up to "
                f"{shares[found].max():.0%} of the ground of {_named(others)} ({split_name}). "
                "Scores on it are too good; keep neighbours in one part.",
            )


def _named(images: Sequence[Placed]) -> str:
    return ", ".join(f"{image.label} in {image.part}" for image in images)
