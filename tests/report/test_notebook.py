"""The notebook: executed for real, kept up to date in place, and a person's cells left as they are."""

import json
import os
import re
import shlex
import textwrap
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from ipykernel.kernelspec import KERNEL_NAME
from nbclient import NotebookClient
from tests.report.seeded_tracking import seed
from tests.report.synthetic_results import BATCHES, GPU, SAMPLES, passed_samples, phase, rolled_back

from roofscale.config import RunConfig
from roofscale.errors import ConfigError
from roofscale.phases.gate import Condition, GateReport
from roofscale.phases.results import PhaseResult
from roofscale.report.notebook import update_notebook

PLANS = [phase(text) for text in (SAMPLES, BATCHES, GPU)]
BOTH = {1: passed_samples(), 2: rolled_back()}
MINE = {
    "cell_type": "code",
    "metadata": {"tags": ["injected-parameters"], "mine": {"b": 1, "a": 2}},
    "id": "mine",
    "execution_count": 7,
    "outputs": [{"output_type": "stream", "name": "stdout", "text": ["é\n"]}],
    "source": ["lr = 0.0001\n", "batch_size = 6"],
}


def update(file: Path, climbs: Mapping[int, PhaseResult] = BOTH, gate: GateReport | None = None) -> dict[str, Any]:
    update_notebook(file, climbs, PLANS, gate)
    nbformat.validate(nbformat.read(file, as_version=4))
    return json.loads(file.read_text())


def source(book: dict[str, Any], tag: str) -> str:
    return "".join(cell_of(book, tag)["source"])


def cell_of(book: dict[str, Any], tag: str) -> dict[str, Any]:
    return next(cell for cell in book["cells"] if tag in cell["metadata"].get("tags", ()))


def tags_of(book: dict[str, Any]) -> list[str]:
    return [cell["metadata"].get("tags", [""])[-1] for cell in book["cells"]]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "experiments").mkdir()
    return tmp_path / "experiments" / "launch.ipynb"


def add_mine(file: Path, behind: str = "parameters") -> None:
    book = json.loads(file.read_text())
    book["cells"].insert(book["cells"].index(cell_of(book, behind)) + 1, MINE)
    file.write_text(json.dumps(book, indent=1, ensure_ascii=False) + "\n")


def test_it_runs_from_the_first_cell_to_the_last(file: Path, tmp_path: Path, tracking_store: None) -> None:
    climbs = {number: replace(climb, run_id=seed(climb, tmp_path)) for number, climb in BOTH.items()}
    (tmp_path / "MLproject").write_text("name: stands in for the project\n")
    update(file, climbs)
    add_mine(file)
    book = nbformat.read(file, as_version=4)
    NotebookClient(book, timeout=120, kernel_name=KERNEL_NAME, resources={"metadata": {"path": file.parent}}).execute()
    put_out = {tag: json.dumps(cell.get("outputs", "")) for tag, cell in zip(tags_of(book), book.cells, strict=True)}
    assert "image/png" in put_out["roofscale-figures"]
    assert "-e phase5" in put_out["roofscale-launch"]
    assert (
        "lr=0.0001 batch_size=6" in put_out["roofscale-launch"]
        or "batch_size=6 lr=0.0001" in put_out["roofscale-launch"]
    )
    assert "exit code" not in put_out["roofscale-launch"]
    for text in ("batch-16", "host_oom", "text/html"):
        assert text in put_out["roofscale-comparison"]


def test_it_imports_nothing_of_ours_but_the_api(file: Path) -> None:
    text = "\n".join("".join(cell["source"]) for cell in update(file)["cells"] if cell["cell_type"] == "code")
    assert set(re.findall(r"(?:from|import) (roofscale[\w.]*)", text)) == {"roofscale.api"}


@pytest.mark.parametrize("tag", ["roofscale-figures", "roofscale-comparison"])
def test_an_empty_server_is_said(
    file: Path, tag: str, tracking_store: None, capsys: pytest.CaptureFixture[str]
) -> None:
    exec(source(update(file, {}), tag), {})
    assert "roofscale phase 1" in capsys.readouterr().out


def test_the_parameters_are_the_last_good_ones(file: Path) -> None:
    text = source(update(file), "parameters")
    found: dict[str, Any] = {}
    exec(text, {}, found)
    good = BOTH[2].last_good
    assert good
    assert RunConfig().with_overrides(found) == good.config
    assert good.run_id in text
    exec(source(update(file, {}), "parameters"), {}, found)
    assert RunConfig().with_overrides(found) == RunConfig()


def launch(book: dict[str, Any], own: str = "") -> list[str]:
    space: dict[str, Any] = {"os": os, "Path": Path}
    exec("\n".join([source(book, "parameters"), own, source(book, "roofscale-launch")]), space)
    assert space["LAUNCH"] is False
    words: list[str] = space["command"]
    return words


def test_the_next_phase_is_launched_with_what_was_set_otherwise(file: Path, root: Path) -> None:
    book = update(file, {1: passed_samples()})
    assert launch(book)[-4:] == ["-e", "phase2", "--env-manager", "local"]
    words = launch(book, "lr = 1e-4; encoder = 'resnet18'; compute = 'ml.m5.xlarge'; data_root = '/my data'")
    options = dict(word.split("=", 1) for word in words[words.index("-P") :] if word != "-P")
    assert options["compute"] == "ml.m5.xlarge"
    assert set(shlex.split(options["set"])) == {"lr=0.0001", "encoder=resnet18", "data_root=/my data"}
    entry = yaml.safe_load((root / "MLproject").read_text())["entry_points"]["phase2"]
    assert set(options) <= set(entry["parameters"])


def test_a_wrong_value_is_refused_before_anything_is_launched(file: Path) -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        launch(update(file), "batch_size = 0")


def test_when_all_is_climbed_nothing_is_left_to_launch(file: Path) -> None:
    update_notebook(file, BOTH, PLANS[:2], None)
    assert "nothing is left to launch" in source(json.loads(file.read_text()), "roofscale-launch")


def test_successes_and_failures_are_listed_with_their_causes(file: Path) -> None:
    book = update(file)
    assert "| 2 | batch-16 at batch_size=12 | `max_samples=100 batch_size=12` | 2.05 | 300 |" in source(
        book, "roofscale-successes"
    )
    failures = source(book, "roofscale-failures")
    assert "| 2 | batch-16 | `batch_size=14` | host_oom | failed | host oom | killed by the kernel" in failures
    assert "memory_margin: peak memory host 70%" in failures
    assert "None yet." in source(update(file.with_name("other.ipynb"), {}), "roofscale-failures")


def test_the_gate_is_said(file: Path) -> None:
    lacking = Condition("the best batch is known", False, "no run shows it", remedy="roofscale phase 2")
    assert "closed. Missing: the best batch is known (`roofscale phase 2`)" in source(
        update(file, gate=GateReport((lacking,))), "roofscale-gate"
    )


def test_a_second_writing_changes_nothing(file: Path) -> None:
    update(file)
    first = file.read_bytes()
    update(file)
    assert file.read_bytes() == first


@pytest.mark.parametrize("indent", [1, 2])
def test_a_persons_cells_stay_to_the_byte(file: Path, indent: int) -> None:
    update(file, {1: passed_samples()})
    add_mine(file)
    book = json.loads(file.read_text())
    book["metadata"]["zzz"] = {"b": 1, "a": 2}  # keys in an order that no library would choose
    file.write_text(json.dumps(book, indent=indent, ensure_ascii=False))
    mine = textwrap.indent(json.dumps(MINE, indent=indent, ensure_ascii=False), 2 * indent * " ")
    assert mine in file.read_text()
    again = update(file, BOTH)
    assert mine in file.read_text()
    assert [*again["metadata"]] == [*book["metadata"]]
    assert tags_of(again).index("injected-parameters") == tags_of(again).index("roofscale-parameters") + 1
    assert not file.read_text().endswith("\n")


def test_a_changed_cell_loses_its_outputs_and_an_unchanged_one_keeps_them(file: Path) -> None:
    book = update(file, {1: passed_samples()})
    for tag in ("parameters", "roofscale-figures"):
        cell_of(book, tag)["outputs"] = MINE["outputs"]
    file.write_text(json.dumps(book))
    again = update(file, BOTH)
    assert cell_of(again, "parameters")["outputs"] == []
    assert cell_of(again, "roofscale-figures")["outputs"] == MINE["outputs"]


def test_a_missing_cell_comes_back_to_its_place(file: Path) -> None:
    whole = tags_of(update(file))
    for tag in whole:
        book = json.loads(file.read_text())
        book["cells"].remove(cell_of(book, tag))
        file.write_text(json.dumps(book))
        assert tags_of(update(file)) == whole


def test_a_copy_of_a_cell_is_the_persons(file: Path) -> None:
    book = update(file, {1: passed_samples()})
    copy = {**cell_of(book, "parameters"), "id": "copy"}
    book["cells"].append(copy)
    file.write_text(json.dumps(book))
    assert update(file, BOTH)["cells"][-1] == copy


def test_rows_of_a_phase_that_the_server_does_not_know_are_kept(file: Path) -> None:
    update(file, BOTH)
    again = update(file, {1: passed_samples()})
    assert "batch-16 at batch_size=12" in source(again, "roofscale-successes")
    assert "host oom" in source(again, "roofscale-failures")


def test_an_older_format_without_ids_is_kept(file: Path) -> None:
    book = nbformat.v4.new_notebook(nbformat_minor=4, cells=[{k: v for k, v in MINE.items() if k != "id"}])
    file.write_text(json.dumps(book))
    again = update(file)
    assert again["nbformat_minor"] == 4
    assert all("id" not in cell for cell in again["cells"])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"nbformat": 3}', '{"nbformat": 4, "cells": 1}', "\x00\x01"])
def test_a_broken_notebook_is_refused_and_left_alone(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"cannot be read as a notebook|expected UTF-8"):
        update_notebook(file, BOTH, PLANS, None)
    assert file.read_text() == text
