"""A phase through the real command line on tiny generated data: what a person finds on disk, in MLflow and in print."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from mlflow import MlflowClient
from tests.command_line import WITH_FAKE_TRAINER, roofscale

from roofscale.cli import main

PHASE = """
phase: 1
name: tiny
question: Does it run at all?
base: {image_size: 64, encoder: test_resnet, val_samples: 6, threads: 1, checkpoint_seconds: 0}
watch: [memory/peak_mib, speed/samples_per_s, val/rid/iou]
on_insufficient: continue
on_failure: stop
steps:
  - name: base
    set: {max_samples: 4}
    criteria: {completes: , memory_margin: {max_share: 0.8}}
  - name: more
    set: {max_samples: 16, epochs: 3}
    expect: {speed/seconds_per_epoch: {value: 4, of: previous, tolerance: 0.9}}
    criteria: {completes: , learning: }
"""


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    amounts = ["--train", "16", "--val", "6", "--test", "2", "--image-px", "64"]
    made = roofscale(folder, "data", "generate", str(folder / "made"), "--datasets", "rid", *amounts)
    assert made.returncode == 0, made.stderr
    return folder / "made"


def prepare(folder: Path, store: Path) -> list[str]:
    shutil.copy(store, folder / "mlflow.db")
    (folder / "experiments").mkdir()
    (folder / "experiments" / "phase1.yaml").write_text(PHASE)
    return ["phase", "1"]


@pytest.fixture(scope="module")
def climbed(data: Path, empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("phase")
    done = roofscale(folder, *prepare(folder, empty_store), "--set", f"data_root={data}", "--json")
    assert done.returncode == 3, done.stderr  # six validation samples are too few for a verdict on learning
    return folder, json.loads(done.stdout)


def client(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder}/mlflow.db")


def test_the_verdict_says_what_is_known_and_what_is_not(climbed: tuple[Path, dict[str, Any]]) -> None:
    _, found = climbed
    assert found["verdict"] == "insufficient_evidence"
    verdicts = {step["step"]: {c["name"]: c["verdict"] for c in step["criteria"]} for step in found["steps"]}
    assert verdicts["base"] == {"completes": "passed", "memory_margin": "passed"}
    assert verdicts["more"]["learning"] == "insufficient_evidence"


def test_mlflow_holds_one_parent_and_a_child_a_step(climbed: tuple[Path, dict[str, Any]]) -> None:
    folder, found = climbed
    mlflow_client = client(folder)
    experiment = mlflow_client.get_experiment_by_name("roofscale-phase1")
    runs = {run.info.run_name: run for run in mlflow_client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"phase1 attempt 1", "base", "more"}
    parent = runs["phase1 attempt 1"]
    assert "insufficient evidence" in parent.data.tags["mlflow.note.content"]
    assert found["run_id"] == parent.info.run_id
    for name, samples in (("base", "4"), ("more", "16")):
        run = runs[name]
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.params["max_samples"] == samples
        assert run.data.tags["outcome"] == "ok"
        assert run.data.tags["step"] == name
        assert len(run.data.tags["data_fingerprint"]) > 12
        assert run.inputs.dataset_inputs[0].dataset.name == "rid"
        assert run.data.metrics["memory/peak_mib"] > 100
        assert {"train/loss", "val/rid/iou_roof", "speed/samples_per_s", "memory/share"} <= set(run.data.metrics)
    assert mlflow_client.search_runs(["0"]) == []


def test_figures_and_a_loadable_model_are_artifacts(
    climbed: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, found = climbed
    run_id = found["steps"][-1]["run_id"]
    figures = {Path(item.path).name for item in client(folder).list_artifacts(run_id, "figures")}
    assert figures == {"loss.png", "memory.png", "throughput.png", "predictions-rid.png"}
    monkeypatch.chdir(folder)  # the default store keeps artifacts relative to where it was made
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    model = mlflow.pytorch.load_model(f"runs:/{run_id}/model")
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (3, 3, 96, 96), dtype=np.uint8))
    with torch.inference_mode():
        logits = model(images)
    assert logits.shape == (3, 4, 96, 96)
    assert torch.isfinite(logits).all()


def test_the_strategy_document_has_the_results(climbed: tuple[Path, dict[str, Any]]) -> None:
    folder, found = climbed
    text = (folder / "experiments" / "STRATEGY.md").read_text()
    assert "<!-- phase 1: begin -->" in text
    assert found["run_id"] in text
    assert "learning" in text


def test_status_says_where_everything_stands(climbed: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = climbed
    rows = json.loads(roofscale(folder, "status", "--json").stdout)["phases"]
    assert rows[0]["verdict"] == "insufficient_evidence"
    assert rows[0]["steps"] == {"base": "passed", "more": "insufficient evidence"}
    assert "insufficient evidence" in roofscale(folder, "status").stdout


def test_a_dry_run_says_what_would_run_and_runs_nothing(data: Path, tmp_path: Path, empty_store: Path) -> None:
    words = [*prepare(tmp_path, empty_store), "--set", f"data_root={data} lr=1e-4", "--dry-run"]
    plan = json.loads(roofscale(tmp_path, *words, "--json").stdout)
    assert [step["config"]["max_samples"] for step in plan["steps"]] == [4, 16]
    assert {step["config"]["lr"] for step in plan["steps"]} == {1e-4}
    assert "max_samples=16" in roofscale(tmp_path, *words).stdout
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--set", "batchsize=4"], "Did you mean 'batch_size'"),
        (["--set", "max_samples=4"], "cannot be overridden in phase 1"),
        (["--compute", "ml.m5.xlrge"], "ml.m5.xlarge"),
        (["--set", "data_root=/nowhere/at/all"], "no such folder"),
        (["--file", "absent.yaml"], "absent.yaml"),
    ],
)
def test_a_users_mistake_is_one_clear_message(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, [*prepare(tmp_path, empty_store), *words])
    assert done.exit_code == 2
    assert says in done.stderr
    assert isinstance(done.exception, SystemExit)
    assert not (tmp_path / "runs").exists()


def test_a_run_over_its_memory_is_killed_judged_and_closed_as_failed(
    data: Path, tmp_path: Path, empty_store: Path
) -> None:
    # 205 MiB: less than PyTorch's own memory, whatever of its libraries other tests' processes share with it
    words = [*prepare(tmp_path, empty_store), "--set", f"data_root={data}", "--compute", "local:0.2", "--json"]
    done = roofscale(tmp_path, *words)
    assert done.returncode == 1
    (step,) = json.loads(done.stdout)["steps"]
    assert step["outcome"] == "host_oom"
    run = client(tmp_path).get_run(step["run_id"])
    assert run.info.status == "FAILED"
    assert run.data.tags["outcome"] == "host_oom"
    assert run.data.metrics["memory/peak_mib"] > 150


def wait_for(condition: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("how", "code"), [(signal.SIGKILL, -9), pytest.param(signal.SIGTERM, 130, marks=pytest.mark.slow)]
)
def test_a_phase_that_was_ended_goes_on_with_the_step_under_way(
    data: Path, tmp_path: Path, empty_store: Path, how: signal.Signals, code: int
) -> None:
    words = [*prepare(tmp_path, empty_store), "--set", f"data_root={data}", "--json"]
    events = tmp_path / "runs" / "roofscale-phase1" / "001" / "02-more" / "events.jsonl"
    first = subprocess.Popen(
        [*WITH_FAKE_TRAINER, *words], cwd=tmp_path, env=environment(tmp_path), stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: events.exists() and '"event": "step"' in events.read_text())
        first.send_signal(how)
        assert first.wait(60) == code
    finally:
        first.kill()
    assert not (events.parent / "verdict.json").exists()
    begun = json.loads((events.parent / "run.json").read_text())["run_id"]

    done = roofscale(tmp_path, *words, fake=True)
    found = json.loads(done.stdout)
    assert [step["step"] for step in found["steps"]] == ["base", "more"]
    assert found["steps"][1]["run_id"] == begun
    assert found["steps"][1]["outcome"] == "ok"
    assert '"resumed"' in events.read_text()
    runs = client(tmp_path).search_runs([client(tmp_path).get_experiment_by_name("roofscale-phase1").experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len(runs) == 3
    losses = client(tmp_path).get_metric_history(begun, "train/loss")
    assert sorted(point.step for point in losses) == list(range(1, 25))
