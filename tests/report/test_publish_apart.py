"""A model that is traced in a process of its own is the one that a run has left."""

from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch

from roofscale import model as models
from roofscale.config import RunConfig
from roofscale.measurement import Measurement, Outcome
from roofscale.report.publish import publish_run
from roofscale.tracking import Tracker
from roofscale.tracking.models import find_model
from roofscale.train import checkpoint

CONFIG = RunConfig(encoder="resnet18", image_size=64, datasets=("rid",))


@pytest.mark.usefixtures("tracking_store")
def test_a_launcher_of_jobs_publishes_the_model_without_holding_it(tmp_path: Path) -> None:
    model = models.build(CONFIG).eval()
    checkpoint.save({"fingerprint": CONFIG.fingerprint, "model": model.state_dict()}, tmp_path / checkpoint.BEST)
    tracker = Tracker("tried", tmp_path / "runs")
    run = tracker.start("one", {})
    publish_run(run, CONFIG, Measurement(Outcome.OK, "", CONFIG.fingerprint), tmp_path, apart=True)
    assert not (tmp_path / checkpoint.BEST).exists()
    image_NCHW = np.random.default_rng(0).integers(0, 255, (1, 3, 64, 64), np.uint8)
    stored = mlflow.pytorch.load_model(find_model(run.run_id).uri)
    with torch.no_grad():
        torch.testing.assert_close(stored(torch.from_numpy(image_NCHW)), model(torch.from_numpy(image_NCHW)))
