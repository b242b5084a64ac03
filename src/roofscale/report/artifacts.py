"""Artifacts of runs and phases in MLflow: figures, reports, measurements and models."""

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
    """Save the model of a config with the weights of a run as an MLflow model, in a folder that must not exist yet."""
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
        following: the phase after it; None after the last.
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
    keep_weights: bool = False,
) -> None:
    """Log figures, prediction sheets, the measurement and standard error of a run; if it ended well, its best model.

    The local checkpoints are deleted once the model is logged, unless they are kept.

    Args:
        run: its MLflow run.
        config: of the run.
        measurement: of the run.
        folder: of the run.
        max_share: memory margin as a share of the limit, drawn as a line in the memory figure.
        keep_weights: keep the local checkpoints.
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
        if not keep_weights:  # they are in MLflow now, and each step would leave a hundred megabytes behind
            best.unlink()
            (folder / checkpoint.CHECKPOINT).unlink(missing_ok=True)
