"""Small generated data sets, made once, and copies of them to break."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from roofscale.data.generate import GenerateSpec, generate

SMALL = GenerateSpec(
    datasets=("rid", "roofline", "airs"),
    train=9,
    val=3,
    test=2,
    image_px=96,
    roofline_px=64,
    roofline_samples=20,
    airs_tiles=(2, 1, 1),
    airs_tile_px=272,
)


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with all three data sets; not to be changed."""
    root = tmp_path_factory.mktemp("generated")
    generate(root, SMALL)
    return root


@pytest.fixture
def copy_of(generated: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Copies one data set to a root of its own, there to be broken."""

    def copy(name: str) -> Path:
        shutil.copytree(generated / name, tmp_path / "root" / name)
        return tmp_path / "root"

    return copy
