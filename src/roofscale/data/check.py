"""Look at every file of the data sets under a folder and name what is broken, missing, empty or leaking.

RID's superstructure masks are checked for damage, size and ids; one without any superstructure is an ordinary roof and
not reported. Segment masks, AIRS labels and Roofline elements with nothing in them are, as ``empty``.
"""

import hashlib
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rasterio.windows import Window
from tqdm import tqdm

from roofscale.data import airs, folders, geotiff, rid, roofline
from roofscale.data.leaks import (
    LeakRate,
    Pair,
    Seen,
    digest_of,
    find_leaks,
    find_pairs,
    footprint_of,
    glance,
    leak_rate,
)
from roofscale.data.places import find_dataset, origin, present
from roofscale.data.problem import FileProblem, Kind
from roofscale.data.split import Split, random_split, spatial_split
from roofscale.errors import DataError

_STRIP = 512  # rows decoded at once, so that a 10000 px tile takes 15 MB and not 300
_Job = TypeVar("_Job")


@dataclass(frozen=True)
class DatasetReport:
    """What was found in one data set."""

    name: str
    folder: str
    samples: int  # images (AIRS: tiles)
    splits: dict[str, int]  # 'split 1 train': 1000, or 'train': 857
    leaks: tuple[LeakRate, ...]  # of the splits that a run may use, the published ones and split=spatial
    notes: tuple[str, ...]
    problems: tuple[FileProblem, ...]

    def as_dict(self) -> dict[str, Any]:
        """The report as plain JSON values; a problem as ``{kind, path, text}``."""
        return {
            "name": self.name,
            "folder": self.folder,
            "samples": self.samples,
            "splits": self.splits,
            "leaks": [rate._asdict() for rate in self.leaks],
            "notes": list(self.notes),
            "problems": [{"kind": str(p.kind), "path": str(p.path), "text": p.text} for p in self.problems],
        }


@dataclass(frozen=True)
class CheckReport:
    """What was found under a folder."""

    path: str
    datasets: tuple[DatasetReport, ...]

    @property
    def problems(self) -> tuple[FileProblem, ...]:
        """All problems of all data sets."""
        return tuple(problem for dataset in self.datasets for problem in dataset.problems)

    @property
    def ok(self) -> bool:
        """Whether nothing at all is wrong."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {"path": self.path, "ok": self.ok, "datasets": [dataset.as_dict() for dataset in self.datasets]}


@dataclass
class _Findings:
    """What one image, its masks included, turned out to be."""

    seen: Seen
    problems: list[FileProblem] = field(default_factory=list)


def check(path: Path) -> CheckReport:
    """Check every data set at or under ``path``, with progress bars on a terminal.

    Raises:
        DataError: there is no data set.
    """
    names = present(path)
    if not names:
        raise DataError(
            f"{path}: no data set found here. Expected a folder {rid.IMAGES} (RID), a file "
            f"{roofline.FILE} (Roofline) or folders train/image and train/label (AIRS), at most three "
            "folders down."
        )
    checks = {"rid": _check_rid, "roofline": _check_roofline, "airs": _check_airs}
    return CheckReport(str(path), tuple(checks[name](find_dataset(name, path)) for name in names))


def _on_all_cores(name: str, work: Callable[[_Job], _Findings], jobs: Sequence[_Job]) -> list[_Findings]:
    """Threads are enough: decoding and hashing let other threads run."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(
            tqdm(pool.map(work, jobs), f"checking {name}", len(jobs), file=sys.stderr, leave=False, disable=None)
        )


def _check_rid(folder: Path) -> DatasetReport:
    numbers = rid.published_split_numbers(folder)
    listed = {(n, part): folders.read_names(rid.split_file(folder, part, n)) for n in numbers for part in rid.PARTS}
    ids = {
        file.stem
        for kind, ending in ((rid.IMAGES, "tif"), (rid.SEGMENTS, "png"), (rid.SUPERSTRUCTURES, "png"))
        for file in (folder / kind).glob(f"*.{ending}")
    }
    ids |= {name for names in listed.values() for name in names}
    ordered = sorted(ids, key=folders.natural_key)
    findings = dict(zip(ordered, _on_all_cores("rid", lambda id_: _check_rid_image(folder, id_), ordered), strict=True))
    problems = [problem for found in findings.values() for problem in found.problems]
    source = rid.open_all(folder)
    images = [findings[id_].seen for id_ in source.ids]
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
    rates += _seeded_rates("spatial", _spatial(source.seen()), pairs, len(images))
    notes += _nowhere(images)
    return DatasetReport("rid", str(folder), len(ordered), splits, tuple(rates), tuple(notes), tuple(problems))


def _listed_twice(folder: Path, number: int, listed: dict[str, tuple[str, ...]]) -> Iterator[FileProblem]:
    for one, other in itertools.combinations(rid.PARTS, 2):
        for id_ in sorted(set(listed[one]) & set(listed[other]), key=folders.natural_key):
            yield FileProblem(
                Kind.IDENTICAL,
                folder / rid.IMAGES / f"{id_}.tif",
                f"{id_}.tif is listed in {one} and in {other} (published split {number}). Take it out of one of them.",
            )


def _spatial(seen: Sequence[Seen]) -> Callable[[int], Split]:
    """The spatial split as training makes it, from glances, by its number; it is then judged on whole images."""
    pairs = find_pairs(seen)
    return lambda number: spatial_split(seen, pairs, number)


def _seeded_rates(
    name: str, split: Callable[[int], Split], pairs: Sequence[Pair], count: int, members: int | None = None
) -> Iterator[LeakRate]:
    """The leaks of a seeded split by its number; it deals out the first ``members`` of all images."""
    for number in range(1, 6):
        parts = split(number).part_names(count)
        left_out = parts[:members].count("")
        yield leak_rate(f"{name} {number}", pairs, parts, left_out)


def _check_rid_image(folder: Path, id_: str) -> _Findings:
    image_file = folder / rid.IMAGES / f"{id_}.tif"
    found, shape = _check_raster(image_file)
    for kind, largest in ((rid.SEGMENTS, rid.SEGMENT_BACKGROUND), (rid.SUPERSTRUCTURES, rid.SUPERSTRUCTURE_BACKGROUND)):
        file = folder / kind / f"{id_}.png"
        try:
            mask = geotiff.read_mask_png(file, largest)
            if shape is not None:
                geotiff.check_same_size(image_file, shape, file, (mask.shape[0], mask.shape[1]))
            if kind == rid.SEGMENTS and (mask == rid.SEGMENT_BACKGROUND).all():
                found.problems.append(_empty(file))
        except FileProblem as problem:
            found.problems.append(problem)
    return found


def _check_raster(file: Path) -> tuple[_Findings, tuple[int, int] | None]:
    """Decode a whole RGB image strip by strip; the second value is (height, width), or None where it is not sound."""
    digest = hashlib.blake2b(digest_size=16)
    try:
        with geotiff.opened(file) as dataset:
            geotiff.check_rgb(file, dataset)
            for window in _strips(*dataset.shape):
                digest.update(dataset.read((1, 2, 3), window=window).tobytes())
            shape: tuple[int, int] = dataset.shape
            footprint = footprint_of(dataset)
    except FileProblem as problem:
        return _Findings(Seen(file, file.name, ""), [problem]), None
    return _Findings(Seen(file, file.name, f"{shape[0]}x{shape[1]} {digest.hexdigest()}", footprint)), shape


def _strips(height: int, width: int) -> Iterator[Window]:
    for row in range(0, height, _STRIP):
        yield Window(0, row, width, min(_STRIP, height - row))


def _empty(file: Path, sample: str = "") -> FileProblem:
    return FileProblem(
        Kind.EMPTY,
        file,
        f"{sample}the mask marks nothing at all; expected at least one px. Look at it; if it is right, it may stay.",
    )


def _check_airs(folder: Path) -> DatasetReport:
    tiles = {part: airs.tiles_of(folder, part) for part in airs.PARTS}
    images: list[Seen] = []
    problems: list[FileProblem] = []
    for part, members in tiles.items():
        problems += _strangers(airs.part_folder(folder, part), members)
        for found in _on_all_cores(f"airs {part}", _check_tile, members):
            problems += found.problems
            images.append(found.seen)
    pairs = find_pairs(images)
    parts = [part for part, members in tiles.items() for _ in members]
    problems += find_leaks(images, pairs, parts, "train, val and test")
    dealt = [*tiles["train"], *tiles["val"]]
    split = _spatial([glance(tile.image) for tile in dealt])
    rates = [leak_rate("published", pairs, parts), *_seeded_rates("spatial", split, pairs, len(images), len(dealt))]
    count = {part: len(members) for part, members in tiles.items() if members}
    return DatasetReport(
        "airs", str(folder), sum(count.values()), count, tuple(rates), _nowhere(images), tuple(problems)
    )


def _nowhere(images: Sequence[Seen]) -> tuple[str, ...]:
    """A note where only identical images can be found, and no neighbours."""
    blind = any(image.digest for image in images) and not any(image.footprint for image in images)
    return ("no image says where on the ground it lies, so overlaps cannot be found",) if blind else ()


def _strangers(place: Path, tiles: Iterable[airs.Tile]) -> Iterator[FileProblem]:
    """Labels whose image is not there, or that no list names."""
    known = {tile.id for tile in tiles}
    for label in sorted((place / "label").glob("*.tif")):
        if label.stem not in known and not label.stem.endswith(airs.VISUAL):
            image = place / "image" / label.name
            if not image.is_file():
                yield FileProblem(
                    Kind.MISSING,
                    image,
                    f"this image is missing; its label {label} is there. Restore the image, or remove the label.",
                )


def _check_tile(tile: airs.Tile) -> _Findings:
    found, shape = _check_raster(tile.image)
    try:
        with geotiff.opened(tile.label) as label:
            geotiff.check_band(tile.label, label)
            if shape is not None:
                geotiff.check_same_size(tile.image, shape, tile.label, label.shape)
            largest = max(int(label.read(1, window=window).max()) for window in _strips(*label.shape))
        airs.check_ids(tile.label, largest)
        if largest == 0:
            found.problems.append(_empty(tile.label))
    except FileProblem as problem:
        found.problems.append(problem)
    return found


def _check_roofline(folder: Path) -> DatasetReport:
    try:
        source = roofline.open_all(folder)
    except FileProblem as problem:
        return DatasetReport("roofline", str(folder), 0, {}, (), (), (problem,))
    findings = [
        _check_roofline_sample(source, i)
        for i in tqdm(range(len(source)), "checking roofline", file=sys.stderr, leave=False, disable=None)
    ]
    problems = [problem for found in findings for problem in found.problems]
    images = [found.seen for found in findings]
    pairs, count = find_pairs(images), len(images)
    # Without an official split any two samples may come to lie in different parts.
    problems += find_leaks(images, pairs, [f"row {i}" for i in range(count)], "the random split may part them")
    rates = [
        *_seeded_rates("random", lambda number: random_split(count, number), pairs, count),
        *_seeded_rates("spatial", _spatial(source.seen()), pairs, count),
    ]
    notes = ["no official split: a seeded random one is used"]
    if what := origin(folder):
        notes.append(f"{what}; what is joined are the last samples of the file")
    return DatasetReport("roofline", str(folder), count, {}, tuple(rates), tuple(notes), tuple(problems))


def _check_roofline_sample(source: roofline.RooflineSource, index: int) -> _Findings:
    label = f"sample {source.indices[index]}"
    try:
        sample = source.read(index)
    except FileProblem as problem:
        return _Findings(Seen(source.file, label, ""), [problem])
    empty = [] if sample.target_HWK.any() else [_empty(source.file, f"{label}: ")]
    return _Findings(Seen(source.file, label, digest_of(sample.image_HWC)), empty)
