"""Look at every file of the data sets under a folder and name what is broken, missing, empty or leaking.

RID's superstructure masks are checked for damage, size and ids; one without any superstructure is an ordinary roof and
not reported. Segment masks, AIRS labels and Roofline elements with nothing in them are, as ``empty``.
"""

import dataclasses
import hashlib
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
from roofscale.data.leaks import Footprint, Placed, find_leaks
from roofscale.data.problem import FileProblem, Kind
from roofscale.data.sources import find_dataset, present
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
    notes: tuple[str, ...]
    problems: tuple[FileProblem, ...]


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
        """The report as plain JSON values; a problem as ``{kind, path, text}``."""
        datasets = []
        for dataset in self.datasets:
            plain = {f.name: getattr(dataset, f.name) for f in dataclasses.fields(dataset)}
            problems = [{"kind": str(p.kind), "path": str(p.path), "text": p.text} for p in dataset.problems]
            datasets.append({**plain, "notes": list(dataset.notes), "problems": problems})
        return {"path": self.path, "ok": self.ok, "datasets": datasets}


@dataclass
class _Findings:
    """What one image, its masks included, turned out to be."""

    digest: str = ""  # of the pixels; empty: not readable
    footprint: Footprint | None = None
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
    for n in numbers:
        placed = [
            Placed(
                part, folder / rid.IMAGES / f"{id_}.tif", f"{id_}.tif", findings[id_].digest, findings[id_].footprint
            )
            for part in rid.PARTS
            for id_ in listed[n, part]
            if findings[id_].digest
        ]
        problems += find_leaks(placed, f"published split {n}")
    splits = {f"split {n} {part}": len(names) for (n, part), names in listed.items()}
    unlisted = ids - {name for names in listed.values() for name in names}
    notes = [f"{len(unlisted)} image(s) are in no published split"] if unlisted else []
    if len(numbers) < 5:
        notes.append(f"published splits that are complete here: {', '.join(map(str, numbers)) or 'none'} of 1 to 5")
    return DatasetReport("rid", str(folder), len(ordered), splits, tuple(notes), tuple(problems))


def _check_rid_image(folder: Path, id_: str) -> _Findings:
    image_file = folder / rid.IMAGES / f"{id_}.tif"
    found = _Findings()
    shape = _check_raster(image_file, found)
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


def _check_raster(file: Path, found: _Findings) -> tuple[int, int] | None:
    """Decode a whole RGB image strip by strip; note hash and footprint, and return (height, width) if it is sound."""
    digest = hashlib.blake2b(digest_size=16)
    try:
        with geotiff.opened(file) as dataset:
            geotiff.check_rgb(file, dataset)
            for window in _strips(*dataset.shape):
                digest.update(dataset.read((1, 2, 3), window=window).tobytes())
            if dataset.crs is not None:
                found.footprint = Footprint(dataset.crs.to_string(), *dataset.bounds)
            shape: tuple[int, int] = dataset.shape
    except FileProblem as problem:
        found.problems.append(problem)
        return None
    found.digest = f"{shape[0]}x{shape[1]} {digest.hexdigest()}"
    return shape


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
    placed: list[Placed] = []
    problems: list[FileProblem] = []
    for part, members in tiles.items():
        problems += _strangers(airs.part_folder(folder, part), members)
        for tile, found in zip(members, _on_all_cores(f"airs {part}", _check_tile, members), strict=True):
            problems += found.problems
            if found.digest:
                placed.append(Placed(part, tile.image, tile.image.name, found.digest, found.footprint))
    problems += find_leaks(placed, "train, val and test")
    count = {part: len(members) for part, members in tiles.items() if members}
    return DatasetReport("airs", str(folder), sum(count.values()), count, (), tuple(problems))


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
    found = _Findings()
    shape = _check_raster(tile.image, found)
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
        return DatasetReport("roofline", str(folder), 0, {}, (), (problem,))
    findings = [
        _check_roofline_sample(source, i)
        for i in tqdm(range(len(source)), "checking roofline", file=sys.stderr, leave=False, disable=None)
    ]
    problems = [problem for found in findings for problem in found.problems]
    # Without an official split any two samples may come to lie in different parts.
    placed = [
        Placed(f"row {i}", source.file, f"sample {i}", found.digest) for i, found in enumerate(findings) if found.digest
    ]
    problems += find_leaks(placed, "the random split may part them")
    return DatasetReport(
        "roofline", str(folder), len(source), {}, ("no official split: a seeded random one is used",), tuple(problems)
    )


def _check_roofline_sample(source: roofline.RooflineSource, index: int) -> _Findings:
    try:
        sample = source.read(index)
    except FileProblem as problem:
        return _Findings(problems=[problem])
    digest = hashlib.blake2b(np.ascontiguousarray(sample.image_HWC).tobytes(), digest_size=16).hexdigest()
    empty = [] if sample.target_HWK.any() else [_empty(source.file, f"sample {index}: ")]
    return _Findings(digest, problems=empty)
