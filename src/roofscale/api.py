"""The public API for notebooks and scripts: a dozen names that stay stable while the modules behind them change.

All functions work in the current project folder, as the commands do: phase files in ``experiments/``, runs in
``runs/``, and the tracking server of ``MLFLOW_TRACKING_URI``, or else MLflow's local database. They raise a
``RoofscaleError``: a ``ConfigError`` for a wrong value, a ``TrackingError`` if the server does not answer. Importing
this module is cheap: MLflow, pandas and PyTorch are imported by the functions that need them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roofscale import config as configs
from roofscale.cli.options import EXPERIMENTS, GENERATED, RUNS
from roofscale.config import FIELDS, RunConfig
from roofscale.errors import RoofscaleError
from roofscale.invocation import PHASES

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas

__all__ = [
    "MemoryForecast",
    "RoofscaleError",
    "RunConfig",
    "TimeForecast",
    "forecast_gpu_memory",
    "forecast_host_memory",
    "forecast_time",
    "load_config",
    "predict_image",
    "prepare_job",
    "read_runs",
    "read_steps",
    "run_phase",
]


@dataclass(frozen=True)
class MemoryForecast:
    """The forecast peak memory of a run."""

    mib: float  # expected peak
    low_mib: float  # lower end of its interval
    high_mib: float  # upper end
    limit_mib: float  # memory of the compute: of the host, or usable memory of one GPU
    fit: str  # the interval against 80 % of the limit: fits, too large, or cannot be told
    largest_batch: int  # largest batch_size whose interval stays under 80 % of the limit; 0 if none does


@dataclass(frozen=True)
class TimeForecast:
    """The forecast duration and cost of a run, with a 90 % interval."""

    seconds: float  # expected duration of the run
    low_seconds: float  # lower end of its interval
    high_seconds: float  # upper end
    epoch_seconds: float  # expected duration of one pass over the training samples
    usd: float | None  # expected cost of the run; None if the compute has no price
    basis: str  # what the forecast rests on: measured runs, or a roofline estimate


def load_config(*overrides: str, file: Path | str | None = None) -> RunConfig:
    """Resolve a run config: the defaults, then a YAML file, then overrides such as ``"batch_size=8"``.

    ``RunConfig.with_overrides`` returns a changed copy, ``as_dict`` lists the knobs.

    Raises:
        ConfigError: an unreadable file, an unknown knob or a value that does not fit.
    """
    return configs.load(Path(file) if file else None, overrides)


def run_phase(
    number: int, *overrides: str, fresh: bool = False, from_defaults: bool = False, dry_run: bool = False
) -> dict[str, Any] | None:
    """Run a phase after the phases that it needs, as ``roofscale phase`` does; an interrupted attempt is continued.

    Args:
        number: of the phase, 1 to 5.
        overrides: ``"key=value"`` words for every step.
        fresh: start a new attempt even if one was interrupted.
        from_defaults: start from the default config, not from the last good one of the phase before.
        dry_run: print what would run, and run nothing.

    Returns:
        The object that ``roofscale phase --json`` prints, with ``phase``, ``verdict`` (passed, failed or
        insufficient_evidence), ``interrupted``, ``run_id``, ``steps`` and more. If a phase that was needed first
        failed, that phase's object. None after a dry run, or if a requirement of the phase, such as a GPU, is not met.

    Raises:
        ConfigError: an override or the phase file is wrong.
        TrackingError: the tracking server does not answer.
        EnvironmentFault: another process runs the same phase.
    """
    from roofscale.cli import run_phase as commands
    from roofscale.cli.climb_options import ClimbOptions

    options = ClimbOptions(overrides, EXPERIMENTS, RUNS, GENERATED, fresh=fresh, from_defaults=from_defaults)
    phase = options.load(number)
    options = options.for_gpu(phase)
    if dry_run:
        commands.preview(phase, options)
        return None
    climbed = commands.climb_phase(number, options)
    return commands.climb_json(climbed) if climbed else None


def prepare_job(config: RunConfig) -> dict[str, Any]:
    """Write the config of a training job to S3, and open its MLflow run; the job itself is not created.

    Args:
        config: with a ``compute`` of SageMaker, such as ``ml.m5.xlarge``.

    Returns:
        The request for the job, in the snake_case that the classes of the SageMaker SDK take. It has no entrypoint, so
        that the image's own is used, as by the SDK's ``ModelTrainer``. If its ``environment`` names an MLflow run, the
        job logs itself there.

    Raises:
        ConfigError: the settings, the config or the data do not allow a job, or AWS refuses.
        TrackingError: the tracking server does not answer.
    """
    from roofscale.data.sources import resolve_data
    from roofscale.runners.sagemaker import job as jobs
    from roofscale.runners.sagemaker import request as requests
    from roofscale.runners.sagemaker import runner, settings
    from roofscale.runners.sagemaker.jobs_api import SageMakerClient, to_snake_case
    from roofscale.tracking import Tracker
    from roofscale.tracking.history import TRAIN_EXPERIMENT
    from roofscale.tracking.server import job_environment, job_logs_itself

    wanted, size = settings.load(), runner.instance_of(config)
    config = resolve_data([config], GENERATED, print)[0]
    folder = RUNS / TRAIN_EXPERIMENT / f"{config.fingerprint}-notebook"
    job = jobs.new_job(folder)
    seconds = runner.budget_seconds(wanted, size, jobs.Spending())
    request = requests.build_request(config, wanted, job, jobs.tags_of(folder), most_seconds=seconds)
    tracker = Tracker(TRAIN_EXPERIMENT) if job_logs_itself(wanted.logged_by) else None
    cloud = SageMakerClient(wanted)
    cloud.check(request)
    runner.write_config(cloud, config, requests.config_uri(wanted, job))
    if tracker:  # last, as an error would leave the run open
        run = tracker.start(config.fingerprint, {"fingerprint": config.fingerprint})
        run.log_params(config)
        request["Environment"] |= job_environment(run.run_id, wanted.logged_by)
    algorithm = {key: request["AlgorithmSpecification"][key] for key in ("TrainingImage", "TrainingInputMode")}
    snake: dict[str, Any] = to_snake_case({**request, "AlgorithmSpecification": algorithm})
    return snake


def read_steps(phases: Iterable[int] = PHASES) -> "pandas.DataFrame":
    """Read the judged steps of the newest attempt at each phase, in the order of the phase files.

    Returns:
        One row per step, of the run that decides it. The columns are ``phase``, ``step``, ``changed`` (the fallback
        that the run took, such as ``batch_size=12``; empty if it ran as planned), ``verdict`` (passed, failed or
        insufficient_evidence), ``outcome`` (ok, host_oom, ...), ``cause`` (of a failure), ``run_id`` (MLflow's), then
        each knob of the run config and each metric, such as ``speed/samples_per_s``, in the units that
        ``roofscale train`` prints. A metric that no run has is left out. Without any attempt the frame has no rows.

    Raises:
        TrackingError: the tracking server does not answer.
    """
    from roofscale.phases.history import latest_result

    results = [result for number in phases if (result := latest_result(number))]
    return _frame(
        {
            "phase": result.phase.number,
            "step": step.step.name,
            "changed": step.fallback.changed if step.fallback else "",
            "verdict": str(step.verdict.verdict),
            "outcome": str(step.measurement.outcome),
            "cause": str(step.cause or ""),
            "run_id": step.run_id,
            **step.config.as_dict(),
            **step.measurement.metrics,
        }
        for result in results
        for step in result.results
    )


def read_runs(phases: Iterable[int] = PHASES) -> "pandas.DataFrame":
    """Read every judged run of every attempt at each phase, those of the newest attempt first.

    Returns:
        One row per run, with the columns of ``read_steps``; the metrics are all that the run has logged to MLflow.

    Raises:
        TrackingError: the tracking server does not answer.
    """
    from roofscale.tracking.history import judged_runs, read_config

    return _frame(
        {
            "phase": number,
            "step": run.tags["step"],
            "changed": run.tags.get("changed", ""),
            "verdict": run.tags["verdict"],
            "outcome": run.tags.get("outcome", ""),
            "cause": run.tags.get("failure", ""),
            "run_id": run.run_id,
            **read_config(run).as_dict(),
            **run.metrics,
        }
        for number in phases
        for run in judged_runs(number)
    )


def _frame(rows: Iterable[Mapping[str, Any]]) -> "pandas.DataFrame":
    import pandas

    names = ["phase", "step", "changed", "verdict", "outcome", "cause", "run_id", *FIELDS]
    return pandas.DataFrame(table) if (table := list(rows)) else pandas.DataFrame(columns=names)


def forecast_gpu_memory(config: RunConfig) -> MemoryForecast:
    """Forecast the memory of one GPU of ``config.compute``, also on a machine without one; takes up to a minute.

    Raises:
        ConfigError: the compute has no GPU, or the model cannot be built or traced.
    """
    from roofscale import compute
    from roofscale.forecast.gpu_memory import GpuForecaster

    forecaster = GpuForecaster.of_run(config, compute.get(config.compute))
    found, largest = forecaster.forecast(config.batch_size), forecaster.largest_batch()
    return MemoryForecast(found.total_mib, found.low_mib, found.high_mib, found.usable_mib, str(found.fit()), largest)


def forecast_host_memory(config: RunConfig) -> MemoryForecast:
    """Forecast the host memory of a training on the CPU from recorded runs and earlier probes.

    Raises:
        ConfigError: there are too few of them (``roofscale forecast host --probe`` makes some), or the compute has a
            GPU.
        TrackingError: the tracking server does not answer.
    """
    from roofscale import compute
    from roofscale.forecast.host_memory import fit_host_model
    from roofscale.forecast.probes import Probes, local_profile, peak_observations

    size = compute.get(config.compute)
    probes = Probes(RUNS / "probes", local_profile(config, size))
    model = fit_host_model(probes.kind, [*peak_observations(), *probes.points()])
    found = model.forecast(config, size.memory_gib * 1024, compute.shm_free_mib(size))
    peak = found.peak
    return MemoryForecast(peak.mib, peak.low_mib, peak.high_mib, found.memory_mib, str(found.fit), found.largest_batch)


def forecast_time(config: RunConfig) -> TimeForecast:
    """Forecast the duration and the cost of a run from recorded runs, or else from a GPU's data sheet (roofline).

    Raises:
        ConfigError: neither allows a forecast.
        TrackingError: the tracking server does not answer.
    """
    from roofscale.cli import forecast_text
    from roofscale.forecast import history

    found = history.require_time_forecast(config, history.timing_records())
    run, usd = found.run_seconds, found.usd.centre if found.usd else None
    return TimeForecast(run.centre, run.low, run.high, found.epoch_seconds.centre, usd, forecast_text.basis(found))


def predict_image(
    image: Path | str, mask: Path | str, *, model: str = "", channel: str = "roof", threshold: float = 0.5
) -> "npt.NDArray[np.uint8]":
    """Segment an image with a trained model and write the mask as a GeoTIFF with the image's georeference.

    Args:
        image: path of an 8-bit RGB image of any size.
        mask: path of the .tif to write; an earlier mask there is replaced.
        model: a run id, ``name@alias`` or ``name/version``; empty: the champion, else the last good model.
        channel: roof, eave, ridge or hip; the model must have been trained on it.
        threshold: smallest probability, 0 to 1, that counts as found.

    Returns:
        The mask, ``(H,W)`` uint8: 1 for pixels of the channel, 0 for others, 255 where the image is not valid.

    Raises:
        ConfigError: there is no such model, it was not trained on the channel, or ``mask`` cannot be written.
        DataError: the image cannot be read, or is no 8-bit RGB image.
        TrackingError: the tracking server does not answer.
    """
    from roofscale.cli.console import console
    from roofscale.cli.run_predict import InferenceOptions, segment_image
    from roofscale.predict.raster import read_mask

    wish = InferenceOptions(model=model, channel=channel, threshold=threshold)
    segment_image(Path(image), Path(mask), None, wish, console(quiet=True))
    return read_mask(Path(mask))
