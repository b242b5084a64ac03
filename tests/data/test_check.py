"""The check names each kind of fault, with the path of the file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import from_origin

from roofscale.config import RunConfig
from roofscale.data import airs, rid
from roofscale.data.check import check
from roofscale.data.sources import open_sources
from roofscale.errors import DataError

Copy = Callable[[str], Path]


def found(root: Path) -> set[tuple[str, str]]:
    """Kind and file name of each problem; every path is that of a file of the data set."""
    report = check(root)
    assert report.ok == (not report.problems)
    assert all(str(root) in str(problem.path) for problem in report.problems)
    return {(str(problem.kind), problem.path.name) for problem in report.problems}


def test_generated_data_sets_are_sound_and_counted(generated: Path) -> None:
    report = check(generated)
    assert report.problems == ()
    by_name = {dataset.name: dataset for dataset in report.datasets}
    assert {name: dataset.samples for name, dataset in by_name.items()} == {"rid": 14, "roofline": 20, "airs": 4}
    assert by_name["airs"].splits == {"train": 2, "val": 1, "test": 1}
    assert by_name["rid"].splits["split 5 train"] == 9
    assert len(by_name["rid"].splits) == 15


def test_report_is_plain_json(copy_of: Copy) -> None:
    root = copy_of("rid")
    (rid.find(root) / rid.SEGMENTS / "2.png").unlink()
    plain = json.loads(json.dumps(check(root).as_dict()))
    assert plain["ok"] is False
    (problem,) = plain["datasets"][0]["problems"]
    assert problem["kind"] == "missing"
    assert problem["path"].endswith("2.png")


def test_no_data_set_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data set found"):
        check(tmp_path)


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _recolour(file: Path, value: int) -> None:
    mask = np.array(Image.open(file))
    mask[0, 0] = value
    Image.fromarray(mask).save(file)


def _resize(file: Path) -> None:
    Image.open(file).crop((0, 0, 50, 60)).save(file)


RID_FAULTS: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "no image": ("missing", f"{rid.IMAGES}/3.tif", Path.unlink),
    "no mask": ("missing", f"{rid.SEGMENTS}/3.png", Path.unlink),
    "no superstructures": ("missing", f"{rid.SUPERSTRUCTURES}/3.png", Path.unlink),
    "image cut short": ("broken", f"{rid.IMAGES}/3.tif", _truncate),
    "mask cut short": ("broken", f"{rid.SEGMENTS}/3.png", _truncate),
    "not a mask": ("broken", f"{rid.SEGMENTS}/3.png", lambda f: f.write_text("<html>404</html>")),
    "colours for ids": ("broken", f"{rid.SEGMENTS}/3.png", lambda f: Image.new("RGB", (96, 96)).save(f)),
    "id too high": ("unknown_id", f"{rid.SEGMENTS}/3.png", lambda f: _recolour(f, 18)),
    "superstructure id too high": ("unknown_id", f"{rid.SUPERSTRUCTURES}/3.png", lambda f: _recolour(f, 9)),
    "another size": ("mismatched", f"{rid.SEGMENTS}/3.png", _resize),
    "nothing marked": ("empty", f"{rid.SEGMENTS}/3.png", lambda f: Image.new("L", (96, 96), 17).save(f)),
}


@pytest.mark.parametrize("fault", RID_FAULTS)
def test_rid_fault_is_named_by_the_check_and_by_the_reader(copy_of: Copy, fault: str) -> None:
    kind, name, do = RID_FAULTS[fault]
    root = copy_of("rid")
    file = rid.find(root) / name
    do(file)
    assert found(root) == {(kind, file.name)}
    if kind == "empty" or rid.SUPERSTRUCTURES in name:
        return  # a sample like others: training uses neither of them otherwise
    source = rid.open_all(rid.find(root)) if file.exists() else rid.RidSource(rid.find(root), ("3",))
    with pytest.raises(DataError) as caught:
        source.read(source.ids.index("3"))
    assert str(caught.value).startswith(str(file))


def test_rid_names_in_a_split_file_need_an_image(copy_of: Copy) -> None:
    root = copy_of("rid")
    with rid.split_file(rid.find(root), "val", 2).open("a") as lines:
        lines.write("999.png\n")
    assert ("missing", "999.tif") in found(root)


def test_rid_leaks_are_named_by_split(copy_of: Copy) -> None:
    root = copy_of("rid")
    folder = rid.find(root)
    train, val = (rid.split_file(folder, part, 1).read_text().split() for part in ("train", "val"))
    copied, moved = (folder / rid.IMAGES / name.replace("png", "tif") for name in val[:2])
    original, neighbour = (folder / rid.IMAGES / name.replace("png", "tif") for name in train[:2])
    shutil.copy(original, copied)
    with rasterio.open(neighbour) as fixed, rasterio.open(moved, "r+") as shifted:
        west, north = fixed.bounds.left, fixed.bounds.top + 48 * fixed.res[1]  # half an image to the north
        shifted.transform = from_origin(west, north, *fixed.res)
    problems = [problem for problem in check(root).problems if "published split 1" in problem.text]
    assert {(str(p.kind), p.path) for p in problems} == {("leak_identical", copied), ("leak_overlap", moved)}
    by_kind = {str(problem.kind): problem.text for problem in problems}
    assert f"{original.name} in train" in by_kind["leak_identical"]
    assert f"50% of the ground of {neighbour.name} in train" in by_kind["leak_overlap"]


def _write_label(file: Path, do: Callable[[np.ndarray], np.ndarray]) -> None:
    with rasterio.open(file) as dataset:
        profile, label = dataset.profile, do(dataset.read(1))
    profile.update(height=label.shape[0], width=label.shape[1])
    with rasterio.open(file, "w", **profile) as dataset:
        dataset.write(label, 1)


AIRS_FAULTS: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "no label": ("missing", "label", Path.unlink),
    "no image": ("missing", "image", Path.unlink),
    "image cut short": ("broken", "image", _truncate),
    "visual twin as label": ("unknown_id", "label", lambda f: _write_label(f, lambda label: label * 255)),
    "another size": ("mismatched", "label", lambda f: _write_label(f, lambda label: label[:256])),
    "nothing marked": ("empty", "label", lambda f: _write_label(f, np.zeros_like)),
}


@pytest.mark.parametrize("fault", AIRS_FAULTS)
def test_airs_fault_is_named_by_the_check_and_by_the_reader(copy_of: Copy, fault: str) -> None:
    kind, what, do = AIRS_FAULTS[fault]
    root = copy_of("airs")
    tile = airs.tiles_of(airs.find(root), "train")[1]
    file = getattr(tile, what)
    do(file)
    assert found(root) == {(kind, file.name)}
    if kind == "empty":
        return
    config = RunConfig(datasets=("airs",), max_samples=0, image_size=288)
    source = open_sources(config, root)["airs"].train  # opening must not fail: on_bad_sample decides at the sample
    complaints = []
    for index in range(len(source)):
        try:
            source.read(index)
        except DataError as error:
            complaints.append(str(error))
    assert len(complaints) == 1
    assert complaints[0].startswith(str(file))


def test_airs_tile_in_two_parts_leaks(copy_of: Copy) -> None:
    root = copy_of("airs")
    train, val = (airs.tiles_of(airs.find(root), part)[0] for part in ("train", "val"))
    shutil.copy(train.image, val.image)
    assert ("leak_identical", val.image.name) in found(root)


def test_airs_label_without_image_is_named_though_no_list_has_it(copy_of: Copy) -> None:
    root = copy_of("airs")
    tile = airs.tiles_of(airs.find(root), "train")[0]
    shutil.copy(tile.label, tile.label.with_name("stray.tif"))
    assert found(root) == {("missing", "stray.tif")}


def test_roofline_faults_name_the_sample(copy_of: Copy) -> None:
    root = copy_of("roofline")
    file = root / "roofline" / "imdb.mat"
    with h5py.File(file, "r+") as handle:
        images, elements = handle["imdb/images"], handle["imdb/elements"]
        images[1] = images[1] * 0 + np.nan
        elements[2, 0, 0, 0] = 3
        elements[3] = np.zeros((3, 64, 64), np.float32)
        images[5] = images[4]
    problems = check(root).problems
    assert [(str(p.kind), p.text.split()[1].rstrip(":")) for p in problems] == [
        ("broken", "1"),
        ("unknown_id", "2"),
        ("empty", "3"),
        ("leak_identical", "5"),
    ]
    assert all(problem.path == file for problem in problems)


@pytest.mark.parametrize("fault", ["text", "another layout"])
def test_roofline_file_that_is_no_imdb(copy_of: Copy, fault: str) -> None:
    root = copy_of("roofline")
    file = root / "roofline" / "imdb.mat"
    file.unlink()
    if fault == "text":
        file.write_text("no HDF5")
    else:
        with h5py.File(file, "w") as handle:
            handle["imdb/pictures"] = np.zeros(3)
    assert found(root) == {("broken", "imdb.mat")}
    with pytest.raises(DataError, match=r"imdb\.mat"):
        open_sources(RunConfig(datasets=("roofline",), max_samples=1), root)


def test_real_samples(real_samples: Path) -> None:
    """The subset of RID holds one pair of neighbours that its split parts; nothing else is wrong with the samples."""
    report = check(real_samples)
    assert {dataset.name: dataset.samples for dataset in report.datasets} == {"rid": 20, "roofline": 1, "airs": 600}
    assert [(str(p.kind), p.path.name) for p in report.problems] == [("leak_overlap", "880.tif")]
