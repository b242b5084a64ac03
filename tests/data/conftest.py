"""Small generated data sets, made once, and copies of them to break."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.data.specs import SMALL

from roofscale.data.synthetic import generate


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
