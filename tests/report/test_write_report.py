"""``roofscale report``: from the tracking server to the documents, through the command line."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.console import Console
from tests.report.seeded_tracking import seed
from tests.report.synthetic_results import BATCHES, SAMPLES, passed_samples, rolled_back

from roofscale.cli import main
from roofscale.cli.climb_options import ClimbOptions
from roofscale.cli.run_phase import publish_result
from roofscale.phases.history import latest_result
from roofscale.report.phase_section import phase_section, truncate_description
from roofscale.tracking import Tracker, get_run


@pytest.fixture
def project(tmp_path: Path, tracking_store: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "phase1.yaml").write_text(SAMPLES)
    (tmp_path / "experiments" / "phase2.yaml").write_text(BATCHES)
    return tmp_path


def report(*words: str) -> Result:
    return CliRunner().invoke(main, ["report", *words])


def written(project: Path) -> dict[str, bytes]:
    return {str(f.relative_to(project)): f.read_bytes() for f in (project / "experiments").rglob("*") if f.is_file()}


def test_all_documents_are_written_from_what_the_server_has(project: Path) -> None:
    runs = [seed(climb, project) for climb in (passed_samples(), rolled_back())]
    done = report("--json")
    assert done.exit_code == 0, done.output
    documents = json.loads(done.stdout)["documents"]
    assert documents == ["experiments/STRATEGY.md", "experiments/launch.ipynb"]
    found = written(project)
    assert set(found) == {
        *documents, "experiments/phase1.yaml", "experiments/phase2.yaml", "experiments/results/phase1.json",
        "experiments/results/phase1.html", "experiments/results/calibration.json",
        "experiments/results/phase2.json", "experiments/results/phase2.html",
    }  # fmt: skip
    strategy = found["experiments/STRATEGY.md"].decode()
    for text in (*runs, "batch-16 at batch_size=12", "killed by the kernel", "## Gate before the GPU\n\nClosed"):
        assert text in strategy
    assert "## Forecast and measured" in strategy
    calibration = json.loads(found["experiments/results/calibration.json"])
    assert [one["runs"] for one in calibration["quantities"]] == [0] * 4, "none of these runs was forecast"
    record = json.loads(found["experiments/results/phase2.json"])
    assert record["run_id"] == runs[1]
    assert record["last_good"]["config"] == {"max_samples": "100", "batch_size": "12"}
    assert [(run["decides"], run["outcome"]) for run in record["runs"]] == [
        (True, "ok"), (True, "ok"), (False, "host_oom"), (False, "host_oom"), (True, "ok")
    ]  # fmt: skip
    assert record["plan"]["steps"][1]["name"] == "batch-8"
    assert record["expectations"][0]["verdict"] == "failed"
    assert report().exit_code == 0
    assert written(project) == found, "nothing new on the server, and yet another document"


def test_the_server_gives_back_the_climb_that_was_put_there(project: Path) -> None:
    seed(rolled_back(), project)
    climb = latest_result(2)
    assert climb
    assert [run.step.name for run in climb.all_runs()] == ["batch-4", "batch-8", "batch-16", "batch-16", "batch-16"]
    assert climb.last_good
    assert climb.last_good.config.batch_size == 12


def test_without_any_climb_nothing_is_changed(project: Path) -> None:
    (project / "experiments" / "STRATEGY.md").write_text("mine")
    before = written(project)
    done = report()
    assert done.exit_code == 2
    assert "expected a climb of a phase" in done.output
    assert "roofscale phase 1" in done.output
    assert written(project) == before


@pytest.mark.parametrize(
    ("name", "text"),
    [("STRATEGY.md", "<!-- yours: begin a -->\nunfinished"), ("launch.ipynb", "{"), ("STRATEGY.md", "\xff")],
)
def test_a_document_that_cannot_be_read_is_left_alone_and_so_are_the_others(
    project: Path, name: str, text: str
) -> None:
    seed(passed_samples(), project)
    (project / "experiments" / name).write_text(text, encoding="latin-1")
    before = written(project)
    done = report()
    assert done.exit_code == 2
    assert name in done.output
    assert written(project) == before


def test_a_climb_is_described_in_mlflow_as_the_report_describes_it(project: Path) -> None:
    seed(rolled_back(), project)
    climb = latest_result(2)
    assert climb
    order = ClimbOptions((), project / "nowhere", project / "runs", project / "data")
    noted = replace(climb, notes=("the phase file was edited",))  # after the attempt began
    publish_result(noted, Tracker(climb.experiment, project / "runs"), order, Console(quiet=True))
    again = latest_result(2)
    assert again
    assert again.notes == noted.notes
    section = truncate_description(phase_section(again, None), "STRATEGY.md")
    assert get_run(climb.run_id).tags["mlflow.note.content"] == section
