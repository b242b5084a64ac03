"""A data root put together from what lies in different places, real and generated samples in one file included."""

import dataclasses
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from tests.data.specs import SMALL

from roofscale.cli import main
from roofscale.config import RunConfig
from roofscale.data import rid, roofline
from roofscale.data.check import check
from roofscale.data.locate import available_datasets
from roofscale.data.sources import open_sources, resolve_data_root
from roofscale.data.synthetic import generate
from roofscale.errors import ConfigError, DataError

SPEC = dataclasses.replace(SMALL, datasets=("roofline",), roofline_samples=12)


def real_file(file: Path, samples: int = 3, side: int = 64) -> Path:
    """An imdb.mat as if somebody else had made it: other chunks, and depths that are not zero."""
    rng = np.random.default_rng(3)
    with h5py.File(file, "w", userblock_size=512) as handle:
        handle["imdb/images"] = rng.integers(0, 256, (samples, 3, side, side)).astype(np.float32)
        handle["imdb/elements"] = rng.integers(0, 2, (samples, 3, side, side)).astype(np.float32)
        handle["imdb/depths"] = rng.random((samples, side, side), np.float32)
    return file


def test_joined_samples_follow_the_generated_ones_value_for_value(tmp_path: Path) -> None:
    real = real_file(tmp_path / "real.mat")
    (joined,) = generate(tmp_path / "joined", SPEC, real)
    (alone,) = generate(tmp_path / "alone", SPEC)
    with h5py.File(joined / "imdb.mat") as both, h5py.File(alone / "imdb.mat") as made, h5py.File(real) as given:
        for name in ("images", "elements", "depths"):
            assert np.array_equal(both["imdb"][name][:12], made["imdb"][name][:])
            assert np.array_equal(both["imdb"][name][12:], given["imdb"][name][:])
    source = roofline.open_all(joined)
    assert len(source) == 15
    assert np.array_equal(source.read(13).image_HWC, roofline.open_file(real).read(1).image_HWC)


def test_what_is_joined_is_part_of_what_was_generated(tmp_path: Path) -> None:
    real = real_file(tmp_path / "real.mat")
    (folder,) = generate(tmp_path / "root", SPEC, real)
    assert generate(tmp_path / "root", SPEC, shutil.copy(real, tmp_path / "elsewhere.mat")) == (folder,)
    assert str(tmp_path) not in (folder / "generated.json").read_text()
    for other in (None, real_file(tmp_path / "other.mat", samples=4)):
        with pytest.raises(ConfigError, match="not generated from this spec"):
            generate(tmp_path / "root", SPEC, other)


def test_what_cannot_be_joined_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    real = real_file(tmp_path / "real.mat")
    with pytest.raises(ConfigError, match="expected roofline among the data sets"):
        generate(tmp_path / "root", dataclasses.replace(SPEC, datasets=("rid",)), real)
    with pytest.raises(ConfigError, match="its images are 32x32 px, the generated ones 64x64"):
        generate(tmp_path / "root", SPEC, real_file(tmp_path / "small.mat", side=32))
    with pytest.raises(ConfigError, match="there is no such file"):
        generate(tmp_path / "root", SPEC, tmp_path / "nowhere.mat")
    with h5py.File(real, "r+") as handle:
        handle["imdb/images"][1, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match=r"real\.mat: sample 1: image values"):
        generate(tmp_path / "root", SPEC, real)
    assert not (tmp_path / "root").exists()


@pytest.fixture
def put_together(generated: Path, tmp_path: Path) -> Path:
    """A root of links: RID as if it were real, AIRS generated, Roofline joined, each in a place of its own."""
    store, root = tmp_path / "store", tmp_path / "root"
    shutil.copytree(rid.find(generated) or generated, store / "downloads" / "RID_dataset")
    generate(store / "joined", SPEC, real_file(tmp_path / "real.mat"))
    root.mkdir()
    (root / "rid").symlink_to(store / "downloads", target_is_directory=True)
    (root / "airs").symlink_to(generated / "airs", target_is_directory=True)
    (root / "roofline").symlink_to(Path("..") / "store" / "joined" / "roofline", target_is_directory=True)
    return root


def test_a_root_may_link_to_where_the_data_sets_lie(put_together: Path, tmp_path: Path) -> None:
    config = RunConfig(
        datasets=("rid", "roofline", "airs"), data_root=str(put_together), max_samples=2, val_samples=0, image_size=96
    )
    assert available_datasets(put_together) == config.datasets
    root, said = resolve_data_root(config, tmp_path)
    assert said == f"rid, roofline (GENERATED, 3 real joined), airs (GENERATED) in {root}."
    for split in open_sources(config, root).values():
        for source in (split.train, split.val):
            assert source.read(0).image_HWC.any()
    for split_name in ("random", "spatial"):
        assert len(open_sources(config.with_overrides({"split": split_name}), root)["rid"].train) == 2


def test_the_check_follows_links_and_names_what_is_joined(put_together: Path) -> None:
    report = check(put_together)
    assert report.problems == ()
    by_name = {dataset.name: dataset for dataset in report.datasets}
    assert {name: dataset.samples for name, dataset in by_name.items()} == {"rid": 14, "roofline": 15, "airs": 4}
    assert any("3 real joined" in note for note in by_name["roofline"].notes)


def test_a_link_into_a_release_is_known_as_generated_and_a_dead_one_as_missing(generated: Path, tmp_path: Path) -> None:
    (tmp_path / "rid").symlink_to(rid.find(generated) or generated, target_is_directory=True)
    (tmp_path / "airs").symlink_to(tmp_path / "nowhere", target_is_directory=True)
    config = RunConfig(data_root=str(tmp_path), max_samples=2)
    assert resolve_data_root(config, tmp_path)[1].startswith("rid (GENERATED) in ")
    with pytest.raises(ConfigError, match=r"expected the data set 'airs'.*Found there: rid"):
        open_sources(config.with_overrides({"datasets": "airs"}), tmp_path)


def test_command_line_joins(tmp_path: Path) -> None:
    words = ["data", "generate", str(tmp_path / "root"), "--datasets", "roofline", "--roofline-samples", "2"]
    words += ["--join", str(real_file(tmp_path / "real.mat", samples=1, side=224))]
    dry = CliRunner().invoke(main, [*words, "--dry-run"])
    assert (dry.exit_code, (tmp_path / "root").exists()) == (0, False)
    assert "behind them the samples of" in " ".join(dry.stdout.split())  # a long path wraps the line
    done = CliRunner().invoke(main, [*words, "--json"])
    assert done.exit_code == 0
    (written,) = json.loads(done.stdout)["written"]
    assert len(roofline.open_all(Path(written))) == 3


def test_the_one_real_roofline_sample_joins_generated_ones(real_samples: Path, tmp_path: Path) -> None:
    """Phase 4 on real samples: RID real, AIRS real, and Roofline's one real sample among generated ones."""
    spec = dataclasses.replace(SPEC, roofline_px=224, roofline_samples=9)
    generate(tmp_path, spec, real_samples / "roofline" / "imdb.mat")
    for name in ("rid", "airs"):
        (tmp_path / name).symlink_to(real_samples / name, target_is_directory=True)
    config = RunConfig(datasets=("rid", "roofline", "airs"), data_root=str(tmp_path), max_samples=8, image_size=224)
    said = resolve_data_root(config, tmp_path)[1]
    assert said.startswith("rid, roofline (GENERATED, 1 real joined), airs in ")
    opened = open_sources(config, tmp_path)
    assert [len(split.train) for split in opened.values()] == [8, 8, 8]
    sample = roofline.open_all(tmp_path / "roofline").read(9)
    assert sample.target_HWK.sum((0, 1)).tolist() == [0, 3176, 2655, 0]
