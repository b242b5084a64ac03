"""What users and scripts see, held word for word against ``expected/``: a change there is meant, or it is a fault.

``ROOFSCALE_GOLDEN=write pytest tests/golden`` writes the expected texts anew; read their diff before you commit it.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from tests.report.seeded_tracking import seed
from tests.report.synthetic_results import BATCHES, SAMPLES, passed_samples, rolled_back
from tests.runners.sagemaker_settings import CONFIG, SETTINGS

from roofscale.cli import main
from roofscale.config import RunConfig
from roofscale.measurement import METRICS
from roofscale.phases.criteria import CRITERIA
from roofscale.runners.sagemaker import request
from roofscale.runners.sagemaker.job import Job

EXPECTED = Path(__file__).parent / "expected"
CONFIGS = [
    {},
    {"seed": 1},
    {"max_samples": 20, "val_samples": 100},
    {"batch_size": 8, "num_workers": 4, "prefetch_factor": 4},
    {"image_size": 1024, "precision": "bf16"},
    {"datasets": "rid,roofline,airs", "schedule": "mixed"},
    {"encoder": "resnet50", "decoder": "fpn", "ema": 0.99},
    {"compute": "ml.g5.xlarge", "channels_last": True},
    {"lr": 1e-4, "weight_decay": 0.1, "epochs": 30},
    {"threads": 4, "tile_cache_gib": 0},
]


def hold(name: str, text: str) -> None:
    """Compare a text with the expected one of that name, or write it where that is asked for."""
    file = EXPECTED / name
    if os.environ.get("ROOFSCALE_GOLDEN") == "write":
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8"), f"{name}: see the docstring of {__file__}"


def stable(text: str, *paths: Path) -> str:
    """A text without what differs from run to run: ids in the order of their appearance, folders, dates, versions."""
    for path in paths:
        text = text.replace(str(path), "<folder>")
    ids = dict.fromkeys(re.findall(r"\b[0-9a-f]{32}\b", text))
    for number, run_id in enumerate(ids, 1):
        text = text.replace(run_id, f"<id {number}>").replace(run_id[:8], f"<id {number}>")
    return re.sub(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\+00:00)?", "<date>", text)


def commands(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command and group under a group, by its words."""
    yield words
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name)


def test_help() -> None:
    texts = [CliRunner().invoke(main, [*words, "--help"], terminal_width=100).output for words in commands(main)]
    hold("help.txt", "\n".join(texts))


def test_knobs() -> None:
    hold("knobs.json", CliRunner().invoke(main, ["train", "--knobs", "--json"]).stdout)


@pytest.mark.parametrize("number", range(1, 6))
def test_a_dry_run(
    number: int, root: Path, tmp_path: Path, tracking_store: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(root / "experiments")
    done = CliRunner().invoke(main, ["phase", str(number), "--dry-run", "--json", "--from-defaults"])
    hold(f"dry-run-{number}.json", stable(done.stdout, tmp_path))


def test_the_documents_of_a_climb(tmp_path: Path, tracking_store: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "phase1.yaml").write_text(SAMPLES)
    (tmp_path / "experiments" / "phase2.yaml").write_text(BATCHES)
    for climb in (passed_samples(), rolled_back()):
        seed(climb, tmp_path)
    assert CliRunner().invoke(main, ["report"]).exit_code == 0
    for name in ("STRATEGY.md", "launch.ipynb", "results/phase2.json"):
        text = (tmp_path / "experiments" / name).read_text(encoding="utf-8")
        hold(Path(name).name, stable(text, tmp_path))
    page = (tmp_path / "experiments" / "results" / "phase2.html").read_text(encoding="utf-8")
    hold("phase2.html", stable(re.sub(r"(?s)data:image/[^\"]*|<style>.*?</style>", "<left out>", page), tmp_path))
    hold("status.json", stable(CliRunner().invoke(main, ["status", "--json"]).stdout, tmp_path))
    hold("gate.json", stable(CliRunner().invoke(main, ["gate", "--dry-run", "--json"]).stdout, tmp_path))


def test_the_metrics() -> None:
    hold("metrics.txt", "".join(f"{name}\t{info.unit}\t{info.meaning}\n" for name, info in METRICS.items()))


def criteria_table() -> str:
    """Render the criteria as a Markdown table: name, meaning, limits with their defaults, and whether one decides."""
    rows = ["| criterion | passes when | limits with their defaults | kind |", "|---|---|---|---|"]
    for name, criterion in CRITERIA.items():
        limits = "<br>".join(f"`{key}` {one.default:g}: {one.meaning}" for key, one in criterion.limits.items())
        kind = "finding" if criterion.finding else "decides"
        rows.append(f"| `{name}` | {criterion.meaning} | {limits} | {kind} |")
    return "\n".join(rows)


def test_the_list_of_criteria(root: Path) -> None:
    page = root / "docs" / "criteria.md"
    before_and_table, end, after = page.read_text(encoding="utf-8").partition("<!-- criteria: end -->")
    before, begin, _ = re.split(r"(<!-- criteria: begin.*-->\n)", before_and_table)
    hold(str(page), f"{before}{begin}{criteria_table()}\n{end}{after}")


def test_the_fingerprints() -> None:
    lines = [f"{RunConfig().with_overrides(one).fingerprint} {json.dumps(one)}\n" for one in CONFIGS]
    hold("fingerprints.txt", "".join(lines))


def test_a_request_of_sagemaker() -> None:
    job = Job("roofscale-phase1-001-02-50-samples-abc123")
    built = request.build_request(CONFIG, SETTINGS, job, {"team": "roofs"})
    hold("request.json", json.dumps(built, indent=1, sort_keys=True) + "\n")
