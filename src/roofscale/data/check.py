"""The check of all files of the data sets under a folder: what is broken, missing, empty, implausible or leaking.

RID's superstructure masks are checked for damage, size and ids; one without any superstructure is an ordinary roof and
not reported. Segment masks, AIRS labels and Roofline elements with nothing in them are reported as ``empty``.
"""

import hashlib
import itertools
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rasterio.windows import Window
from tqdm import tqdm

from roofscale.data import airs, folders, geotiff, rid, roofline
from roofscale.data.file_error import FileError, FileErrorKind
from roofscale.data.leaks import (
    Footprint,
    ImageFingerprint,
    LeakRate,
    OverlappingPair,
    find_leaks,
    find_pairs,
    fingerprint,
    footprint_of,
    leak_rate,
    on_common_ground,
    pixel_digest,
)
from roofscale.data.locate import available_datasets, describe_origin, find_dataset
from roofscale.data.plausible import Look, blank, doubts, look_at
from roofscale.data.split import Split, random_split, spatial_split
from roofscale.errors import DataError, shown

_MAX_OFFSET_PX = 0.5  # between the corners of an image and its label; up to half a px is rounding
_STRIP_ROWS = 512  # decoded at once, so that a 10000 px tile takes 15 MB and not 300
_Job = TypeVar("_Job")


@dataclass(frozen=True)
class DatasetReport:
    """The result of the check for one data set."""

    name: str
    folder: str
    samples: int  # images (AIRS: tiles)
    splits: dict[str, int]  # number of samples, such as {'split 1 train': 1000} or {'train': 857}
    leaks: tuple[LeakRate, ...]  # of the splits that a run may use: published, and spatial or random
    notes: tuple[str, ...]
    problems: tuple[FileError, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values; a problem as ``{kind, path, text}``."""
        return {
            "name": self.name,
            "folder": self.folder,
            "samples": self.samples,
            "splits": self.splits,
            "leaks": [rate._asdict() for rate in self.leaks],
            "notes": list(self.notes),
            "problems": [{"kind": str(p.kind), "path": shown(p.path), "text": p.text} for p in self.problems],
        }


@dataclass(frozen=True)
class CheckReport:
    """The result of the check for all data sets under a folder."""

    path: str
    datasets: tuple[DatasetReport, ...]

    @property
    def problems(self) -> tuple[FileError, ...]:
        """All problems of all data sets."""
        return tuple(problem for dataset in self.datasets for problem in dataset.problems)

    @property
    def ok(self) -> bool:
        """Whether there is no problem in any data set."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return {"path": self.path, "ok": self.ok, "datasets": [dataset.as_dict() for dataset in self.datasets]}


@dataclass
class _Findings:
    """The result of the check for one image and its masks."""

    image: ImageFingerprint
    problems: list[FileError] = field(default_factory=list)
    look: Look | None = None  # None if the image cannot be read

    def add_mask(self, any_px: bool, all_px: bool) -> None:
        """Record whether the mask marks any px and all px."""
        if self.look:
            self.look = self.look._replace(any_marked=any_px, all_marked=all_px)


def check(path: Path) -> CheckReport:
    """Check every data set at or under ``path``, with progress bars on a terminal.

    Raises:
        DataError: there is no data set, or a split file cannot be read.
    """
    names = available_datasets(path)
    if not names:
        raise DataError(
            f"{path}: no data set found here. Expected a folder {rid.IMAGES} (RID), a file "
            f"{roofline.FILE} (Roofline) or folders train/image and train/label (AIRS), at most three "
            "folders down."
        )
    checks = {"rid": _check_rid, "roofline": _check_roofline, "airs": _check_airs}
    return CheckReport(str(path), tuple(checks[name](find_dataset(name, path)) for name in names))


def _run_threaded(name: str, work: Callable[[_Job], _Findings], jobs: Sequence[_Job]) -> list[_Findings]:
    """Run ``work`` on all jobs; in threads, because decoding and hashing release the interpreter's lock."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(
            tqdm(pool.map(work, jobs), f"checking {name}", len(jobs), file=sys.stderr, leave=False, disable=None)
        )


def _check_rid(folder: Path) -> DatasetReport:
    numbers = rid.published_split_numbers(folder)
    listed = {(n, part): folders.read_names(rid.split_file(folder, part, n)) for n in numbers for part in rid.PARTS}
    ids = {id_ for kind, endings in rid.KINDS.items() for id_ in folders.names_in(folder / kind, endings)}
    ids |= {name for names in listed.values() for name in names}
    ordered = sorted(ids, key=folders.natural_key)
    findings = dict(zip(ordered, _run_threaded("rid", lambda id_: _check_rid_image(folder, id_), ordered), strict=True))
    problems = [problem for finding in findings.values() for problem in finding.problems]
    source = rid.open_all(folder)
    images = [findings[id_].image for id_ in source.ids]
    pairs, rates = find_pairs(images), []
    for n in numbers:
        part_of = {id_: part for part in rid.PARTS for id_ in listed[n, part]}
        parts = [part_of.get(id_, "") for id_ in source.ids]
        problems += _listed_twice(folder, n, {part: listed[n, part] for part in rid.PARTS})
        problems += find_leaks(images, pairs, parts, f"published split {n}")
        rates.append(leak_rate(f"published {n}", pairs, parts))
    splits = {f"split {n} {part}": len(names) for (n, part), names in listed.items()}
    unlisted = ids - {name for names in listed.values() for name in names}
    notes = [f"{len(unlisted)} image(s) are in no published split"] if unlisted else []
    if len(numbers) < 5:
        notes.append(f"published splits that are complete here: {', '.join(map(str, numbers)) or 'none'} of 1 to 5")
    rates += _seeded_rates("spatial", _spatial_splits(source.fingerprints()), pairs, len(images))
    notes += _footprint_notes(images)
    notes += filter(None, (folders.passed_over(folder / kind, endings) for kind, endings in rid.KINDS.items()))
    problems += doubts(folder, [finding.look for finding in findings.values() if finding.look])
    return DatasetReport("rid", str(folder), len(ordered), splits, tuple(rates), tuple(notes), tuple(problems))


def _listed_twice(folder: Path, number: int, listed: dict[str, tuple[str, ...]]) -> Iterator[FileError]:
    """Yield an error for each image that a published split lists in two of its parts."""
    for part, other in itertools.combinations(rid.PARTS, 2):
        for id_ in sorted(set(listed[part]) & set(listed[other]), key=folders.natural_key):
            yield FileError(
                FileErrorKind.IDENTICAL,
                folder / rid.IMAGES / f"{id_}.tif",
                f"{id_}.tif is listed in {part} and in {other} (published split {number}). Take it out of one of them.",
            )


def _spatial_splits(images: Sequence[ImageFingerprint]) -> Callable[[int], Split]:
    """Return a function that makes the spatial split of a number, from the fingerprints that training uses.

    Its leaks are then counted with the digests of whole images.
    """
    pairs = find_pairs(images)
    return lambda number: spatial_split(images, pairs, number)


def _seeded_rates(
    name: str, split: Callable[[int], Split], pairs: Sequence[OverlappingPair], count: int, members: int | None = None
) -> Iterator[LeakRate]:
    """Yield the leak rates of seeded splits 1 to 5, which are made of the first ``members`` of ``count`` images."""
    for number in range(1, 6):
        parts = split(number).split_of_each(count)
        left_out = parts[:members].count("")
        yield leak_rate(f"{name} {number}", pairs, parts, left_out)


def _check_rid_image(folder: Path, id_: str) -> _Findings:
    image_file = folders.file_named(folder / rid.IMAGES, id_, folders.TIFF)
    finding, shape = _check_raster(image_file)
    for kind, largest in ((rid.SEGMENTS, rid.SEGMENT_BACKGROUND), (rid.SUPERSTRUCTURES, rid.SUPERSTRUCTURE_BACKGROUND)):
        file = folders.file_named(folder / kind, id_, folders.PNG)
        try:
            mask = geotiff.read_mask_png(file, largest)
            if shape is not None:
                geotiff.check_same_size(image_file, shape, file, (mask.shape[0], mask.shape[1]))
            if kind == rid.SEGMENTS:
                roof = mask != rid.SEGMENT_BACKGROUND
                finding.add_mask(bool(roof.any()), bool(roof.all()))
                if not roof.any():
                    finding.problems.append(_empty(file))
        except FileError as problem:
            finding.problems.append(problem)
    return finding


def _check_raster(file: Path) -> tuple[_Findings, tuple[int, int] | None]:
    """Decode a whole RGB image strip by strip; the second value is its (height, width), or None if it is broken."""
    digest = hashlib.blake2b(digest_size=16)
    darkest, brightest = np.full(3, 255), np.zeros(3)
    try:
        with geotiff.open_raster(file) as dataset:
            bands = geotiff.rgb_bands(file, dataset)
            for window in _strips(*dataset.shape):
                pixels_3HW = dataset.read(bands, window=window)
                digest.update(pixels_3HW.tobytes())
                darkest = np.minimum(darkest, pixels_3HW.min((1, 2)))
                brightest = np.maximum(brightest, pixels_3HW.max((1, 2)))
            shape: tuple[int, int] = dataset.shape
            footprint = footprint_of(dataset)
    except FileError as problem:
        return _Findings(ImageFingerprint(file, shown(file.name), ""), [problem]), None
    image = ImageFingerprint(file, file.name, f"{shape[0]}x{shape[1]} {digest.hexdigest()}", footprint, shape)
    look = Look(blank=bool((darkest == brightest).all()), brightest=int(brightest.max()))
    return _Findings(image, [blank(file)] if look.blank else [], look), shape


def _strips(height: int, width: int) -> Iterator[Window]:
    for row in range(0, height, _STRIP_ROWS):
        yield Window(0, row, width, min(_STRIP_ROWS, height - row))


def _empty(file: Path, sample: str = "") -> FileError:
    return FileError(
        FileErrorKind.EMPTY,
        file,
        f"{sample}the mask marks nothing at all; expected at least one px. Look at it; if it is right, it may stay.",
    )


def _check_airs(folder: Path) -> DatasetReport:
    tiles = {part: airs.tiles_of(folder, part) for part in airs.PARTS}
    images: list[ImageFingerprint] = []
    problems: list[FileError] = []
    looks: list[Look] = []
    notes: list[str] = []
    for part, part_tiles in tiles.items():
        part_folder = airs.split_folder(folder, part)
        notes += filter(None, (folders.passed_over(part_folder / kind, folders.TIFF) for kind in ("image", "label")))
        problems += _orphan_labels(part_folder, part_tiles)
        for finding in _run_threaded(f"airs {part}", _check_tile, part_tiles):
            problems += finding.problems
            images.append(finding.image)
            looks += [finding.look] if finding.look else []
    pairs = find_pairs(images)
    parts = [part for part, part_tiles in tiles.items() for _ in part_tiles]
    problems += find_leaks(images, pairs, parts, "train, val and test")
    problems += doubts(folder, looks)
    members = [*tiles["train"], *tiles["val"]]  # training splits these, and leaves test alone
    split = _spatial_splits([fingerprint(tile.image) for tile in members])
    rates = [leak_rate("published", pairs, parts), *_seeded_rates("spatial", split, pairs, len(images), len(members))]
    count = {part: len(part_tiles) for part, part_tiles in tiles.items() if part_tiles}
    return DatasetReport(
        "airs",
        str(folder),
        sum(count.values()),
        count,
        tuple(rates),
        (*notes, *_footprint_notes(images)),
        tuple(problems),
    )


def _footprint_notes(images: Sequence[ImageFingerprint]) -> Iterator[str]:
    """Yield a note if overlaps on the ground cannot be found, or not between all images."""
    georeferenced = [image for image in images if image.footprint]
    if any(image.digest for image in images) and not georeferenced:
        yield "no image says where on the ground it lies, so overlaps cannot be found"
    elif others := sum(bool(image.digest) for image in images) - len(georeferenced):
        yield f"{others} image(s) do not say where on the ground they lie, so overlaps of these cannot be found"
    if len(groups := on_common_ground(images)) > 1:
        systems = ", ".join(
            f"{len(members)} in {footprint.crs[:40]}"
            for members, _ in groups
            if (footprint := images[members[0]].footprint)
        )
        yield f"coordinate systems that cannot be brought into one, so overlaps between them cannot be found: {systems}"


def _orphan_labels(part_folder: Path, tiles: Iterable[airs.Tile]) -> Iterator[FileError]:
    """Yield an error for each label of a part that belongs to none of its tiles and whose image is missing."""
    labels = {tile.label for tile in tiles}
    for name in folders.names_in(part_folder / "label", folders.TIFF):
        label = folders.file_named(part_folder / "label", name, folders.TIFF)
        if label not in labels and not name.endswith(airs.VISUAL):
            image = folders.file_named(part_folder / "image", name, folders.TIFF)
            if not image.is_file():
                yield FileError(
                    FileErrorKind.MISSING,
                    image,
                    f"this image is missing; its label {label} is there. Restore the image, or remove the label.",
                )


def _check_tile(tile: airs.Tile) -> _Findings:
    finding, shape = _check_raster(tile.image)
    try:
        with geotiff.open_raster(tile.label) as label:
            geotiff.check_band(tile.label, label)
            if shape is not None:
                geotiff.check_same_size(tile.image, shape, tile.label, label.shape)
            strips = (label.read(1, window=window) for window in _strips(*label.shape))
            spans = [(int(strip.min()), int(strip.max())) for strip in strips]
            smallest, largest = min(low for low, _ in spans), max(high for _, high in spans)
            finding.problems += _offset_errors(tile, finding.image, footprint_of(label))
        airs.check_label_values(tile.label, largest)
        finding.add_mask(any_px=largest > 0, all_px=smallest > 0)
        if largest == 0:
            finding.problems.append(_empty(tile.label))
    except FileError as problem:
        finding.problems.append(problem)
    return finding


def _offset_errors(tile: airs.Tile, image: ImageFingerprint, label: Footprint | None) -> Iterator[FileError]:
    """Yield an error if a label is georeferenced elsewhere than its image; none if their crs is missing or differs."""
    if image.footprint is None or label is None or image.footprint.crs != label.crs or image.shape is None:
        return
    (x, y), (right_x, right_y) = image.footprint.corners[:2]
    px = math.dist((x, y), (right_x, right_y)) / image.shape[1]  # size of one, in units of the crs
    offset = max(math.dist(*corners) for corners in zip(image.footprint.corners, label.corners, strict=True)) / px
    if offset > _MAX_OFFSET_PX:
        yield FileError(
            FileErrorKind.SHIFTED,
            tile.label,
            f"it lies {offset:.3g} px from its image {tile.image} on the ground; expected the same position. Export "
            "one of them again.",
        )


def _check_roofline(folder: Path) -> DatasetReport:
    try:
        source = roofline.open_all(folder)
    except FileError as problem:
        return DatasetReport("roofline", str(folder), 0, {}, (), (), (problem,))
    findings = [
        _check_roofline_sample(source, i)
        for i in tqdm(range(len(source)), "checking roofline", file=sys.stderr, leave=False, disable=None)
    ]
    problems = [problem for finding in findings for problem in finding.problems]
    problems += doubts(source.file, [finding.look for finding in findings if finding.look])
    images = [finding.image for finding in findings]
    pairs, count = find_pairs(images), len(images)
    # Without an official split any two samples may be in different parts.
    problems += find_leaks(images, pairs, [f"row {i}" for i in range(count)], "the random split may part them")
    rates = [
        *_seeded_rates("random", lambda number: random_split(count, number), pairs, count),
        *_seeded_rates("spatial", _spatial_splits(source.fingerprints()), pairs, count),
    ]
    notes = ["no official split: a seeded random one is used"]
    if origin := describe_origin(folder):
        notes.append(f"{origin}; what is joined are the last samples of the file")
    return DatasetReport("roofline", str(folder), count, {}, tuple(rates), tuple(notes), tuple(problems))


def _check_roofline_sample(source: roofline.RooflineSource, index: int) -> _Findings:
    label = f"sample {source.indices[index]}"
    try:
        sample = source.read(index)
    except FileError as problem:
        return _Findings(ImageFingerprint(source.file, label, ""), [problem])
    look = look_at(sample, source.labelled)
    problems = [] if look.any_marked else [_empty(source.file, f"{label}: ")]
    problems += [blank(source.file, f"{label}: ")] if look.blank else []
    return _Findings(ImageFingerprint(source.file, label, pixel_digest(sample.image_HWC)), problems, look)
