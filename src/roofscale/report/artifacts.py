"""The best model of a run, rebuilt from its weights and written as MLflow keeps it."""

import logging
from pathlib import Path

import numpy as np

from roofscale.config import RunConfig
from roofscale.errors import RecordError
from roofscale.measurement import Measurement, Outcome
from roofscale.memory_margin import MEMORY_MARGIN
from roofscale.phases.phase_file import Phase
from roofscale.phases.results import PhaseResult
from roofscale.report.figures.phase import phase_figures
from roofscale.report.figures.run import run_figures, sheet_figure
from roofscale.report.phase_html import REPORT, UI, phase_html
from roofscale.tracking import TrackedRun, save_model, tracking_uri
from roofscale.train import checkpoint


def export_model(config: RunConfig, weights: Path, folder: Path) -> None:
    """Write the model of a config, with the weights of a run of it, into a folder that is not there yet."""
    from roofscale import model as models  # imports PyTorch
    from roofscale.torch_compat import TRACING

    with TRACING:
        model = models.build(config.with_overrides({"pretrained": False}))
        model.load_state_dict(checkpoint.load(weights, config.fingerprint)["model"])
        save_model(model, config.image_size, folder)


_log = logging.getLogger(__name__)


def publish_phase(parent: TrackedRun, climb: PhaseResult, following: Phase | None = None) -> None:
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


def publish_run(
    run: TrackedRun,
    config: RunConfig,
    measurement: Measurement,
    folder: Path,
    max_share: float = MEMORY_MARGIN,
) -> None:
    """Log figures, prediction sheets, the measurement, and the best model of a run that went well.

    Args:
        run: its MLflow run.
        config: of the run.
        measurement: of the run.
        folder: of the run.
        max_share: of the memory that the run may take; a line in its figure.
    """
    for name, figure in run_figures(measurement, max_share).items():
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
        try:
            run.model(lambda folder: export_model(config, best, folder))
        except RecordError as error:
            _log.warning(f"{error} The run has no model.")
            return
        # The weights are in MLflow now, and the run is over: a hundred megabytes a step would be left lying.
        best.unlink()
        (folder / checkpoint.CHECKPOINT).unlink(missing_ok=True)
