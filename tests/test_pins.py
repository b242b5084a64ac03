"""requirements.txt, -dev.txt and -bench.txt are the only places that pin a version, and they pin what is used."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]

# Pinned for the command line, not for import; so are all stubs for mypy (types-...).
TOOLS = {"ruff", "mypy", "pre-commit", "pytest-xdist"}
# What the nets of benchmarks/gpu_published.py import, by way of mmsegmentation's configs; and what playwright imports.
OF_OTHERS = {"addict", "einops", "ftfy", "markdown", "mat4py", "mmcv-lite", "mmpretrain", "model-index", "ordered-set",
             "prettytable", "regex", "termcolor", "yapf", "greenlet", "pyee"}  # fmt: skip
MODULES = {"mmseg": "mmsegmentation"}  # that are not installed in this environment, with the package that brings them


def lines_of(name: str) -> list[str]:
    """The requirements of a file, without comments and without the files that it refers to."""
    text = (ROOT / name).read_text(encoding="utf-8")
    lines = (line.split(" #")[0].strip() for line in text.splitlines() if not line.startswith("#"))
    return [line for line in lines if line and not line.startswith("-r ")]


RUN = [Requirement(line) for line in lines_of("requirements.txt")]
DEV = [Requirement(line) for line in lines_of("requirements-dev.txt")]
BENCH = [Requirement(line) for line in lines_of("requirements-bench.txt")]
EVERYDAY = {canonicalize_name(pin.name) for pin in RUN + DEV}
PINS = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in RUN + DEV + BENCH}


def read_toml() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def read_yaml(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def imported_names(file: Path) -> set[str]:
    """Top-level modules that a file imports, by statement or by ``importlib.import_module("name")``."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
            names |= {word.value for word in node.args if isinstance(word, ast.Constant)}
    return {name.partition(".")[0] for name in names}


def imported_packages(*folders: str) -> set[str]:
    """Names of the distributions that the files of these folders import, standard library and our own left out."""
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    names = set().union(*map(imported_names, files))
    own = {"roofscale", "tests", "benchmarks"} | {path.stem for path in (ROOT / "tests").rglob("*.py")}
    where = importlib.metadata.packages_distributions()
    outside = names - own - set(sys.stdlib_module_names)
    return {
        one_of([canonicalize_name(found) for found in where.get(name, [MODULES.get(name, name)])]) for name in outside
    }


def one_of(distributions: list[str]) -> str:
    """The pinned one of several that bring the same module, as mlflow and mlflow-skinny do."""
    return next((name for name in distributions if name in PINS), distributions[0])


@pytest.mark.parametrize("pin", RUN + DEV + BENCH, ids=lambda pin: pin.name)
def test_every_line_is_one_exact_public_version(pin: Requirement) -> None:
    (specifier,) = pin.specifier
    assert specifier.operator == "=="
    assert Version(specifier.version).local is None, "a local version fits one build only"


def test_nothing_is_pinned_twice() -> None:
    assert len(PINS) == len(RUN) + len(DEV) + len(BENCH)
    assert "-r requirements.txt" in (ROOT / "requirements-dev.txt").read_text(encoding="utf-8").splitlines()


def test_the_package_reads_the_pins() -> None:
    content = read_toml()
    assert content["tool"]["setuptools"]["dynamic"]["dependencies"] == {"file": ["requirements.txt"]}
    assert "dependencies" not in content["project"]


def test_environments_refer_to_the_pins() -> None:
    python_env, conda = read_yaml("python_env.yaml"), read_yaml("conda.yaml")
    assert python_env["dependencies"] == ["-r requirements.txt"]
    assert {"pip": ["-r requirements.txt"]} in conda["dependencies"]
    assert read_yaml("MLproject")["python_env"] == "python_env.yaml"


def test_all_name_the_same_python() -> None:
    exact = read_yaml("python_env.yaml")["python"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", exact), "mlflow builds the newest patch release from source otherwise"
    assert f"python={exact}" in read_yaml("conda.yaml")["dependencies"]
    content = read_toml()
    assert Version(exact) in SpecifierSet(content["project"]["requires-python"])
    assert exact.startswith(content["tool"]["mypy"]["python_version"] + ".")
    assert content["tool"]["ruff"]["target-version"] == "py" + "".join(exact.split(".")[:2])


def test_no_other_file_says_another_version() -> None:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    files = [ROOT / name for name in tracked.split("\0") if Path(name).suffix in {"", ".md", ".py", ".toml", ".yaml"}]
    if not tracked:
        pytest.skip("not a git working tree: which files are the project's is not known")
    wrong = []
    for file in filter(Path.is_file, files):
        for name, version in re.findall(r"([A-Za-z][\w.-]*)==(\d[\w.]*)", file.read_text(encoding="utf-8")):
            if PINS.get(canonicalize_name(name), version) != version.rstrip("."):
                wrong.append(f"{file.relative_to(ROOT)}: {name}=={version}")
    assert wrong == []


@pytest.mark.parametrize("name", sorted(EVERYDAY))
def test_this_environment_is_the_pinned_one(name: str) -> None:
    assert Version(importlib.metadata.version(name)).public == PINS[name]


def test_every_import_of_the_package_is_pinned() -> None:
    assert imported_packages("src") <= {canonicalize_name(pin.name) for pin in RUN}


def test_every_import_of_tests_and_benchmarks_is_pinned() -> None:
    assert imported_packages("tests", "benchmarks") <= set(PINS)


def test_every_pin_is_used() -> None:
    run = {canonicalize_name(pin.name) for pin in RUN}
    assert run <= imported_packages("src")
    stubs = {name for name in PINS if name.startswith("types-")}
    assert set(PINS) - run - TOOLS - stubs - OF_OTHERS <= imported_packages("tests", "benchmarks")
