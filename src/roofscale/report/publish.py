"""Put what a run yielded where people look for it: figures, pictures and the model in its MLflow run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from roofscale.config import RunConfig
from roofscale.measurement import Measurement, Outcome, ResourceSample
from roofscale.phases.climb import ClimbResult
from roofscale.phases.plan import Phase
from roofscale.report.figures import run_figures, sheet_figure
from roofscale.report.html import REPORT, UI, phase_html
from roofscale.report.phase_figures import phase_figures
from roofscale.report.trained import get_ready, write_model
from roofscale.runners.beside import begin
from roofscale.tracking import TrackedRun, tracking_uri
from roofscale.train import checkpoint


def publish_phase(parent: TrackedRun, climb: ClimbResult, following: Phase | None = None) -> None:
    """Log the figures and the report of a climb in its parent run.

    Args:
        parent: the climb's MLflow run.
        climb: the attempt.
        following: the phase after it, where there is one.
    """
    for name, figure in phase_figures(climb).items():
        parent.figure(figure, f"figures/{name}")
    uri = tracking_uri()
    parent.text(phase_html(climb, following, uri if uri.startswith("http") else UI), REPORT)


def publish_run(run: TrackedRun, config: RunConfig, measurement: Measurement, folder: Path) -> None:
    """Log figures, prediction sheets, the measurement, and the best model of a run that went well."""
    for name, figure in run_figures(measurement).items():
        run.figure(figure, f"figures/{name}")
    for dataset in config.datasets:
        sheet = folder / f"sheet-{dataset}.npz"
        if sheet.exists():
            with np.load(sheet, allow_pickle=False) as arrays:
                run.figure(sheet_figure(arrays), f"figures/predictions-{dataset}.png")
    for file in ("measurement.json", "stderr.log"):
        if (folder / file).exists() and (folder / file).stat().st_size:
            run.artifact(folder / file)
    best = folder / checkpoint.BEST
    if measurement.outcome is Outcome.OK and best.exists():
        run.model(lambda folder: write_model(config, best, folder))
        # The weights are in MLflow now, and the run is over: a hundred megabytes a step would be left lying.
        best.unlink()
        (folder / checkpoint.CHECKPOINT).unlink(missing_ok=True)


class Ahead:
    """A listener to a run elsewhere: what writes its model is made ready beside this process once training ends."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._last_step: float = float("inf")

    def event(self, event: Mapping[str, Any]) -> None:
        """Validation, checkpoint and copying follow the last step."""
        if event["event"] == "start":
            self._last_step = event["steps_planned"]
        elif event["event"] == "step" and event["step"] >= self._last_step:
            begin(get_ready, self._config)

    def resources(self, sample: ResourceSample) -> None:
        """Ignore them."""
