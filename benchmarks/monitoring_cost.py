"""Samples a second with monitoring and MLflow logging over the same training process left alone."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.measure import GENERATED, Result, by_turns, run_alone, scratch_folder
from roofscale.config import RunConfig
from roofscale.data.sources import resolve_data_root
from roofscale.files import write_json
from roofscale.measurement import Outcome
from roofscale.runners.local import EVENTS, TRAIN, LocalRunner
from roofscale.tracking import Tracker
from roofscale.train import malloc

ROUNDS = 3
CONFIG = RunConfig(image_size=512, max_samples=60, val_samples=2, checkpoint_seconds=3600)


def measure() -> list[Result]:
    """By turns; the rate is that of the median step in the run's own events, the first step left out."""
    root, _ = resolve_data_root(CONFIG, GENERATED)
    config = CONFIG.with_overrides({"data_root": str(root)})
    with scratch_folder() as store:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{store}/mlflow.db"
        tracker = Tracker("bench")
        return [
            by_turns(
                "samples/s with monitoring and MLflow logging over without",
                lambda: _watched(config, tracker),
                lambda: _alone(config),
                rounds=ROUNDS,
                target=0.99,
                note="resource sampler, event log, MLflow metrics and system metrics; local sqlite store",
            )
        ]


def _watched(config: RunConfig, tracker: Tracker) -> float:
    with scratch_folder() as folder:
        run = tracker.start("watched", {})
        with run.system_metrics():
            measurement = LocalRunner(folder, run)(config)
        run.log_summary(measurement)
        run.finish(measurement.outcome)
        assert measurement.outcome is Outcome.OK, measurement.detail
        return _rate(config, folder)


def _alone(config: RunConfig) -> float:
    with scratch_folder() as folder:
        write_json(folder / "config.json", config.as_dict())
        environment = {**os.environ, **malloc.training_environment()}
        subprocess.run([*TRAIN, str(folder)], check=True, stdout=sys.stderr, env=environment)
        return _rate(config, folder)


def _rate(config: RunConfig, folder: Path) -> float:
    events = [json.loads(line) for line in (folder / EVENTS).read_text(encoding="utf-8").splitlines() if line]
    seconds = [event["seconds"] for event in events if event["event"] == "step"]
    return config.batch_size / statistics.median(seconds[1:])


if __name__ == "__main__":
    run_alone(measure)
