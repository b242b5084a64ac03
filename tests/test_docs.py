"""Commands and links of the documents: every command parses, and every link leads somewhere."""

import importlib.util
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml

from roofscale.cli import main
from roofscale.config import RunConfig

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "deploy/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
KNOBS = set(RunConfig.__dataclass_fields__)
COMMAND = re.compile(r"(?:[A-Z_]+=\S+ +)*(?:\.venv/bin/)?(roofscale|mlflow run|make|python -m) (.+)")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def code(text: str) -> Iterator[str]:
    """Yield the lines of code blocks, continued lines joined, and the texts of inline code."""
    prose = re.sub(r"^```(?:mermaid|yaml).*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for block in re.findall(r"^```.*?\n(.*?)^```", prose, flags=re.MULTILINE | re.DOTALL):
        yield from block.replace("\\\n", " ").splitlines()
    prose = re.sub(r"^```.*?^```", "", prose, flags=re.MULTILINE | re.DOTALL)
    yield from (" ".join(inline.split()) for inline in re.findall(r"`([^`]+)`", prose))


def commands() -> list[tuple[str, str, str]]:
    """Return each command as (document, tool, words)."""
    found = [
        (str(file.relative_to(ROOT)), match[1], match[2])
        for file in DOCUMENTS
        for line in code(file.read_text(encoding="utf-8"))
        if (match := COMMAND.fullmatch(line.strip())) and "..." not in line
    ]
    return sorted(set(found))


def check_roofscale(words: list[str]) -> None:
    command: click.Command = main
    context = click.Context(main, **main.context_settings)
    while isinstance(command, click.Group) and words:
        subcommand = command.get_command(context, words[0])
        assert subcommand, f"roofscale has no command {words[0]}"
        command, context, words = subcommand, click.Context(subcommand, parent=context), words[1:]
    command.make_parser(context).parse_args(list(words))  # raises for an unknown option
    overrides = [word for before, word in itertools.pairwise(["", *words]) if before == "--set" or is_override(word)]
    assert {word.partition("=")[0] for word in " ".join(overrides).split()} <= KNOBS


def is_override(word: str) -> bool:
    """Whether a word is KNOB=VALUE."""
    return re.match(r"[a-z_]+=", word) is not None


def check_mlflow(words: list[str]) -> None:
    entry_points = yaml.safe_load((ROOT / "MLproject").read_text(encoding="utf-8"))["entry_points"]
    given = list(itertools.pairwise(words))
    entry_point = next((value for name, value in given if name == "-e"), "main")
    assert entry_point in entry_points
    parameters = {value.partition("=")[0] for name, value in given if name == "-P"}
    assert parameters <= set(entry_points[entry_point].get("parameters", {})) | KNOBS


def check_make(words: list[str]) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {word for word in words if "=" not in word} <= targets


def check_module(words: list[str]) -> None:
    assert importlib.util.find_spec(words[0]), words[0]


CHECKS = {"roofscale": check_roofscale, "mlflow run": check_mlflow, "make": check_make, "python -m": check_module}


@pytest.mark.parametrize(("document", "tool", "words"), commands())
def test_a_command_of_the_documents_parses(document: str, tool: str, words: str) -> None:
    CHECKS[tool](shlex.split(words, comments=True))


@pytest.mark.parametrize(
    ("tool", "words"),
    [("roofscale", "phaze 1"), ("roofscale", "phase 1 --comput x"), ("roofscale", "train batchsize=4"),
     ("roofscale", "phase 1 --set 'batchsize=4'"), ("mlflow run", ". -e phase9"), ("mlflow run", ". -P batchsize=4"),
     ("make", "tset"), ("python -m", "benchmarks.climbs")],
)  # fmt: skip
def test_a_wrong_command_is_noticed(tool: str, words: str) -> None:
    with pytest.raises((AssertionError, click.UsageError)):
        CHECKS[tool](shlex.split(words))


def heading_anchors(file: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for link in LINK.findall(document.read_text(encoding="utf-8")):
        if link.startswith(("http", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in heading_anchors(target), link
