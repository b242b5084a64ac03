"""Copies of tiles: the same pixels as the originals whatever happens to the copies, or to who makes them."""

import dataclasses
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio

from roofscale.config import RunConfig
from roofscale.data import airs, airs_cache
from roofscale.data.airs_cache import CacheTask, cached_tiles, exclusive_lock
from roofscale.data.airs_prepare import prepare_airs
from roofscale.data.sources import DataSplit, data_fingerprint, open_sources

GIB = 2**30


@pytest.fixture
def tiles(copy_of: Callable[[str], Path]) -> tuple[airs.Tile, ...]:
    """Three tiles of 272 px."""
    folder = airs.find(copy_of("airs"))
    assert folder is not None
    return (*airs.tiles_of(folder, "train"), *airs.tiles_of(folder, "val"))


def make(tiles: tuple[airs.Tile, ...], folder: Path, most_bytes: float = GIB, **task: object) -> dict[airs.Tile, Path]:
    said: list[str] = []
    return cached_tiles(tiles, folder, most_bytes, CacheTask(1, said.append, **task))  # type: ignore[arg-type]


def same(one: airs.AirsSource, other: airs.AirsSource) -> bool:
    pairs = ((one.read(i), other.read(i)) for i in range(len(one)))
    return len(one) == len(other) and all(
        a.id == b.id and np.array_equal(a.image_HWC, b.image_HWC) and np.array_equal(a.target_HWK, b.target_HWK)
        for a, b in pairs
    )


@pytest.mark.parametrize("window_px", [64, 128, 512])
def test_copies_hold_the_pixels_of_their_tiles(tiles: tuple[airs.Tile, ...], tmp_path: Path, window_px: int) -> None:
    source = airs.open_tiles(tiles, window_px)
    copied = source.with_copies(make(tiles, tmp_path))
    assert len(copied.copies) == 3
    for tile in tiles:  # so that it is the copies that are read
        shutil.move(tile.image, tile.image.with_suffix(".away"))
    reads = [copied.read(index) for index in range(len(source))]
    for tile in tiles:
        shutil.move(tile.image.with_suffix(".away"), tile.image)
    assert all(np.array_equal(source.read(i).image_HWC, sample.image_HWC) for i, sample in enumerate(reads))
    assert all(np.array_equal(source.read(i).target_HWK, sample.target_HWK) for i, sample in enumerate(reads))


def test_a_damaged_copy_is_read_no_more_and_made_anew(
    tiles: tuple[airs.Tile, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = airs.open_tiles(tiles[:1], 272)
    copies = make(tiles[:1], tmp_path)
    (copy,) = copies.values()
    sound = copy.read_bytes()
    copy.write_bytes(sound[:200] + bytes(len(sound) - 200))
    assert same(source, source.with_copies(copies))
    assert not copy.exists()
    assert "read from the original instead" in caplog.text
    assert make(tiles[:1], tmp_path) == copies
    assert copy.read_bytes() == sound


@pytest.mark.parametrize("left", [0, 10, 1000])
def test_a_copy_cut_short_is_found_out(tiles: tuple[airs.Tile, ...], tmp_path: Path, left: int) -> None:
    source = airs.open_tiles(tiles[:1], 272)
    copies = make(tiles[:1], tmp_path)
    (copy,) = copies.values()
    os.truncate(copy, left)
    assert same(source, source.with_copies(copies))
    assert not copy.exists()


def test_a_tile_that_changes_gets_another_copy(tiles: tuple[airs.Tile, ...], tmp_path: Path) -> None:
    before = make(tiles, tmp_path)
    with rasterio.open(tiles[0].label, "r+") as label:
        label.write(1 - label.read())
    after = make(tiles, tmp_path)
    assert [before[tile] == after[tile] for tile in tiles] == [False, True, True]
    source = airs.open_tiles(tiles, 128)
    assert same(source, source.with_copies(after))


def test_a_tile_with_a_fault_gets_no_copy_and_its_fault_is_named(tiles: tuple[airs.Tile, ...], tmp_path: Path) -> None:
    with rasterio.open(tiles[1].label, "r+") as label:
        label.write(label.read() * 255)
    os.truncate(tiles[2].image, 5000)
    copies = make(tiles, tmp_path)
    assert list(copies) == [tiles[0]]
    assert sorted(file.name for file in tmp_path.iterdir() if file.is_file()) == sorted(
        [copies[tiles[0]].name, "lock"]
    )  # fmt: skip
    with pytest.raises(airs.FileError, match="unknown class id 255"):
        airs.open_tiles(tiles[1:2], 272).with_copies(copies).read(0)


def test_the_cache_keeps_to_its_bound_and_gives_up_what_was_unused_longest(
    tiles: tuple[airs.Tile, ...], tmp_path: Path
) -> None:
    raw = 272 * 272 * 4
    assert make(tiles, tmp_path, most_bytes=raw - 1) == {}
    first = make(tiles[:2], tmp_path, most_bytes=2 * raw)
    assert len(first) == 2
    sizes = {tile: copy.stat().st_size for tile, copy in first.items()}
    for age, tile in enumerate(tiles[:2]):
        os.utime(first[tile], (age, age))  # tile 0 is the older
    third = make(tiles[2:], tmp_path, most_bytes=sizes[tiles[1]] + raw)
    assert list(third) == [tiles[2]]
    assert [first[tile].exists() for tile in tiles[:2]] == [False, True]
    assert make(tiles, tmp_path, most_bytes=1) == {}  # a bound that was lowered holds for what is there, too


def test_copies_of_this_run_are_never_given_up_for_others_of_it(tiles: tuple[airs.Tile, ...], tmp_path: Path) -> None:
    raw = 272 * 272 * 4
    said: list[str] = []
    copies = cached_tiles(tiles, tmp_path, 1.5 * raw, CacheTask(1, said.append))
    assert 1 <= len(copies) < 3
    assert "get no copy" in said[-1]
    assert "raise tile_cache_gib" in said[-1]
    stamps = {copy: copy.stat().st_ino for copy in copies.values()}
    again = cached_tiles(tiles, tmp_path, 1.5 * raw, CacheTask(1, said.append))
    assert {copy: copy.stat().st_ino for copy in again.values()} == stamps


def test_a_full_disk_leaves_the_originals(
    tiles: tuple[airs.Tile, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil.disk_usage(tmp_path)._replace(free=GIB)
    monkeypatch.setattr(airs_cache.shutil, "disk_usage", lambda _: full)
    assert make(tiles, tmp_path) == {}


def test_it_ends_between_tiles_when_the_run_does(tiles: tuple[airs.Tile, ...], tmp_path: Path) -> None:
    asked = iter([True, True, False])
    copies = make(tiles, tmp_path, keep_on=lambda: next(asked))
    assert list(copies) == list(tiles[:2])
    assert not list(tmp_path.glob("*.partial"))


def _killed_while_writing(tiles: tuple[airs.Tile, ...], folder: Path) -> None:
    """Dies after the first strip of the second tile."""
    strips, calls = airs_cache._strips, []

    def dying(height: int, width: int):  # type: ignore[no-untyped-def]
        calls.append(height)
        yield from strips(height, width)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    airs_cache._strips = dying  # type: ignore[assignment]
    make(tiles, folder)


def test_a_kill_leaves_nothing_half_valid_and_no_lock(tiles: tuple[airs.Tile, ...], tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_killed_while_writing, args=(tiles, tmp_path))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert len(list(tmp_path.glob("*.tif"))) == 1
    assert len(list(tmp_path.glob("*.partial"))) == 1
    copies = make(tiles, tmp_path)
    assert len(copies) == 3
    assert not list(tmp_path.glob("*.partial"))
    source = airs.open_tiles(tiles, 128)
    assert same(source, source.with_copies(copies))


def _make_and_count(tiles: tuple[airs.Tile, ...], folder: Path, start: object, made: object) -> None:
    copy = airs_cache._copy

    def counting(tile: airs.Tile, target: Path) -> None:
        copy(tile, target)
        made.put(tile.id)  # type: ignore[attr-defined]

    airs_cache._copy = counting  # type: ignore[assignment]
    start.wait()  # type: ignore[attr-defined]
    assert len(make(tiles, folder)) == 3


def test_two_runs_at_once_make_each_copy_once(tiles: tuple[airs.Tile, ...], tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, made = context.Barrier(2), context.SimpleQueue()
    runs = [context.Process(target=_make_and_count, args=(tiles, tmp_path, start, made)) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
    assert [run.exitcode for run in runs] == [0, 0]
    assert sorted(made.get() for _ in range(3)) == sorted(tile.id for tile in tiles)
    assert made.empty()


def test_who_waits_says_so_and_may_give_up(tiles: tuple[airs.Tile, ...], tmp_path: Path) -> None:
    said: list[str] = []
    with exclusive_lock(tmp_path, CacheTask(1, said.append)) as alone, ThreadPoolExecutor(1) as pool:
        assert alone
        task = CacheTask(1, said.append, keep_on=lambda: False)
        assert pool.submit(cached_tiles, tiles, tmp_path, GIB, task).result() == {}
    assert said == [f"another run is at work in {tmp_path}; waiting for it"]


def test_a_run_reads_from_copies_what_it_reads_without_and_is_the_same_data(generated: Path, tmp_path: Path) -> None:
    config = RunConfig(datasets=("airs", "rid"), max_samples=5, val_samples=2, image_size=64, num_workers=2)
    splits = open_sources(config, generated)
    said: list[str] = []
    assert prepare_airs(config, splits, tmp_path / "cache", said.append) == (splits, {})
    assert not said
    assert not (tmp_path / "cache").exists()
    config = dataclasses.replace(config, tile_cache_gib=1)
    ready, metrics = prepare_airs(config, splits, tmp_path / "cache", said.append)
    assert not metrics
    assert ready["rid"] is splits["rid"]
    assert data_fingerprint(ready) == data_fingerprint(splits)
    for part in ("train", "val"):
        plain, copied = (getattr(found["airs"], part) for found in (splits, ready))
        assert len(copied.copies) == 3
        assert same(plain, copied)
    assert said == ["3 AIRS tiles have a layout that windows are slow to read from, 3 of them a copy"]


LAYOUTS = {
    "blocks of 256": (False, {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"}),
    "blocks of 512": (True, {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate"}),
    "strips": (True, {"compress": "lzw"}),
    "uncompressed strips": (False, {}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["image", "label"])
def test_only_tiles_in_a_slow_layout_are_worth_a_copy(tmp_path: Path, layout: str, kind: str) -> None:
    slow, options = LAYOUTS[layout]
    tile = airs.Tile(tmp_path / "image.tif", tmp_path / "label.tif")
    for file, bands in ((tile.image, 3), (tile.label, 1)):
        how = options if file.stem == kind else LAYOUTS["blocks of 256"][1]
        shape = {"height": 1024, "width": 1024, "count": bands, "dtype": "uint8"}
        with rasterio.open(file, "w", driver="GTiff", sparse_ok=True, **shape, **how):
            pass
    source = airs.open_tiles([tile], 256)
    assert airs_cache.slow_tiles(source) == ([tile] if slow else [])
    config = RunConfig(datasets=("airs",), image_size=256, tile_cache_gib=1)
    split = DataSplit(source.subset([0]), source.subset([1]))
    said: list[str] = []
    ready, _ = prepare_airs(config, {"airs": split}, tmp_path / "cache", said.append)
    assert len(ready["airs"].train.copies) == slow
    assert said == [f"{slow:d} AIRS tiles have a layout that windows are slow to read from, {slow:d} of them a copy"]
