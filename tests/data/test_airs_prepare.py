"""Roof shares: those of a brute-force count, kept for the next run, and what drawing by them changes."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from roofscale.config import RunConfig
from roofscale.data import airs, airs_prepare, geotiff
from roofscale.data.airs_cache import CacheTask
from roofscale.data.airs_prepare import prepare_airs, roof_shares, sampling_metrics
from roofscale.data.sampling import epoch_order
from roofscale.data.sources import open_sources

QUIET = CacheTask(2, lambda _: None)
CONFIG = RunConfig(datasets=("airs",), max_samples=0, val_samples=0, image_size=64, roof_sampling=0.5)


@pytest.fixture
def source(copy_of: Callable[[str], Path]) -> airs.AirsSource:
    train = open_sources(CONFIG, copy_of("airs"))["airs"].train
    assert isinstance(train, airs.AirsSource)
    return train


def counted(source: airs.AirsSource) -> np.ndarray:
    return np.array([source.read(index).target_HWK[..., 0].mean() for index in range(len(source))])


def no_label_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise AssertionError(f"{path} was opened")

    monkeypatch.setattr(airs_prepare.geotiff, "open_raster", fail)


def test_shares_are_those_of_the_masks_and_are_read_once(
    source: airs.AirsSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = source.subset(range(4))
    assert roof_shares(few, tmp_path, QUIET) == pytest.approx(counted(few), abs=1e-6)
    assert roof_shares(source, tmp_path, QUIET) == pytest.approx(counted(source), abs=1e-6)
    expected = counted(source)
    no_label_is_opened(monkeypatch)
    assert roof_shares(source, tmp_path, QUIET) == pytest.approx(expected, abs=1e-6)


def test_a_tile_smaller_than_a_window_counts_as_it_is(source: airs.AirsSource, tmp_path: Path) -> None:
    whole = airs.open_tiles(source.tiles, 512)
    assert roof_shares(whole, tmp_path, QUIET) == pytest.approx(counted(whole), abs=1e-6)


def test_windows_of_another_size_are_looked_at_on_their_own(source: airs.AirsSource, tmp_path: Path) -> None:
    roof_shares(source, tmp_path, QUIET)
    larger = airs.open_tiles(source.tiles, 128)
    assert roof_shares(larger, tmp_path, QUIET) == pytest.approx(counted(larger), abs=1e-6)


def test_a_damaged_file_of_shares_is_written_anew(source: airs.AirsSource, tmp_path: Path) -> None:
    expected = roof_shares(source, tmp_path, QUIET)
    os.truncate(tmp_path / "64.json", 20)
    assert np.array_equal(roof_shares(source, tmp_path, QUIET), expected)


def test_a_label_that_cannot_be_read_counts_as_average(source: airs.AirsSource, tmp_path: Path) -> None:
    sound_N = source.tile_N == 0
    assert 0 < sound_N.sum() < len(source)
    expected = counted(source)[sound_N]
    os.truncate(source.tiles[1].label, 3000)
    share_N = roof_shares(source, tmp_path, QUIET)
    assert share_N[sound_N] == pytest.approx(expected, abs=1e-6)
    assert np.isfinite(share_N).all()
    assert len(np.unique(share_N[~sound_N])) >= 1
    os.remove(source.tiles[1].label)
    gone = roof_shares(source, tmp_path, QUIET)[~sound_N]
    assert gone == pytest.approx(expected.mean(), abs=1e-6)


def test_a_run_that_is_stopped_ends_with_the_average(source: airs.AirsSource, tmp_path: Path) -> None:
    share_N = roof_shares(source, tmp_path, CacheTask(1, lambda _: None, keep_on=lambda: False))
    assert np.array_equal(share_N, np.zeros(len(source)))


def test_metrics_are_those_of_the_orders_drawn(generated: Path, tmp_path: Path) -> None:
    said: list[str] = []
    ready, metrics = prepare_airs(CONFIG, open_sources(CONFIG, generated), tmp_path, said.append)
    train = ready["airs"].train
    share_N = train.roof_share_N
    assert share_N is not None
    orders = [epoch_order([train], 0, epoch, CONFIG.roof_sampling)[:, 1] for epoch in range(200)]
    drawn_N = share_N[np.concatenate(orders)]
    assert metrics["data/roof_share"] == pytest.approx(share_N.mean())
    assert metrics["data/with_roof"] == pytest.approx((share_N > 0).mean())
    assert metrics["data/drawn_roof_share"] == pytest.approx(drawn_N.mean(), abs=0.005)
    assert metrics["data/drawn_with_roof"] == pytest.approx((drawn_N > 0).mean(), abs=0.005)
    assert metrics["data/drawn_roof_share"] > metrics["data/roof_share"] + 0.01
    assert metrics["data/drawn_with_roof"] > metrics["data/with_roof"]
    assert f"of those drawn {metrics['data/drawn_with_roof']:.0%}" in said[-1]
    assert ready["airs"].val.roof_share_N is None  # validation is what it is
    assert sampling_metrics(share_N, 0.0)["data/drawn_roof_share"] == pytest.approx(share_N.mean())


def test_shares_follow_their_windows(source: airs.AirsSource, tmp_path: Path) -> None:
    weighted = dataclasses.replace(source, roof_share_N=roof_shares(source, tmp_path, QUIET))
    some = weighted.subset([5, 1, 5])
    assert some.roof_share_N is not None
    assert some.roof_share_N == pytest.approx(counted(source)[[5, 1, 5]], abs=1e-6)


def test_half_of_the_windows_of_a_real_tile_have_no_roof_and_sampling_draws_those_that_have(
    real_samples: Path, tmp_path: Path
) -> None:
    label = real_samples / "airs_full_size_label" / "christchurch_1001.tif"
    source = airs.open_tiles([airs.Tile(label, label)], 1024)
    share_N = roof_shares(source, tmp_path, QUIET)
    assert share_N.sum() * 1024**2 == pytest.approx(np.count_nonzero(geotiff.read_band(label)), rel=1e-4)
    found = sampling_metrics(share_N, 0.5)
    assert found["data/with_roof"] < 0.5 < 0.7 < found["data/drawn_with_roof"]
    assert found["data/drawn_roof_share"] > 2 * found["data/roof_share"]
