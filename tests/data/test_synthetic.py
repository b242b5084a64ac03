"""Generated data: reproducible, in the layouts of the real data sets, and of a useful difficulty."""

import dataclasses
import hashlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
from PIL import Image
from tests.data.specs import SMALL

from roofscale.config import RunConfig
from roofscale.data import airs, rid
from roofscale.data.sources import resolve_data_root
from roofscale.data.synthetic import GenerateSpec, generate, layout, render, roofs
from roofscale.errors import ConfigError


def contents(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.suffix != ".mat"
    }


def forked(work: Callable[[], object]) -> "multiprocessing.context.ForkProcess":
    """Starts work in a process of its own, in a session of its own."""

    def alone() -> None:
        os.setsid()
        work()

    process = multiprocessing.get_context("fork").Process(target=alone)
    process.start()
    return process


def test_same_spec_same_files_bit_for_bit_on_one_core_or_more(generated: Path, tmp_path: Path) -> None:
    def on_one_core() -> None:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        generate(tmp_path, SMALL)

    process = forked(on_one_core)
    process.join()
    assert process.exitcode == 0
    assert contents(tmp_path) == contents(generated)
    with h5py.File(tmp_path / "roofline/imdb.mat") as one, h5py.File(generated / "roofline/imdb.mat") as other:
        for name in ("images", "elements"):
            assert np.array_equal(one[f"imdb/{name}"][:], other[f"imdb/{name}"][:])


def test_another_seed_draws_other_images() -> None:
    one, other = (render.paint(layout.plan(64, seed, layout.EUROPEAN)) for seed in (1, 2))
    assert not np.array_equal(one.image_HWC, other.image_HWC)
    seeds = {SMALL.scene_seed(name, index) for name in ("rid", "airs") for index in range(500)}
    assert len(seeds) == 1000


def test_a_window_is_painted_as_in_the_whole() -> None:
    scene = layout.plan(300, 5, layout.OCEANIC)
    whole = render.paint(scene)
    for window in (render.Window(0, 0, 128, 128), render.Window(100, 60, 150, 240), render.Window(172, 172, 128, 128)):
        part = render.paint(scene, window)
        place = (slice(window.row, window.row + window.height), slice(window.col, window.col + window.width))
        assert np.array_equal(part.segments_HW, whole.segments_HW[place])
        assert (part.image_HWC != whole.image_HWC[place]).any(-1).mean() < 0.01  # edges of the ground


def test_scenes_differ_in_how_much_roof_they_have() -> None:
    """The constant prediction is a fair bar only where no share of roof fits all images."""
    shares = [
        float((render.paint(layout.plan(256, seed, layout.EUROPEAN)).segments_HW != 17).mean()) for seed in range(40)
    ]
    assert min(shares) > 0.06
    assert max(shares) < 0.62
    assert np.std(shares) > 0.07


def test_roofs_cannot_be_told_by_brightness_or_one_colour_alone() -> None:
    """No threshold on a single channel finds the roofs, but there is something to see: colours do differ somewhat."""
    paintings = [render.paint(layout.plan(256, seed, layout.EUROPEAN)) for seed in range(12)]
    best = 0.0
    for channel in range(3):
        values = np.concatenate([p.image_HWC[..., channel].ravel() for p in paintings])
        truth = np.concatenate([p.segments_HW.ravel() != 17 for p in paintings])
        for threshold in range(20, 240, 10):
            for guess in (values > threshold, values <= threshold):
                best = max(best, (guess & truth).sum() / (guess | truth).sum())
    assert best < 0.6


@pytest.mark.parametrize(("angle", "ids"), [(0.0, {0, 8}), (np.pi / 2, {4, 12}), (np.pi / 4, {2, 10})])
def test_azimuth_ids_go_clockwise_from_north(angle: float, ids: set[int]) -> None:
    """A ridge from west to east has slopes to the north (0) and south (8)."""
    roof = roofs.gable(roofs.Frame((50, 50), angle), 30, 20, 10)
    assert {facet.segment_id for facet in roof.facets} == ids
    for facet in roof.facets:
        x, y = facet.polygon.mean(0) - 50
        assert facet.segment_id == round(np.arctan2(x, -y) / (np.pi / 8)) % 16


def test_rid_layout(generated: Path) -> None:
    folder = rid.find(generated)
    assert folder.name == "RID_dataset"
    assert rid.published_split_numbers(folder) == (1, 2, 3, 4, 5)
    with rasterio.open(folder / rid.IMAGES / "1.tif") as image:
        assert image.crs.to_epsg() == 4326
        metres = image.transform.a * 111_320 * np.cos(np.radians(image.bounds.top)), -image.transform.e * 111_320
        assert metres == pytest.approx((0.1, 0.1), rel=0.02)
    ids: set[int] = set()
    for file in (folder / rid.SUPERSTRUCTURES).glob("*.png"):
        ids |= set(np.unique(Image.open(file)).tolist())
    assert 8 in ids
    assert ids <= set(range(9))
    names = [rid.split_file(folder, part, 4).read_text().split() for part in rid.PARTS]
    assert [len(part) for part in names] == [9, 3, 2]
    assert len({name for part in names for name in part}) == 14


def test_airs_layout(generated: Path) -> None:
    folder = airs.find(generated)
    assert folder.name == "trainval"
    assert not (folder / "test.txt").exists()
    tile = airs.tiles_of(folder, "train")[0]
    with rasterio.open(tile.label) as label, rasterio.open(tile.label.with_name(f"{tile.id}_vis.tif")) as visual:
        assert (label.crs.to_epsg(), label.compression.value, label.block_shapes) == (2193, "DEFLATE", [(256, 256)])
        assert label.res == pytest.approx((0.075, 0.075))
        assert set(np.unique(label.read(1))) == {0, 1}
        assert np.array_equal(visual.read(1), label.read(1) * 255)


def test_roofline_layout(generated: Path) -> None:
    file = generated / "roofline" / "imdb.mat"
    assert file.read_bytes()[:10] == b"MATLAB 7.3"
    with h5py.File(file) as handle:
        assert handle["imdb/depths"].shape == (20, 64, 64)
        elements = handle["imdb/elements"][:]
    assert all(0.001 < elements[:, channel].mean() < 0.3 for channel in range(3))


def test_kept_where_it_is_whole_and_refused_where_it_is_something_else(tmp_path: Path) -> None:
    spec = dataclasses.replace(SMALL, datasets=("rid",), train=1, val=1, test=0)
    (folder,) = generate(tmp_path, spec)
    stamp = (folder / "generated.json").stat().st_mtime_ns
    assert generate(tmp_path, spec) == (folder,)
    assert (folder / "generated.json").stat().st_mtime_ns == stamp
    with pytest.raises(ConfigError, match="not generated from this spec"):
        generate(tmp_path, dataclasses.replace(spec, seed=1))


def test_a_killed_generation_leaves_nothing_that_looks_complete(tmp_path: Path) -> None:
    process = forked(lambda: generate(tmp_path, GenerateSpec(train=3000, image_px=96)))
    while not list(tmp_path.glob(".rid.partial-*/RID_dataset/*/*.tif")) and process.is_alive():
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / "rid").exists()
    spec = GenerateSpec(train=1, val=1, test=0, image_px=96)
    assert generate(tmp_path, spec) == (tmp_path / "rid",)
    assert [folder.name for folder in tmp_path.iterdir()] == ["rid"]  # and what was left unfinished is swept away


def test_two_processes_at_once_are_safe(tmp_path: Path) -> None:
    spec = GenerateSpec(train=4, val=1, test=0, image_px=96)
    processes = [forked(lambda: generate(tmp_path, spec)) for _ in range(2)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert [folder.name for folder in tmp_path.iterdir()] == ["rid"]
    assert len(rid.open_all(rid.find(tmp_path))) == 5


def test_no_data_root_generates_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[GenerateSpec] = []
    monkeypatch.setattr("roofscale.data.sources.generate", lambda root, spec: asked.append(spec))
    for samples in (10, 20, 100):
        root, said = resolve_data_root(RunConfig(max_samples=samples), tmp_path)
        assert "GENERATED" in said
        assert str(root) in said
    assert len(set(asked)) == 1  # all of phase 1 shares one set
    assert (asked[0].train, asked[0].val, asked[0].test, asked[0].datasets) == (100, 40, 20, ("rid",))
    resolve_data_root(
        RunConfig(max_samples=500, val_samples=60, datasets=("airs", "roofline"), image_size=1024), tmp_path
    )
    windows = (2048 // 1024) ** 2
    assert asked[-1].airs_tiles[0] * windows >= 500
    assert asked[-1].airs_tiles[1] * windows >= 60
    assert asked[-1].roofline_samples >= 625


@pytest.mark.parametrize("wrong", [{"datasets": ("ridd",)}, {"train": 0}, {"airs_tile_px": 20000}, {"seed": -1}])
def test_spec_refuses_what_it_cannot_make(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        GenerateSpec(**wrong)  # type: ignore[arg-type]
