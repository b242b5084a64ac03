"""How many samples there are, counted or as published."""

from pathlib import Path

from roofscale.config import RunConfig
from roofscale.data.locate import dataset_sizes, published_sizes
from roofscale.data.synthetic import GenerateSpec, generate

ALL = RunConfig(datasets=("rid", "roofline", "airs"), image_size=64)


def test_samples_under_a_data_root_are_counted(tmp_path: Path) -> None:
    tiles = {"airs_tiles": (2, 1, 1), "airs_tile_px": 128}
    generate(tmp_path, GenerateSpec(ALL.datasets, train=5, val=3, test=2, roofline_samples=20, image_px=64, **tiles))
    found = dataset_sizes(ALL.with_overrides({"data_root": str(tmp_path), "max_samples": 1000}))
    assert found.samples == {"rid": (5, 3), "roofline": (16, 2), "airs": (2 * 4, 4)}
    assert found.source == "as under data_root"


def test_without_a_data_root_they_are_as_published(tmp_path: Path) -> None:
    found = dataset_sizes(ALL.with_overrides({"image_size": 1024, "datasets": "airs,rid"}))
    assert found.samples == {"airs": (857 * 100, 94 * 100), "rid": (1504, 188)}
    assert list(published_sizes(ALL)) == ["rid", "roofline", "airs"]
    missing = dataset_sizes(ALL.with_overrides({"data_root": str(tmp_path)}))
    assert missing.samples == published_sizes(ALL)
    assert "want" in missing.source
