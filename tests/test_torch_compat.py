"""torchvision must import beside a CPU torch with PyPI's build, and be left alone everywhere else."""

import importlib
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from roofscale import torch_compat

IMPORT_ALL = """
from roofscale.torch_compat import import_torchvision
import_torchvision()
import_torchvision()
import segmentation_models_pytorch, timm, torch
from torchvision.transforms.functional import resize
assert resize(torch.zeros(1, 3, 8, 8), [4, 4]).shape == (1, 3, 4, 4)
print("imported")
"""


class Importer:
    """Stands in for the import of torchvision: raises each error in turn, then succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self, name: str) -> types.ModuleType:
        assert name == "torchvision"
        self.calls += 1
        sys.modules["torchvision.half_imported"] = types.ModuleType("torchvision.half_imported")
        if self.errors:
            raise self.errors.pop(0)
        return types.ModuleType(name)


@pytest.fixture
def defined(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The operators that were declared, in place of declaring them; sys.modules is restored afterwards."""
    names: list[str] = []
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.setattr(torch.library, "define", lambda name, schema: names.append(name))
    return names


@pytest.fixture
def importing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Importer], None]:
    def use(importer: Importer) -> None:
        monkeypatch.setattr(importlib, "import_module", importer)
        torch_compat.import_torchvision()

    return use


def test_this_machines_build_imports_in_a_fresh_process(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(root / "src"), "PATH": ""},
        check=False,
    )
    assert done.stdout == "imported\n", done.stderr


def test_a_build_whose_operators_load_is_left_alone(defined: list[str], importing: Callable[[Importer], None]) -> None:
    importer = Importer()
    importing(importer)
    assert (importer.calls, defined) == (1, [])


def test_missing_operators_are_declared_and_the_half_import_dropped(
    defined: list[str], importing: Callable[[Importer], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.before", types.ModuleType("torchvision.before"))
    importer = Importer(RuntimeError("operator torchvision::nms does not exist"))
    importing(importer)
    assert importer.calls == 2
    assert defined == ["torchvision::nms", "torchvision::qnms"]
    assert "torchvision.before" not in sys.modules


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("operator torchvision::roi_align does not exist"),
        ImportError("libcudart.so.13: cannot open shared object file"),
    ],
)
def test_any_other_error_is_raised_as_it_is(
    defined: list[str], importing: Callable[[Importer], None], error: Exception
) -> None:
    with pytest.raises(type(error), match=str(error)):
        importing(Importer(error))
    assert defined == []


def test_an_error_that_declaring_does_not_cure_is_raised(
    defined: list[str], importing: Callable[[Importer], None]
) -> None:
    nms = "operator torchvision::nms does not exist"
    with pytest.raises(RuntimeError, match=nms):
        importing(Importer(RuntimeError(nms), RuntimeError(nms)))
