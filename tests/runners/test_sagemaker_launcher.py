"""A launcher of jobs publishes the model of a job, and makes forecasts of the jobs that follow."""

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tests.runners.fake_sagemaker import EveryJobGoesWell
from tests.runners.sagemaker_settings import SETTINGS

from roofscale import model as models
from roofscale.cli import main
from roofscale.config import RunConfig
from roofscale.runners.sagemaker import session
from roofscale.tracking.models import find_model
from roofscale.train import checkpoint

SMALL = RunConfig(encoder="test_resnet", image_size=64, threads=1, compute="ml.m5.xlarge", data_root="s3://roofs/data",
                  max_samples=10, val_samples=6)  # fmt: skip
WORDS = [f"{knob}={value}" for knob, value in SMALL.diff(RunConfig()).items()]


def launch(*words: str, weights: Path | None = None) -> dict[str, Any]:
    """Return what a command with ``--runner sagemaker`` prints."""
    cloud = EveryJobGoesWell(weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "connect", lambda *_: cloud)
        for name, value in {"ROLE": SETTINGS.role, "BUCKET": SETTINGS.bucket, "IMAGE": SETTINGS.image}.items():
            patch.setenv(f"ROOFSCALE_SAGEMAKER_{name}", value)
        done = CliRunner().invoke(main, [*words, "--runner", "sagemaker", "--json"])
    assert done.exit_code in (0, 3), done.stderr  # 3: little evidence
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("tracking_store")
def test_a_training_as_a_job_publishes_the_model_of_the_job(tmp_path: Path) -> None:
    model = models.build(SMALL).eval()
    weights = tmp_path / "weights.pt"
    checkpoint.save({"fingerprint": SMALL.fingerprint, "model": model.state_dict()}, weights)
    found = launch("train", *WORDS, weights=weights)
    assert found["outcome"] == "ok"
    image_NCHW = np.random.default_rng(0).integers(0, 255, (1, 3, 64, 64), np.uint8)
    stored = mlflow.pytorch.load_model(find_model(found["run_id"]).uri)
    with torch.no_grad():
        torch.testing.assert_close(stored(torch.from_numpy(image_NCHW)), model(torch.from_numpy(image_NCHW)))


PLAN = """
phase: 1
name: three
question: Is the fourth foreseen?
base: {max_samples: 10, epochs: 1}
watch: [memory/peak_mib]
steps:
  - {name: one, set: {batch_size: 1}, criteria: {completes: }}
  - {name: two, set: {batch_size: 2}, criteria: {completes: }}
  - {name: three, set: {batch_size: 3}, criteria: {completes: }}
  - {name: four, set: {batch_size: 4}, criteria: {completes: }}
"""


@pytest.mark.usefixtures("tracking_store")
def test_a_phase_as_jobs_forecasts_memory_from_traced_tensors(tmp_path: Path) -> None:
    (tmp_path / "phase.yaml").write_text(PLAN)
    found = launch("phase", "1", "--file", "phase.yaml", "--set", " ".join(WORDS))
    assert [step["outcome"] for step in found["steps"]] == ["ok"] * 4
    metrics = mlflow.MlflowClient().get_run(found["steps"][-1]["run_id"]).data.metrics
    assert metrics["forecast/host_peak_mib_low"] < 1500 < metrics["forecast/host_peak_mib_high"]


@pytest.mark.usefixtures("tracking_store")
def test_a_dry_run_for_a_gpu_forecasts_its_memory(tmp_path: Path) -> None:
    (tmp_path / "phase.yaml").write_text(PLAN)
    words = ("--set", f"{' '.join(WORDS)} compute=ml.g5.xlarge")
    found = launch("phase", "1", "--file", "phase.yaml", "--dry-run", *words)
    assert all(step["gpu_memory"]["total_mib"] > 0 for step in found["steps"])
