"""Imports run one way, heavy libraries load only where they are needed, and files stay readable at a sitting."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[1] / "src" / "roofscale"

# Left to right: a module imports from its own unit and from those to its left, nothing else.
ORDER = ("errors", "addresses", "files", "invocation", "torch_compat", "cgroup", "memory_margin", "provenance",
         "config", "measurement", "compute", "stats", "data", "model", "monitoring", "train", "predict", "tracking",
         "runners", "forecast", "phases", "report", "training_job", "cli", "api", "__main__")  # fmt: skip
LONGEST_FILE = 600  # lines
HEAVY = {"albumentations", "matplotlib", "mlflow", "numpy", "scipy", "segmentation_models_pytorch", "timm", "torch"}

FILES = sorted(SRC.rglob("*.py"))


def unit(file: Path) -> str:
    """The part of the package that a file belongs to: a module's name, or its top folder's."""
    return file.relative_to(SRC).with_suffix("").parts[0]


def imported(file: Path) -> Iterator[tuple[str, int]]:
    """Every absolute module name that a file imports anywhere, with the line."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative import; write it from the top"
            yield node.module or "", node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def wrong_way(file: Path) -> list[str]:
    """The imports of a file that run from left to right."""
    here = ORDER.index(unit(file))
    found = []
    for name, line in imported(file):
        parts = name.split(".")
        if parts[0] == "roofscale" and len(parts) > 1 and parts[1] in ORDER and ORDER.index(parts[1]) > here:
            found.append(f"{file.name}:{line} ({ORDER[here]}) imports {name}")
    return found


def id_of(file: Path) -> str:
    return str(file.relative_to(SRC))


def test_every_unit_has_its_place_in_the_order() -> None:
    units = {unit(file) for file in FILES} - {"__init__"}
    assert units <= set(ORDER), f"say where it belongs, in ORDER: {sorted(units - set(ORDER))}"


@pytest.mark.parametrize("file", [file for file in FILES if unit(file) != "__init__"], ids=id_of)
def test_imports_run_one_way(file: Path) -> None:
    assert wrong_way(file) == []


def test_a_wrong_way_import_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "SRC", tmp_path)
    file = tmp_path / "config.py"
    file.write_text("def f():\n    from roofscale.phases import plan\nimport roofscale.errors\n", encoding="utf-8")
    assert wrong_way(file) == ["config.py:2 (config) imports roofscale.phases",
                               "config.py:2 (config) imports roofscale.phases.plan"]  # fmt: skip


def test_only_tracking_imports_mlflow() -> None:
    users = {id_of(file) for file in FILES if any(name.split(".")[0] == "mlflow" for name, _ in imported(file))}
    assert {user for user in users if not user.startswith("tracking/")} == set()


def test_nothing_imports_lightning() -> None:
    names = {name.split(".")[0] for file in FILES for name, _ in imported(file)}
    assert not names & {"lightning", "pytorch_lightning"}


@pytest.mark.parametrize("file", FILES, ids=id_of)
def test_files_are_short(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE


def modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after running ``code``."""
    script = f"{code}\nimport sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_training_loop_loads_no_tracking_and_no_monitor() -> None:
    assert not modules_after("import roofscale.train.loop") & {"mlflow", "albumentations", "psutil"}


def test_what_launches_jobs_loads_no_pytorch() -> None:
    held = modules_after(
        "import roofscale.cli.run_phase, roofscale.cli.run_search, roofscale.runners.sagemaker.jobs_api"
    )
    assert {"mlflow", "boto3", "optuna"} <= held
    assert not held & {"albumentations", "segmentation_models_pytorch", "timm", "torch"}


def test_reading_a_config_loads_nothing_heavy() -> None:
    modules = "roofscale.config, roofscale.measurement, roofscale.compute, roofscale.api"
    assert not modules_after(f"import {modules}") & (HEAVY | {"pandas"})


@pytest.mark.parametrize(
    "words", [[], ["train"], ["phase"], ["status"], ["data"], ["data", "generate"], ["predict"]], ids=" ".join
)
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    call = (
        f"from roofscale.cli import main\ntry: main({[*words, '--help']!r})\nexcept SystemExit as e: assert not e.code"
    )
    assert not modules_after(call) & HEAVY
