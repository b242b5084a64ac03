"""The command around the forecast of time, and what a dry run shows of it: from records of runs, without a server."""

import json
import math
from pathlib import Path

import pytest

from roofscale import api
from roofscale.cli import dry_run
from roofscale.cli.run_forecast_gpu import forecast_gpu
from roofscale.cli.run_forecast_time import forecast_time
from roofscale.config import RunConfig
from roofscale.errors import ConfigError
from roofscale.forecast import history
from roofscale.phases.phase_file import load_phase
from roofscale.tracking import RunRecord

BASE = RunConfig(encoder="resnet18", image_size=64, max_samples=50, val_samples=10, compute="ml.m5.xlarge", threads=1)
METRICS = {
    "speed/seconds_per_sample": 0.5,
    "speed/cached_seconds_per_sample": 0.5,
    "speed/run_seconds": 6 + 3 + 25 + 2 + 6,
    "speed/setup_seconds": 6 + 1,
    "speed/seconds_per_validated": 0.1,
    "train/validated_samples": 20.0,
    "train/samples": 50.0,
    "train/steps": 25.0,
}
PLAN = """
phase: 1
name: tried
base: {encoder: resnet18, image_size: 64, val_samples: 10, compute: %s, threads: 1}
steps:
  - {name: few, set: {max_samples: 50}, criteria: {completes: }}
  - {name: more, set: {max_samples: 100}, criteria: {completes: }}
"""


def record(run_id: str, config: RunConfig = BASE, **tags: str) -> RunRecord:
    known = {"outcome": "ok", "verdict": "passed", "device": "cpu", "precision": "bf16", "threads": "1", **tags}
    return RunRecord(run_id, "", "climb", "FINISHED", 0.0, 1.0, known, config.to_strings(), METRICS)


@pytest.fixture
def on_record(monkeypatch: pytest.MonkeyPatch) -> list[RunRecord]:
    runs = [record("good"), record("died", outcome="host_oom"), record("never made", ruled_out_by="died")]
    monkeypatch.setattr(history, "recorded_runs", lambda: runs)
    return runs


def test_the_command_says_time_cost_and_where_it_has_them_from(on_record, capsys) -> None:
    forecast_time(BASE, to_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["sources"] == ["good"]
    assert found["run_seconds"]["centre"] == pytest.approx(METRICS["speed/run_seconds"])
    assert found["usd"]["centre"] == pytest.approx(METRICS["speed/run_seconds"] / 3600 * 0.23)
    assert found["basis"] == "measured runs"
    assert found["bound"] == "compute-bound"
    assert found["amounts"]["samples"] == {"rid": [1504, 188]}
    assert found["full_data"]["epoch_seconds"]["centre"] == pytest.approx(0.5 * 1504)
    assert found["full_data"]["parts"]["validation"] == pytest.approx(0.1 * 188 * 2)
    run = found["run_seconds"]
    assert api.forecast_time(BASE) == api.TimeForecast(
        run["centre"], run["low"], run["high"], found["epoch_seconds"]["centre"], found["usd"]["centre"], found["basis"]
    )
    forecast_time(BASE, to_json=False)
    said = capsys.readouterr().out
    assert "42 s (" in said
    assert "12.5 min (" in said, "an epoch of all samples"
    assert "Scaled from good" in said


def test_without_a_run_of_that_model_it_says_how_to_get_one(on_record) -> None:
    with pytest.raises(ConfigError, match=r"encoder=resnet50.*roofscale phase 1"):
        forecast_time(BASE.with_overrides({"encoder": "resnet50"}), to_json=True)


def test_a_gpu_without_runs_gets_a_roofline_marked_as_one(on_record, capsys) -> None:
    asked = BASE.with_overrides({"compute": "ml.g5.xlarge", "batch_size": 4})
    forecast_time(asked, to_json=False)
    said = " ".join(capsys.readouterr().out.split())
    assert "time, roofline estimate" in said
    assert "An estimate, not a measurement" in said
    forecast_gpu(asked, None, to_json=True)
    step = json.loads(capsys.readouterr().out)["step"]
    forecast_time(asked, to_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["basis"] == "roofline estimate"
    assert found["estimate"] == step
    assert found["seconds_per_sample"] == pytest.approx(step["seconds"] / 4)
    assert found["run_seconds"]["high"] > 1.3 * (found["run_seconds"]["centre"] - 9)


@pytest.mark.parametrize("compute", ["ml.m5.xlarge", "ml.g5.xlarge"])
def test_a_dry_run_shows_time_and_cost_of_each_step_and_of_everything(on_record, compute, tmp_path, capsys) -> None:
    file = tmp_path / "phase.yaml"
    file.write_text(PLAN % compute)
    phase = load_phase(file)
    dry_run.print_plan(phase, phase.resolve(), "From the defaults.", to_json=True)
    found = json.loads(capsys.readouterr().out)
    times = [step["forecast"] for step in found["steps"]]
    assert times[0]["run_seconds"]["centre"] < times[1]["run_seconds"]["centre"]
    assert found["total"]["usd"]["high"] == pytest.approx(sum(one["usd"]["high"] for one in times))
    assert found["full_data"]["forecast"]["run_seconds"]["centre"] > times[1]["run_seconds"]["centre"]
    dry_run.print_plan(phase, phase.resolve(), "From the defaults.", to_json=False)
    said = " ".join(capsys.readouterr().out.split())
    assert "Forecast of 2 of 2 steps, each once" in said
    assert "On all samples (rid 1,504 + 188 validated, as published)" in said
    assert ("An estimate, not a measurement" in said) == (compute == "ml.g5.xlarge")


def test_a_dry_run_of_one_training_shows_its_time_and_that_of_everything(on_record, capsys) -> None:
    dry_run.print_run(BASE, to_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["config"]["max_samples"] == 50
    assert found["forecast"]["run_seconds"]["centre"] == pytest.approx(METRICS["speed/run_seconds"])
    assert found["full_data"]["parts"]["training"] == pytest.approx(0.5 * 1504)
    dry_run.print_run(BASE, to_json=False)
    said = " ".join(capsys.readouterr().out.split())
    assert "Forecast, 90% interval: 42 s (" in said
    assert "an epoch 12.5 min (" in said
    dry_run.print_run(BASE.with_overrides({"encoder": "resnet50"}), to_json=False)
    assert "unknown: no similar run on record" in capsys.readouterr().out


def test_the_trials_of_a_search_come_on_top(on_record, tmp_path, capsys) -> None:
    file = tmp_path / "phase.yaml"
    search = "{max_trials: 5, space: {batch_size: [1, 4]}}"
    sought = f"  - {{name: sought, set: {{max_samples: 50}}, criteria: {{completes: }}, search: {search}}}\n"
    file.write_text(PLAN % "ml.m5.xlarge" + sought)
    phase = load_phase(file)
    dry_run.print_plan(phase, phase.resolve(), "", to_json=True)
    found = json.loads(capsys.readouterr().out)
    few, _, sought = found["steps"]
    assert few["trial_seconds"] is None
    largest = 4 * 24  # samples of a trial that takes all of its steps, at half a second each
    assert sought["trial_seconds"]["centre"] > 5 * 0.5 * largest
    dry_run.print_plan(phase, phase.resolve(), "", to_json=False)
    assert "trials of sought, at most 5, " in " ".join(capsys.readouterr().out.split())


def test_a_plan_of_which_nothing_is_known_says_so(monkeypatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setattr(history, "recorded_runs", list)
    file = tmp_path / "phase.yaml"
    file.write_text(PLAN % "local")
    phase = load_phase(file)
    dry_run.print_plan(phase, phase.resolve(), "", to_json=True)
    found = json.loads(capsys.readouterr().out)
    assert [step["forecast"] for step in found["steps"]] == [None, None]
    assert found["total"] is None
    dry_run.print_plan(phase, phase.resolve(), "", to_json=False)
    assert "No forecast of time and cost" in capsys.readouterr().out


def test_a_run_on_a_gpu_is_known_by_the_gpu_of_its_compute(on_record) -> None:
    config = BASE.with_overrides({"compute": "ml.g5.xlarge"})
    found = history.from_run(record("gpu", config, device="cuda"))
    assert (found.on_gpu, found.gpu, found.threads) == (True, "A10G", 1)
    assert history.from_run(record("cpu", config)).gpu == ""
    assert math.isclose(found.metrics["speed/seconds_per_sample"], 0.5)
