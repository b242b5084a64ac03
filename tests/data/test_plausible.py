"""Values that are each allowed, and together cannot be right, are named by the check and noted by a run."""

import fcntl
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import from_origin
from tests.data import tiny

from roofscale.config import RunConfig
from roofscale.data import rid
from roofscale.data.check import check
from roofscale.data.sources import data_notes, open_sources

NAMES = {"train": ["a", "b", "c"], "val": ["d", "e"]}
EIGHT = [str(number) for number in range(1, 9)]


def kinds(root: Path) -> list[str]:
    return sorted(str(problem.kind) for problem in check(root).problems)


def notes(root: Path, name: str) -> str:
    return " ".join(data_notes(open_sources(RunConfig(datasets=(name,), image_size=64, max_samples=0), root)))


def imdb(root: Path, images: np.ndarray, elements: np.ndarray | None = None) -> Path:
    (root / "roofline").mkdir(parents=True)
    if elements is None:
        elements = np.zeros(images.shape, np.uint8)
        elements[:, :, 16, 16:32] = 1
    with h5py.File(root / "roofline" / "imdb.mat", "w") as file:
        file["imdb/images"], file["imdb/elements"] = images, elements
    return root


def pictures(count: int) -> np.ndarray:
    return np.stack([tiny.picture(number)[0] for number in range(count)])


def test_sound_data_gives_no_word(tmp_path: Path) -> None:
    for root, name in (
        (tiny.airs(tmp_path / "a", NAMES), "airs"),
        (tiny.rid_set(tmp_path / "b", EIGHT), "rid"),
        (imdb(tmp_path / "c", pictures(12)), "roofline"),
    ):
        assert kinds(root) == []
        assert notes(root, name) == ""


def test_masks_of_0_and_1_in_the_place_of_rids_ids(tmp_path: Path) -> None:
    root = tiny.rid_set(tmp_path, EIGHT, background=0)
    assert kinds(root) == ["implausible"]
    assert "background is 17" in str(check(root).problems[0])
    assert "is background" in notes(root, "rid")


def test_one_roof_that_fills_its_image_is_no_fault(tmp_path: Path) -> None:
    root = tiny.rid_set(tmp_path, EIGHT)
    Image.fromarray(np.full((tiny.SIDE, tiny.SIDE), 3, np.uint8)).save(root / "rid" / rid.SEGMENTS / "1.png")
    assert kinds(root) == []


@pytest.mark.parametrize("value", [0, 255, 17])
def test_an_image_of_one_colour_is_named(value: int, tmp_path: Path) -> None:
    root = tiny.airs(tmp_path, NAMES)
    file = root / "airs" / "train" / "image" / "b.tif"
    tiny.raster(file, np.full((3, tiny.SIDE, tiny.SIDE), value, np.uint8), **tiny.place(1))
    (problem,) = check(root).problems
    assert (str(problem.kind), problem.path.name) == ("blank", "b.tif")


def test_images_that_are_all_black_are_noted_by_a_run(tmp_path: Path) -> None:
    root = tiny.airs(tmp_path, NAMES)
    for number, file in enumerate(sorted((root / "airs").rglob("image/*.tif"))):
        tiny.raster(file, np.zeros((3, tiny.SIDE, tiny.SIDE), np.uint8), **tiny.place(number))
    assert "one colour only" in notes(root, "airs")


def test_images_that_were_scaled_to_0_and_1(tmp_path: Path) -> None:
    root = imdb(tmp_path, (pictures(12) / 255).astype(np.float32))
    assert "implausible" in kinds(root)
    assert "scaled to 0-1" in notes(root, "roofline")


def test_a_label_that_lies_a_px_off_its_image(tmp_path: Path) -> None:
    root = tiny.airs(tmp_path, NAMES)
    file = root / "airs" / "val" / "label" / "d.tif"
    with rasterio.open(file, "r+") as label:
        label.transform = from_origin(label.transform.c + 0.1, label.transform.f, 0.1, 0.1)
    (problem,) = check(root).problems
    assert (str(problem.kind), problem.path.name) == ("shifted", "d.tif")
    assert "1 px from its image" in str(problem)


@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_other_kinds_of_pixels_are_named(kind: type, tmp_path: Path) -> None:
    root = tiny.airs(tmp_path, NAMES)
    image, _ = tiny.picture(0)
    tiny.raster(root / "airs" / "train" / "image" / "a.tif", image.astype(kind), **tiny.place(0))
    (problem,) = check(root).problems
    assert np.dtype(kind).name in str(problem)


def test_a_photograph_in_the_place_of_a_mask(tmp_path: Path) -> None:
    root = tiny.rid_set(tmp_path, EIGHT)
    photo = tiny.picture(0)[0][0]
    Image.fromarray(photo).save(root / "rid" / rid.SEGMENTS / "1.png")
    assert kinds(root) == ["unknown_id"]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda file: file.create_group("imdb/images").create_dataset("data", data=[1]), "a group (data)"),
        (lambda file: file.create_dataset("imdb/images", data=np.array([b"x"])), "an array of |S1"),
        (lambda file: file.create_dataset("imdb/images", data=np.zeros((4, 8, 8, 3))), "expected both (N, 3, H, W)"),
    ],
)
def test_an_imdb_of_another_making_is_said_to_be_one(make, says: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "roofline").mkdir()
    with h5py.File(tmp_path / "roofline" / "imdb.mat", "w") as file:
        make(file)
        file["imdb/elements"] = np.zeros((4, 3, 8, 8), np.uint8)
    (problem,) = check(tmp_path).problems
    assert says in str(problem)


def test_a_file_that_another_program_has_locked_is_not_to_be_downloaded_again(tmp_path: Path) -> None:
    root = imdb(tmp_path, pictures(12))
    with (root / "roofline" / "imdb.mat").open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)  # as HDF5 locks what it writes
        (problem,) = check(root).problems
    assert "locked" in str(problem)
    assert "Download" not in str(problem)


def test_a_mask_too_large_to_be_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tiny.rid_set(tmp_path, EIGHT)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # of 4096, so a "decompression bomb"
    assert set(kinds(root)) == {"broken"}
