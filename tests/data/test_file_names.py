"""Files are found as a person reads their names; what is passed over is said."""

import os
import shutil
import unicodedata
from pathlib import Path

import pytest
from tests.data import tiny

from roofscale.config import RunConfig
from roofscale.data import folders
from roofscale.data.check import check
from roofscale.data.sources import DataSplit, data_notes, open_sources
from roofscale.errors import DataError

NAMES = {"train": ["a", "b", "c"], "val": ["d", "e"]}


def opened(root: Path, name: str = "airs") -> DataSplit:
    return open_sources(RunConfig(datasets=(name,), image_size=64, max_samples=0), root)[name]


@pytest.mark.parametrize("ending", [".tif", ".TIF", ".tiff", ".Tiff"])
def test_every_ending_of_a_tiff_is_read(ending: str, tmp_path: Path) -> None:
    root = tiny.airs(tmp_path, NAMES, ending)
    split = opened(root)
    assert (len(split.train), len(split.val)) == (3, 2)
    assert split.train.read(0).target_HWK[..., 0].any()
    assert check(root).ok
    assert data_notes({"airs": split}) == []


def test_rid_with_endings_of_another_system(tmp_path: Path) -> None:
    root = tiny.rid_set(tmp_path, [str(n) for n in range(1, 9)])
    for file in [*(root / "rid").rglob("*.tif"), *(root / "rid").rglob("*.png")]:
        file.rename(file.with_suffix(file.suffix.upper()))
    split = opened(root, "rid")
    assert (len(split.train), len(split.val)) == (4, 2)
    assert split.train.read(0).target_HWK.any()
    (report,) = check(root).datasets
    assert (report.samples, report.problems) == (8, ())


def test_hidden_files_are_no_data_and_others_are_counted(tmp_path: Path) -> None:
    root = tiny.airs(tmp_path, NAMES)
    place = root / "airs" / "train"
    for kind in ("image", "label"):
        (place / kind / "._a.tif").write_bytes(b"Mac OS X")
    shutil.copy(place / "image" / "a.tif", place / "image" / "z.jp2")
    split = opened(root)
    assert len(split.train) == 3
    (note,) = data_notes({"airs": split})
    assert "2 file(s)" in note
    assert "._a.tif, z.jp2" in note
    (report,) = check(root).datasets
    assert report.problems == ()
    assert any("z.jp2" in note for note in report.notes)


def test_two_files_of_one_name_are_one_image_and_the_other_is_said(tmp_path: Path) -> None:
    root = tiny.airs(tmp_path, NAMES)
    place = root / "airs" / "train" / "image"
    shutil.copy(place / "a.tif", place / "a.TIFF")
    assert folders.names_in(place, folders.TIFF) == ("a", "b", "c")
    assert folders.file_named(place, "a", folders.TIFF).name == "a.tif"
    assert "a.TIFF" in folders.passed_over(place, folders.TIFF)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("listed", ["NFC", "NFD"])
def test_a_name_is_the_same_in_either_normal_form(form: str, listed: str, tmp_path: Path) -> None:
    name = unicodedata.normalize(form, "übersicht")
    root = tiny.airs(tmp_path, {"train": [name, "b"], "val": ["d"]})
    (root / "airs" / "train.txt").write_text(unicodedata.normalize(listed, "übersicht.tif\nb.tif\n"))
    split = opened(root)
    assert [split.train.read(index).target_HWK.any() for index in range(len(split.train))] == [True, True]
    assert check(root).ok


def test_links_are_followed_and_a_dead_one_is_named(tmp_path: Path) -> None:
    real = tiny.airs(tmp_path / "real", NAMES)
    root = tmp_path / "linked"
    root.mkdir()
    os.symlink(real / "airs", root / "airs")
    assert len(opened(root).train) == 3
    os.symlink(tmp_path / "nowhere.tif", real / "airs" / "train" / "image" / "f.tif")
    assert {(str(p.kind), p.path.name) for p in check(root).problems} == {("missing", "f.tif")}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_split_file_of_notepad_is_read(encoding: str, tmp_path: Path) -> None:
    root = tiny.airs(tmp_path, NAMES)
    (root / "airs" / "val.txt").write_bytes("d.tif\r\n".encode(encoding))
    split = opened(root)
    assert [split.val.path(0).name] == ["d.tif"]
    assert check(root).ok


def test_one_in_another_encoding_is_named(tmp_path: Path) -> None:
    root = tiny.airs(tmp_path, NAMES)
    (root / "airs" / "val.txt").write_bytes("d.tif\nküche.tif\n".encode("latin-1"))
    for look in (lambda: opened(root), lambda: check(root)):
        with pytest.raises(DataError, match=r"val\.txt: line 2: expected UTF-8") as refused:
            look()
        assert str(refused.value).count("val.txt") == 1


def test_names_in_a_list_may_have_folders_dots_and_no_ending(tmp_path: Path) -> None:
    file = tmp_path / "train.txt"
    file.write_text("image\\a.tif\nimage/b.TIF\nkachel_0.5m\n\n")
    assert folders.read_names(file) == ("a", "b", "kachel_0.5m")


def test_a_name_that_is_no_utf8_is_named_and_the_others_are_looked_at(tmp_path: Path) -> None:
    name = os.fsdecode(b"stra\xdfe")
    root = tiny.airs(tmp_path, {"train": ["a", "b"], "val": ["d"]})
    for kind in ("image", "label"):
        file = root / "airs" / "train" / kind / "a.tif"
        file.rename(file.with_name(f"{name}.tif"))
    (root / "airs" / "val" / "label" / "d.tif").write_bytes(b"no raster")
    report = check(root)
    kinds = sorted((str(problem.kind), problem.path.name) for problem in report.problems)
    assert kinds == [("broken", "d.tif"), ("broken", f"{name}.tif"), ("broken", f"{name}.tif")]
    assert all("\udcdf" not in str(problem) for problem in report.problems)
    with pytest.raises(DataError, match="no UTF-8"):
        opened(root).train.read(1)
