"""``mlflow run`` on a copy of the project, and the data commands: the rest of what a newcomer types."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType

ROOT = Path(__file__).resolve().parents[2]
TINY = "image_size=64 encoder=test_resnet max_samples=4 val_samples=2 threads=1 num_workers=0"
AMOUNTS = ["--datasets", "rid", "--train", "4", "--val", "2", "--test", "1", "--image-px", "64"]


def run(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=900, env=environment, check=False)


def roofscale(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return run(folder, sys.executable, "-m", "roofscale", *words)


def test_mlflow_run_trains_and_leaves_no_litter(tmp_path: Path, empty_store: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("MLproject", "python_env.yaml", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    assert roofscale(tmp_path, "data", "generate", "made", *AMOUNTS).returncode == 0
    words = [sys.executable, "-m", "mlflow", "run", ".", "-e", "train", "--env-manager", "local"]
    done = run(tmp_path, *words, "-P", f"set=data_root=made {TINY}")
    assert done.returncode == 0, done.stderr
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (trained,) = client.search_runs([client.get_experiment_by_name("roofscale-train").experiment_id])
    assert trained.data.params["max_samples"] == "4"
    assert trained.data.tags["outcome"] == "ok"
    # A process that outlives the command removes the run that mlflow opened around it.
    deadline = time.monotonic() + 60
    while client.search_runs(["0"]) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert client.search_runs(["0"]) == []
    (around,) = client.search_runs(["0"], run_view_type=ViewType.DELETED_ONLY)
    assert around.data.tags["roofscale.run"] == trained.info.run_id


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
