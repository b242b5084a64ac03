"""``mlflow run`` on a copy of the project, and the data commands: the rest of what a newcomer types."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from tests.command_line import roofscale

from roofscale import invocation
from roofscale.cli.options import adopt_project_run

ROOT = Path(__file__).resolve().parents[2]
TINY = "image_size=64 encoder=test_resnet max_samples=4 val_samples=2 threads=1 num_workers=0"
TINY_PHASE = "phase: 1\nname: tiny\nsteps:\n- {name: base, set: {epochs: 1}, criteria: {completes: }}\n"
AMOUNTS = ["--datasets", "rid", "--train", "4", "--val", "2", "--test", "1", "--image-px", "64"]


def run(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=900, env=environment, check=False)


@pytest.fixture
def project(tmp_path: Path, empty_store: Path) -> Path:
    """A copy of the project with a little data."""
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("MLproject", "python_env.yaml", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    assert roofscale(tmp_path, "data", "generate", "made", *AMOUNTS).returncode == 0
    return tmp_path


def mlflow_run(folder: Path, entry_point: str, *words: str) -> "subprocess.CompletedProcess[str]":
    given = [word for parameter in words for word in ("-P", parameter)]
    command = [sys.executable, "-m", "mlflow", "run", ".", "-e", entry_point, "--env-manager", "local"]
    if entry_point == "phase1":
        command += ["--experiment-name", "roofscale-phase1"]
    return run(folder, *command, *given)


@pytest.mark.slow
def test_mlflow_run_passes_knobs_on_and_its_run_points_to_the_results(project: Path) -> None:
    words = [f"set=data_root=made {TINY}", "batch_size=4", "weight_decay=0.125"]  # the last is not listed
    done = mlflow_run(project, "train", *words)
    assert done.returncode == 0, done.stderr
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    (trained,) = client.search_runs([client.get_experiment_by_name("roofscale-train").experiment_id])
    given = {name: trained.data.params[name] for name in ("max_samples", "batch_size", "weight_decay", "encoder")}
    assert given == {"max_samples": "4", "batch_size": "4", "weight_decay": "0.125", "encoder": "test_resnet"}
    assert trained.data.tags["outcome"] == "ok"
    (around,) = client.search_runs(["0"])
    assert around.info.status == "FINISHED"
    assert around.data.tags["roofscale.run"] == trained.info.run_id
    assert trained.info.run_id in around.data.tags["mlflow.note.content"]

    wrong = mlflow_run(project, "train", "batch_sizes=4")
    assert wrong.returncode != 0
    assert "Did you mean" in wrong.stderr
    assert "'--batch_size'" in wrong.stderr


def test_the_run_around_a_phase_becomes_its_attempt(project: Path) -> None:
    (project / "experiments").mkdir()
    (project / "experiments" / "phase1.yaml").write_text(TINY_PHASE)
    done = mlflow_run(project, "phase1", f"set=data_root=made {TINY}")
    assert done.returncode == 0, done.stderr
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    experiment = client.get_experiment_by_name("roofscale-phase1")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"phase1 attempt 1", "base"}
    parent = runs["phase1 attempt 1"]
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["mlflow.project.entryPoint"] == "phase1"
    assert parent.data.tags["verdict"] == "passed"
    assert "roofscale.run" not in parent.data.tags
    assert runs["base"].data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert client.search_runs(["0"]) == []


@pytest.mark.slow
def test_a_remedy_is_spelled_for_mlflow(project: Path) -> None:
    (project / "experiments").mkdir()
    (project / "experiments" / "phase1.yaml").write_text(TINY_PHASE)
    refused = mlflow_run(project, "phase1", f"set=data_root=made {TINY}", "epochs=2")
    assert "mlflow run . -e train" in refused.stderr


def test_a_run_of_the_users_own_is_left_as_it_is(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    own = client.create_run("0", run_name="nightly-pipeline", tags={"mlflow.project.entryPoint": "train"})
    client.log_metric(own.info.run_id, "tiles_bought", 1200.0)  # it is running, as a pipeline's would be
    before = client.get_run(own.info.run_id).to_dictionary()
    monkeypatch.setattr(invocation, "through_mlflow", [])
    for words in (["--dry-run", "seed=1"], ["data_root=made", *TINY.split()]):
        monkeypatch.setenv("MLFLOW_RUN_ID", own.info.run_id)
        assert roofscale(project, "train", *words, fake=True).returncode == 0
    assert client.get_run(own.info.run_id).to_dictionary() == before


@pytest.mark.parametrize(
    ("entry_point", "status", "ours"),
    [("phase1", "RUNNING", True), ("train", "RUNNING", False), ("phase1", "FINISHED", False), (None, "RUNNING", False)],
)
def test_only_the_run_that_mlflow_run_has_just_opened_is_ours(
    tracking_store: None, monkeypatch: pytest.MonkeyPatch, entry_point: str | None, status: str, ours: bool
) -> None:
    monkeypatch.setattr(invocation, "through_mlflow", [])
    client = MlflowClient()
    tags = {"mlflow.project.entryPoint": entry_point} if entry_point else {}
    run_id = client.create_run("0", tags=tags).info.run_id
    client.update_run(run_id, status=status)
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    found = adopt_project_run("phase1")
    assert (found is not None) == bool(invocation.through_mlflow) == ours
    assert "MLFLOW_RUN_ID" not in os.environ


def test_generated_data_passes_the_check_and_a_broken_file_is_named(tmp_path: Path) -> None:
    would = roofscale(tmp_path, "data", "generate", "made", *AMOUNTS, "--dry-run")
    assert "would write" in would.stdout
    assert not (tmp_path / "made").exists()
    made = roofscale(tmp_path, "data", "generate", "made", *AMOUNTS, "--json")
    assert json.loads(made.stdout)["spec"]["train"] == 4

    good = roofscale(tmp_path, "data", "check", "made")
    assert (good.returncode, "No problem found" in good.stdout) == (0, True)
    broken = sorted((tmp_path / "made").glob("rid/**/*.tif"))[0]
    broken.write_bytes(b"no image")
    bad = roofscale(tmp_path, "data", "check", "made", "--json")
    assert bad.returncode == 1
    (problem,) = json.loads(bad.stdout)["datasets"][0]["problems"]
    assert problem["path"].endswith(broken.name)
    assert problem["kind"] == "broken"


@pytest.mark.parametrize("words", [["train", "--knobs"], ["train", "--dry-run", "batch_size=8"]])
def test_a_script_can_read_what_a_person_reads(tmp_path: Path, words: list[str]) -> None:
    found = json.loads(roofscale(tmp_path, *words, "--json").stdout)
    assert "batch_size" in found or found["config"]["batch_size"] == 8
    assert "batch_size" in roofscale(tmp_path, *words).stdout
