"""Imports run one way, heavy libraries load only where they are needed, and files stay readable at a sitting."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from roofscale.config import RunConfig
from roofscale.data.synthetic import GenerateSpec, generate

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


# Libraries that a command imports only once it has checked what the user gave it; an import takes up to seconds.
LATE = {"albumentations", "boto3", "cv2", "h5py", "matplotlib", "mlflow", "nbformat", "optuna", "pandas", "rasterio",
        "requests", "sagemaker", "scipy", "sklearn", "timm", "torch", "torchvision"}  # fmt: skip
READERS = {"boto3", "cv2", "rasterio"}  # of images, by which they are checked; rasterio imports boto3
MISTAKES: list[tuple[list[str], str, set[str]]] = [  # words, part of the message, what its command needs to find it
    (["phase", "9"], "not in the range", set()),
    (["phase", "1", "--set", "batch_sizes=4"], "'batch_sizes' is no knob", set()),
    (["phase", "1", "--lr", "high", "--dry-run"], "lr='high': expected a number", set()),
    (["phase", "1", "--compute", "ml.m5.xlrge"], "not a compute that Roofscale knows", set()),
    (["phase", "1", "--file", "wrong.yaml"], "stepz", set()),
    (["phase", "3", "--num_workers", "4"], "cannot be overridden in phase 3", set()),
    (["climb", "--batch_size", "0"], "batch_size=0", set()),
    (["search", "--overlay", "nowhere.yaml"], "nowhere.yaml", set()),
    (["gate", "--gpu-compute", "ml.m5.xlarge"], "has no GPU", set()),
    (["train", "--compute", "nowhere"], "not a compute that Roofscale knows", set()),
    (["train", "decoder=pan", "batch_size=1"], "expected batch_size=2 or more", set()),
    (["forecast", "time", "batch_size=0"], "batch_size=0", set()),
    (["forecast", "gpu"], "no GPU to forecast", set()),
    (["predict", "broken.tif", "-o", "mask.tif"], "broken.tif: cannot be read", READERS),
    (["data", "upload", ".", "nowhere"], "expected where to copy to", READERS | {"h5py", "requests"}),
]
MAKE_MISTAKES = """
import json, sys
from click.testing import CliRunner
from roofscale.cli import main

for words in json.loads(sys.argv[1]):
    done = CliRunner().invoke(main, words)
    print(json.dumps([done.exit_code, done.output, sorted(sys.modules)]))
import roofscale.cli.run_phase, roofscale.cli.run_train
print(json.dumps(sorted(sys.modules)))
"""
TRAIN = """
import sys
from pathlib import Path
from roofscale.train.__main__ import main

code = main(Path(sys.argv[1]))
print(code, *sys.modules)
"""


def test_a_mistake_is_reported_before_a_library_is_imported_that_it_does_not_need(root: Path, tmp_path: Path) -> None:
    """All mistakes in one process, which keeps what it has imported: those that need more come last."""
    (tmp_path / "experiments").symlink_to(root / "experiments")
    (tmp_path / "wrong.yaml").write_text("phase: 1\nname: wrong\nstepz: []\n")
    (tmp_path / "broken.tif").write_text("no image")
    call = [sys.executable, "-c", MAKE_MISTAKES, json.dumps([words for words, _, _ in MISTAKES])]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=True)
    *results, launcher = map(json.loads, done.stdout.splitlines())
    for (words, says, needed), (code, output, modules) in zip(MISTAKES, results, strict=True):
        assert code == 2, (words, output)
        assert says in " ".join(output.split()), words
        assert LATE.intersection(modules) <= needed, words
    assert "mlflow" in launcher, "which a run is opened with"
    late = {"nbformat", "roofscale.report.figures.style", "torch"}  # style imports matplotlib for all figures
    assert not late.intersection(launcher), "these are imported while the training process starts, or after the run"


def test_the_training_process_imports_no_library_of_the_launcher(tmp_path: Path) -> None:
    """Up to and after its first steps, the stopping rule of a trial and augmentation included."""
    generate(tmp_path / "data", GenerateSpec(("rid",), train=12, val=2, test=0, image_px=64))
    config = RunConfig(
        datasets=("rid",), data_root=str(tmp_path / "data"), image_size=64, encoder="test_resnet", batch_size=2,
        max_samples=12, val_samples=2, num_workers=0, threads=1, stop_precision=0.9,
    )  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config.as_dict()))
    call = [sys.executable, "-c", TRAIN, str(tmp_path)]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=True)
    code, *modules = done.stdout.split()
    assert code == "0", (tmp_path / "events.jsonl").read_text()
    assert {"albumentations", "segmentation_models_pytorch"} <= set(modules), "it has augmented and trained"
    launchers = {"h5py", "matplotlib", "mlflow", "optuna", "pandas", "sagemaker", "scipy.stats", "sklearn"}
    assert not launchers.intersection(modules)
