"""Readers, splits and roots: what a config asks for is what is opened."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from roofscale.config import RunConfig
from roofscale.data import airs, rid, roofline
from roofscale.data.locate import available_datasets
from roofscale.data.sources import DataSplit, data_fingerprint, open_sources, resolve_data_root
from roofscale.data.split import permutation, random_split
from roofscale.errors import ConfigError, DataError

ALL = RunConfig(datasets=("rid", "roofline", "airs"), max_samples=2, val_samples=0, image_size=128)


def test_generated_rid_reads_back_as_roof_or_not(generated: Path) -> None:
    source = open_sources(ALL, generated)["rid"].train
    sample = source.read(0)
    segments = np.asarray(Image.open(source.files(0)[1]))
    assert sample.image_HWC.shape == (96, 96, 3)
    assert sample.image_HWC.dtype == np.uint8
    assert np.array_equal(sample.target_HWK[..., 0], segments != 17)
    assert not sample.target_HWK[..., 1:].any()
    assert source.labelled == (True, False, False, False)


def test_generated_roofline_reads_back_in_our_channel_order(generated: Path) -> None:
    source = roofline.open_all(generated / "roofline")
    with h5py.File(generated / "roofline" / "imdb.mat") as handle:
        assert handle["imdb/images"].dtype == np.float32
        elements, image = handle["imdb/elements"][7], handle["imdb/images"][7]
    sample = source.read(7)
    assert source.labelled == (False, True, True, True)
    assert np.array_equal(sample.target_HWK[..., 1:].transpose(2, 0, 1), elements)
    assert np.array_equal(sample.image_HWC.transpose(2, 0, 1), image)
    assert not sample.target_HWK[..., 0].any()


def test_airs_windows_tile_the_whole_tile_and_pad_beyond_it(generated: Path) -> None:
    tile = airs.tiles_of(airs.find(generated), "train")[0]
    with rasterio.open(tile.label) as label, rasterio.open(tile.image) as image:
        whole_label, whole_image = label.read(1), image.read().transpose(1, 2, 0)
    source = airs.open_tiles([tile], 128)
    assert len(source) == 9  # 272 px: two whole windows and one of 16 px, both ways
    for index in range(len(source)):
        window, sample = source.window(index), source.read(index)
        assert sample.image_HWC.shape == (128, 128, 3)
        part = slice(window.row, window.row + 128), slice(window.col, window.col + 128)
        height, width = whole_label[part].shape
        assert np.array_equal(sample.target_HWK[:height, :width, 0], whole_label[part])
        assert np.array_equal(sample.image_HWC[:height, :width], whole_image[part])
        assert not sample.target_HWK[height:].any()
        assert not sample.image_HWC[:, width:].any()


def test_airs_tile_smaller_than_a_window_is_one_sample_of_its_size(generated: Path) -> None:
    source = airs.open_tiles(airs.tiles_of(airs.find(generated), "val"), 512)
    assert len(source) == 1
    assert source.read(0).image_HWC.shape == (272, 272, 3)


def test_airs_leaves_the_visual_twins_out_and_needs_no_list(copy_of: Callable[[str], Path]) -> None:
    root = copy_of("airs")
    folder = airs.find(root)
    listed = airs.tiles_of(folder, "train")
    shutil.copy(listed[0].image, listed[0].image.with_name(f"{listed[0].id}_vis.tif"))
    (folder / "train.txt").unlink()
    assert airs.tiles_of(folder, "train") == listed
    assert [tile.id for tile in airs.tiles_of(folder, "test")] == ["christchurch_3"]  # beside trainval


def test_data_sets_are_found_nested_or_at_the_root_itself(generated: Path) -> None:
    assert available_datasets(generated) == ("rid", "roofline", "airs")
    for root in (generated / "rid", generated / "rid" / "RID_dataset"):
        assert open_sources(RunConfig(max_samples=1), root)["rid"].train.path(0).is_file()


def test_missing_data_set_says_what_is_there(generated: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected the data set 'rid'.*Found there: airs"):
        open_sources(RunConfig(), generated / "airs")


@pytest.mark.parametrize("name", ["rid", "roofline", "airs"])
def test_more_samples_than_there_are_names_the_number(generated: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"max_samples=500.*has \d+ training samples.*datasets={name},"):
        open_sources(RunConfig(datasets=(name,), max_samples=500), generated)


def test_roofline_with_one_sample_has_nothing_to_validate_on(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "imdb.mat", "w") as handle:
        for name in ("images", "elements"):
            handle[f"imdb/{name}"] = np.zeros((1, 3, 8, 8), np.float32)
    with pytest.raises(DataError, match="no validation sample"):
        open_sources(RunConfig(datasets=("roofline",), max_samples=1), tmp_path)


@pytest.mark.parametrize("split", ["published", "random"])
@pytest.mark.parametrize("name", ["rid", "roofline", "airs"])
def test_more_samples_contain_the_fewer_and_never_those_of_validation(generated: Path, name: str, split: str) -> None:
    taken = []
    for count, seed in ((2, 0), (5, 1), (0, 2)):
        config = RunConfig(datasets=(name,), max_samples=count, image_size=96, split=split, seed=seed)
        opened = open_sources(config, generated)[name]
        taken.append(_ids(opened, "train"))
        assert len(opened.train) == (count or len(taken[-1]))
        assert not _ids(opened, "train") & _ids(opened, "val")
    assert taken[0] < taken[1] < taken[2]


def _ids(split: DataSplit, part: str) -> set[str]:
    source = getattr(split, part)
    return {source.read(i).id for i in range(len(source))}


def test_rid_split_number_picks_the_published_split(generated: Path) -> None:
    ids = [_ids(open_sources(RunConfig(max_samples=0, split_number=n), generated)["rid"], "val") for n in (1, 2)]
    assert ids[0] == set(_names(rid.split_file(rid.find(generated), "val", 1)))
    assert ids[0] != ids[1]


def _names(file: Path) -> list[str]:
    return [line.removesuffix(".png") for line in file.read_text().split()]


def test_missing_split_file_names_the_splits_that_are_there(copy_of: Callable[[str], Path]) -> None:
    root = copy_of("rid")
    rid.split_file(rid.find(root), "val", 3).unlink()
    with pytest.raises(DataError, match=r"val_filenames_3_rev.txt.*here: 1, 2, 4, 5"):
        open_sources(RunConfig(split_number=3), root)


@given(count=st.integers(1, 400), seed=st.integers(0, 2**31 - 1))
@settings(max_examples=60)
def test_random_split_deals_everyone_out_once(count: int, seed: int) -> None:
    parts = random_split(count, seed)
    assert sorted((*parts.train, *parts.val, *parts.test)) == list(range(count))
    assert parts.train
    assert bool(parts.val) == (count >= 2)
    assert parts == random_split(count, seed)
    if count >= 20:
        assert abs(len(parts.train) / count - 0.8) < 0.06


def test_permutation_is_a_shuffle_that_depends_on_the_seed() -> None:
    assert sorted(permutation(50, 1)) == list(range(50))
    assert permutation(50, 1) != permutation(50, 2)


def test_fingerprint_follows_what_is_read_and_not_where(copy_of: Callable[[str], Path], generated: Path) -> None:
    config = dataclasses.replace(ALL, datasets=("rid",))
    here = open_sources(config, generated)
    root = copy_of("rid")
    there = open_sources(config, root)
    assert data_fingerprint(here) == data_fingerprint(there)
    more = open_sources(dataclasses.replace(config, max_samples=3), generated)
    assert data_fingerprint(more) != data_fingerprint(here)
    mask = there["rid"].train.files(0)[1]
    mask.write_bytes(mask.read_bytes() + b"x")
    assert data_fingerprint(there) != data_fingerprint(here)


def test_given_root_is_said_aloud_and_a_wrong_one_refused(generated: Path, tmp_path: Path) -> None:
    root, said = resolve_data_root(RunConfig(data_root=str(generated)), tmp_path)
    assert root == generated
    assert str(generated) in said
    with pytest.raises(ConfigError, match="no such folder"):
        resolve_data_root(RunConfig(data_root=str(tmp_path / "nowhere")), tmp_path)


def test_real_samples_read(real_samples: Path) -> None:
    config = RunConfig(datasets=("rid", "airs"), max_samples=12, image_size=224)
    opened = open_sources(config, real_samples)
    assert (len(opened["rid"].val), len(opened["airs"].val)) == (4, 40)
    for split in opened.values():
        sample = split.train.read(3)
        assert 0 < sample.target_HWK[..., 0].mean() < 1
        assert sample.image_HWC.std() > 10
    sample = roofline.open_all(real_samples / "roofline").read(0)
    assert sample.target_HWK.sum((0, 1)).tolist() == [0, 3176, 2655, 0]


def test_real_full_size_label_reads_by_windows(real_samples: Path, tmp_path: Path) -> None:
    """The label stands in for its image too: what counts is that windows of a real tile come out right."""
    label = real_samples / "airs_full_size_label" / "christchurch_1001.tif"
    image = tmp_path / "image.vrt"
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{b}"><SimpleSource><SourceFilename>{label}</SourceFilename>'
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"
        for b in (1, 2, 3)
    )
    image.write_text(f'<VRTDataset rasterXSize="10000" rasterYSize="10000">{bands}</VRTDataset>')
    source = airs.open_tiles([airs.Tile(image, label)], 512)
    assert len(source) == 400
    sample = source.read(190)
    assert np.array_equal(sample.image_HWC[..., 0], sample.target_HWK[..., 0])
    last = source.read(399)
    assert last.target_HWK.shape == (512, 512, 4)
    assert not last.target_HWK[272:].any()
