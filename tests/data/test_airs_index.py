"""The index of AIRS: windows as numbers are the same windows; every tile is opened once; 80,000 of them stay small."""

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from roofscale.config import RunConfig
from roofscale.data import airs, leaks
from roofscale.data.leaks import ImageFingerprint
from roofscale.data.sources import data_fingerprint, leak_warnings, open_sources

SHAPES = st.lists(st.none() | st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=8)


def source_of(shapes: list[tuple[int, int] | None], window_px: int) -> airs.AirsSource:
    tiles = [airs.Tile(Path(f"image/{n}.tif"), Path(f"label/{n}.tif")) for n in range(len(shapes))]
    headers = [
        ImageFingerprint(tile.image, tile.id, "", shape=shape) for tile, shape in zip(tiles, shapes, strict=True)
    ]
    return airs.open_tiles(tiles, window_px, headers)


@given(shapes=SHAPES, window_px=st.sampled_from([32, 64, 96]), seed=st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_windows_are_those_of_a_loop_over_tiles_rows_and_columns(
    shapes: list[tuple[int, int] | None], window_px: int, seed: int
) -> None:
    expected = [
        (str(tile), row, col)
        for tile, shape in enumerate(shapes)
        for row in range(0, shape[0] if shape else 1, window_px)
        for col in range(0, shape[1] if shape else 1, window_px)
    ]
    source = source_of(shapes, window_px)
    found = [(where.tile.id, where.row, where.col) for where in map(source.window, range(len(source)))]
    assert found == expected
    order = np.random.default_rng(seed).permutation(len(expected))[: 1 + len(expected) // 2]
    some = source.subset(order.tolist())
    assert [(w.tile.id, w.row, w.col) for w in map(some.window, range(len(some)))] == [expected[i] for i in order]
    assert [some.tiles[t].id for t in some.tiles_taken()] == sorted({expected[i][0] for i in order}, key=int)


def test_all_windows_of_airs_are_pickled_in_less_than_two_mib() -> None:
    source = source_of([(10_000, 10_000)] * 857, 1024)
    assert len(source) == 85_700
    source.window(0)  # what is worked out on the way is sent along
    assert len(pickle.dumps(source)) < 2 * 2**20


@pytest.mark.parametrize("split", ["published", "random", "spatial"])
def test_every_tile_is_opened_once_by_all_that_happens_before_training(
    generated: Path, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaks._located.cache_clear()
    opened: Counter[str] = Counter()
    real_open = rasterio.open

    def counting(path: Any, *args: Any, **options: Any) -> Any:
        opened[Path(path).name] += 1
        return real_open(path, *args, **options)

    monkeypatch.setattr(rasterio, "open", counting)
    config = RunConfig(datasets=("airs",), max_samples=0, val_samples=0, image_size=64, split=split)
    for _ in range(2):  # as for the steps of a phase
        splits = open_sources(config, generated)
        leak_warnings(splits)
        data_fingerprint(splits)
        if split == "spatial":  # looks into the tiles each time
            break
    assert set(opened.values()) == {1}
    assert len(opened) == 3


def test_a_tile_that_changes_is_opened_again(generated: Path, tmp_path: Path) -> None:
    file = tmp_path / "tile.tif"
    for side in (64, 96):
        with rasterio.open(file, "w", driver="GTiff", height=side, width=side, count=1, dtype="uint8") as dataset:
            dataset.write(np.zeros((1, side, side), np.uint8))
        assert leaks.read_footprint(file).shape == (side, side)
