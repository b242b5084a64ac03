"""Splits that keep apart what shows the same: no pair is ever parted, whatever the images, and shares stay near."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.transform import from_origin

from roofscale.config import RunConfig
from roofscale.data import airs, folders, rid
from roofscale.data.check import check
from roofscale.data.leaks import LEAST_OVERLAP, Footprint, ImageFingerprint, find_pairs, fingerprint, leak_rate
from roofscale.data.sources import leak_warnings, open_sources
from roofscale.data.split import Split, random_split, spatial_split
from roofscale.errors import DataError


def seen(left: float, bottom: float, digest: str = "", side: float = 1.0, crs: str = "EPSG:4326") -> ImageFingerprint:
    """An image of a square of ground; without a digest its pixels are like no other's."""
    return ImageFingerprint(
        Path("x"),
        "x",
        digest,
        Footprint(crs, ((left, bottom), (left + side, bottom), (left + side, bottom + side), (left, bottom + side))),
    )


def spatial(images: Sequence[ImageFingerprint], seed: int) -> Split:
    return spatial_split(images, find_pairs(images), seed)


def parted(images: Sequence[ImageFingerprint], split: Split) -> list[tuple[int, int]]:
    """Pairs of two parts that show the same, by a plain loop over the definition."""
    parts = split.split_of_each(len(images))
    return [
        (i, j)
        for i, j in itertools.combinations(range(len(images)), 2)
        if parts[i] and parts[j] and parts[i] != parts[j] and same(images[i], images[j])
    ]


def same(one: ImageFingerprint, other: ImageFingerprint) -> bool:
    if one.digest and one.digest == other.digest:
        return True
    a, b = one.footprint, other.footprint
    if a is None or b is None or a.crs != b.crs:
        return False
    (left, bottom), (right, top) = (
        np.max([f.corners[0] for f in (a, b)], 0),
        np.min([f.corners[2] for f in (a, b)], 0),
    )
    smaller = min(np.prod(np.subtract(f.corners[2], f.corners[0])) for f in (a, b))
    return bool(max(0.0, right - left) * max(0.0, top - bottom) / smaller > LEAST_OVERLAP)


place = st.floats(0, 12, allow_nan=False)
an_image = st.builds(
    lambda x, y, digest, side, crs, placed: (
        seen(x, y, digest, side, crs) if placed else ImageFingerprint(Path("x"), "x", digest or "own")
    ),
    place,
    place,
    st.sampled_from(["", "", "", "a", "b"]),
    st.sampled_from([1.0, 0.5]),
    st.sampled_from(["EPSG:4326", "EPSG:2193"]),
    st.booleans(),
)


@given(images=st.lists(an_image, min_size=1, max_size=40))
@settings(max_examples=80, deadline=None)
def test_pairs_are_those_of_the_definition(images: list[ImageFingerprint]) -> None:
    expected = {(i, j) for i, j in itertools.combinations(range(len(images)), 2) if same(images[i], images[j])}
    found = find_pairs(images)
    assert len(found) == len(expected)
    assert {(pair.first, pair.second) for pair in found} == expected


@given(images=st.lists(an_image, min_size=1, max_size=60), seed=st.integers(1, 5))
@settings(max_examples=150, deadline=None)
def test_spatial_parts_no_pair_and_uses_nobody_twice(images: list[ImageFingerprint], seed: int) -> None:
    split = spatial(images, seed)
    everyone = [*split.train, *split.val, *split.test]
    assert len(set(everyone)) == len(everyone)
    assert split.train
    assert parted(images, split) == []
    assert split == spatial(images, seed)
    if len(everyone) < len(images):  # only a chain of more than 80 % is cut
        assert longest_chain(images) > 0.8 * len(images)


def longest_chain(images: Sequence[ImageFingerprint]) -> int:
    """The size of the largest set of images that hang together, by flooding."""
    left, longest = set(range(len(images))), 0
    while left:
        front, size = {left.pop()}, 0
        while front:
            i = front.pop()
            size += 1
            touching = {j for j in left if same(images[i], images[j])}
            left -= touching
            front |= touching
        longest = max(longest, size)
    return longest


@given(groups=st.lists(st.integers(1, 4), min_size=30, max_size=120), seed=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_spatial_shares_are_near_80_10_10_where_chains_are_short(groups: list[int], seed: int) -> None:
    images = [seen(3.0 * n, 0.2 * k) for n, size in enumerate(groups) for k in range(size)]
    split = spatial(images, seed)
    count = len(images)
    assert sum(map(len, (split.train, split.val, split.test))) == count
    for part in (split.val, split.test):
        assert 0.1 * count - 4 <= len(part) <= 0.1 * count + 1


@given(count=st.integers(1, 300), seed=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_spatial_is_random_where_nothing_shows_the_same(count: int, seed: int) -> None:
    images = [seen(2.0 * n, 0.0) for n in range(count)]
    assert spatial(images, seed) == random_split(count, seed)


def test_seeds_deal_differently_and_images_that_only_abut_may_part() -> None:
    images = [seen(float(n), 0.0) for n in range(60)]
    splits = [spatial(images, seed) for seed in range(1, 6)]
    assert len({split.val for split in splits}) == 5
    assert all(len(split.val) == len(split.test) == 6 for split in splits)


@pytest.mark.parametrize("seed", range(1, 6))
def test_a_village_where_each_image_overlaps_the_next_is_cut_across(seed: int) -> None:
    rng = np.random.default_rng(7)
    village = [seen(x, y) for x, y in rng.uniform(0, 12, (450, 2))]  # about six neighbours each
    farms = [seen(100.0 + 5 * n, 0.0) for n in range(50)]
    images = [*village, *farms]
    assert longest_chain(images) > 0.8 * len(images)
    split = spatial(images, seed)
    assert parted(images, split) == []
    assert 45 <= len(split.val) <= 50
    assert 45 <= len(split.test) <= 50
    assert len(split.train) > 0.65 * len(images)
    left_out = len(images) - len(split.train) - len(split.val) - len(split.test)
    assert 0 < left_out < 0.2 * len(images)


@pytest.mark.parametrize("seed", range(1, 6))
def test_the_two_ends_of_a_cut_chain_are_kept_apart_too(seed: int) -> None:
    row = [seen(0.5 * n, 0.0) for n in range(30)]
    images = [dataclasses.replace(image, digest="twin") if n in (0, 29) else image for n, image in enumerate(row)]
    split = spatial(images, seed)
    assert parted(images, split) == []
    assert {len(split.val), len(split.test)} == {3, 2}


def test_where_all_show_the_same_place_all_of_it_trains() -> None:
    images = [seen(0.0, 0.0) for _ in range(20)]
    assert spatial(images, 1) == Split(spatial(images, 1).train, (), ())
    assert len(spatial(images, 1).train) == 20


def test_leak_rate_counts_pairs_across_parts_and_partners_in_train() -> None:
    images = [seen(x, 0.0) for x in (0.0, 0.5, 5.0, 5.5, 9.0, 20.0)]
    rate = leak_rate("made up", find_pairs(images), ["train", "val", "val", "test", "val", "test"])
    assert rate == ("made up", 2, 1 / 3, 0.0, 0)
    assert str(rate) == "made up: 2 pairs across parts; with a partner in train: 33% of val, 0% of test"
    empty = leak_rate("made up", find_pairs(images), ["train", "", "", "", "", ""])
    assert (empty.pairs, math.isnan(empty.val), math.isnan(empty.test)) == (0, True, True)


Copy = Callable[[str], Path]


def move(file: Path, onto: Path, sides: float) -> None:
    """Lay an image ``sides`` of its own length north of another, where the generator leaves room."""
    with rasterio.open(onto) as fixed, rasterio.open(file, "r+") as moved:
        north = fixed.bounds.top + sides * (fixed.bounds.top - fixed.bounds.bottom)
        moved.transform = from_origin(fixed.bounds.left, north, *fixed.res)


def image_of(root: Path, name: str) -> Path:
    return rid.find(root) / rid.IMAGES / f"{name}.tif"


def parts_of(root: Path, dataset: str, number: int) -> dict[str, set[str]]:
    config = RunConfig(datasets=(dataset,), split="spatial", split_number=number, max_samples=0, val_samples=0)
    opened = open_sources(config, root)[dataset]
    return {
        part: {source.path(i).stem for i in range(len(source))}
        for part, source in (("train", opened.train), ("val", opened.val))
    }


@pytest.mark.parametrize("number", range(1, 6))
def test_rid_neighbours_and_twins_stay_together_and_a_broken_file_does_not_stop_it(copy_of: Copy, number: int) -> None:
    root = copy_of("rid")
    for n in range(2, 6):  # 1 to 5 in a row, each over half of the one before
        move(image_of(root, str(n)), image_of(root, str(n - 1)), 0.5)
    with rasterio.open(image_of(root, "6")) as original, rasterio.open(image_of(root, "7"), "r+") as twin:
        twin.write(original.read())  # the same pixels elsewhere on the ground
    image_of(root, "8").write_bytes(b"no raster")
    parts = parts_of(root, "rid", number)
    for together in ({"1", "2", "3", "4", "5"}, {"6", "7"}):
        assert any(together <= members or not together & members for members in parts.values())
        assert len([members for members in parts.values() if together & members]) <= 1
    assert not parts["train"] & parts["val"]
    assert parts["val"]


def test_overlapping_airs_tiles_stay_together_and_abutting_ones_may_part(copy_of: Copy) -> None:
    root = copy_of("airs")
    tiles = [*airs.tiles_of(airs.find(root), "train"), *airs.tiles_of(airs.find(root), "val")]
    assert find_pairs([fingerprint(tile.image) for tile in tiles]) == []  # the generator lays them side by side
    move(tiles[1].image, tiles[0].image, 0.4)
    for number in range(1, 6):
        parts = parts_of(root, "airs", number)
        assert parts["val"] == {tiles[2].id}
        assert parts["train"] == {tiles[0].id, tiles[1].id}


def test_roofline_twins_stay_together(copy_of: Copy) -> None:
    root = copy_of("roofline")
    with h5py.File(root / "roofline" / "imdb.mat", "r+") as handle:
        for twin in (4, 9, 15):
            handle["imdb/images"][twin] = handle["imdb/images"][2]
    sides = []
    for number in range(1, 6):
        config = RunConfig(datasets=("roofline",), split="spatial", split_number=number, max_samples=0, val_samples=0)
        opened = open_sources(config, root)["roofline"]
        ids = [{source.read(i).id for i in range(len(source))} for source in (opened.train, opened.val)]
        assert all({"2", "4", "9", "15"} <= side or not {"2", "4", "9", "15"} & side for side in ids)
        sides.append(frozenset(ids[1]))
    assert len(set(sides)) > 1


def test_the_check_says_how_much_the_published_split_leaks_and_that_spatial_does_not(copy_of: Copy) -> None:
    root = copy_of("rid")
    val, train = (folders.read_names(rid.split_file(rid.find(root), part, 2))[0] for part in ("val", "train"))
    move(image_of(root, val), image_of(root, train), 0.5)
    (report,) = check(root).datasets
    rates = {rate.split: rate for rate in report.leaks}
    assert (rates["published 2"].pairs, rates["published 2"].val, rates["published 2"].test) == (1, 1 / 3, 0.0)
    assert [rates[f"spatial {n}"].pairs for n in range(1, 6)] == [0] * 5
    assert all(rates[f"spatial {n}"].left_out == 0 for n in range(1, 6))
    assert report.as_dict()["leaks"][1]["pairs"] == 1


def test_an_image_listed_in_two_parts_is_named(copy_of: Copy) -> None:
    root = copy_of("rid")
    name = folders.read_names(rid.split_file(rid.find(root), "train", 3))[0]
    with rid.split_file(rid.find(root), "test", 3).open("a") as lines:
        lines.write(f"{name}.png\n")
    (problem,) = check(root).problems
    assert problem.text.startswith(
        f"{name.removesuffix('.png')}.tif is listed in train and in test (published split 3)"
    )


def test_a_run_is_told_of_a_leak_among_its_own_samples_by_footprints_alone(copy_of: Copy) -> None:
    root = copy_of("rid")
    config = RunConfig(max_samples=0, val_samples=0)
    opened = open_sources(config, root)
    assert leak_warnings(opened) == []
    move(opened["rid"].val.path(0), opened["rid"].train.path(0), 0.5)
    (note,) = leak_warnings(opened)
    assert note.startswith("rid: 33% of the validation images of this run overlap a training image on the ground")
    assert leak_warnings(open_sources(config.with_overrides({"split": "spatial"}), root)) == []


def test_one_chain_alone_cannot_be_split_and_says_so(copy_of: Copy) -> None:
    root = copy_of("rid")
    for n in range(2, 15):
        move(image_of(root, str(n)), image_of(root, "1"), 0.0)
    with pytest.raises(DataError, match=r"no validation sample.*choose another split"):
        open_sources(RunConfig(split="spatial", max_samples=0), root)


def test_real_samples_leak_in_their_split_and_not_in_a_spatial_one(real_samples: Path) -> None:
    by_name = {dataset.name: dataset for dataset in check(real_samples).datasets}
    rates = {rate.split: rate for rate in by_name["rid"].leaks}
    assert rates["published 1"][1:] == (1, 0.0, 0.25, 0)
    assert [rates[f"spatial {n}"].pairs for n in range(1, 6)] == [0] * 5
    assert all(rate.pairs == 0 for rate in by_name["airs"].leaks)
