"""What notebooks and scripts may import: a dozen names that stay as they are while the modules behind them change.

All functions work in the project's folder, as the commands do: phase files in ``experiments/``, runs in ``runs/``, and
the tracking server that ``MLFLOW_TRACKING_URI`` names, or else MLflow's own database. What they raise is a
``RoofscaleError``: a ``ConfigError`` for a wrong value, ``TrackingError`` for a server that does not answer. Importing
this module loads nothing heavy: MLflow, pandas and PyTorch are imported by the functions that need them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roofscale import config as configs
from roofscale.cli.options import GENERATED, PHASES, RUNS
from roofscale.config import FIELDS, RunConfig
from roofscale.errors import RoofscaleError

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
    "read_runs",
    "read_steps",
    "run_phase",
]

_ALL = range(1, 6)  # the phases


@dataclass(frozen=True)
class MemoryForecast:
    """The peak memory of a run, before it is made."""

    mib: float  # the expected peak
    low_mib: float  # ends of its interval
    high_mib: float
    limit_mib: float  # what the compute has: host memory, or the usable memory of one GPU
    fit: str  # whether the interval stays under 80 % of the limit: fits, too large, or cannot be told
    largest_batch: int  # whose interval stays under 80 % of the limit; 0 where none does


@dataclass(frozen=True)
class TimeForecast:
    """The duration and the cost of a run, before it is made; intervals hold nine of ten runs."""

    seconds: float  # of the run
    low_seconds: float  # ends of its interval
    high_seconds: float
    epoch_seconds: float  # of one pass over the training samples
    usd: float | None  # cost of the run; None where the compute has no price
    basis: str  # measured runs, or a roofline estimate


def load_config(*overrides: str, file: Path | str | None = None) -> RunConfig:
    """Resolve a run config: the defaults, then a YAML file, then overrides such as ``"batch_size=8"``.

    ``RunConfig.with_overrides`` changes it further, ``as_dict`` lists its knobs.

    Raises:
        ConfigError: an unreadable file, an unknown knob or a value that does not fit.
    """
    return configs.load(Path(file) if file else None, overrides)


def run_phase(
    number: int, *overrides: str, fresh: bool = False, from_defaults: bool = False, dry_run: bool = False
) -> dict[str, Any] | None:
    """Run a phase, 1 to 5, and first the phases that it needs, as ``roofscale phase`` does; an interrupted one goes on.

    Args:
        number: of the phase.
        overrides: ``"key=value"`` words for every step.
        fresh: begin a new attempt even if one was left half done.
        from_defaults: start from the default config, not from the last good one of the phase before.
        dry_run: print what would run, and run nothing.

    Returns:
        What ``roofscale phase --json`` prints: ``phase``, ``verdict`` (passed, failed or insufficient_evidence),
        ``interrupted``, ``run_id`` and ``steps`` among it; of the phase that failed where another was needed first.
        None after a dry run, or where a requirement of the phase, such as a GPU, is not met.

    Raises:
        ConfigError: an override or the phase file is wrong.
        TrackingError: the tracking server does not answer.
        EnvironmentFault: another process runs the same phase.
    """
    from roofscale.cli import run_phase as commands
    from roofscale.cli.climb_options import ClimbOptions

    order = ClimbOptions(overrides, PHASES, RUNS, GENERATED, fresh=fresh, from_defaults=from_defaults)
    phase = order.load(number)
    order = order.for_gpu(phase)
    if dry_run:
        commands.preview(phase, order)
        return None
    climbed = commands.climb_phase(number, order)
    return commands.climb_json(climbed) if climbed else None


def read_steps(phases: Iterable[int] = _ALL) -> "pandas.DataFrame":
    """Read the judged steps of the newest attempt at each phase, in the order of the phase files.

    Returns:
        A row for each step, of the run that decides it. The columns are ``phase``, ``step``, ``changed`` (the remedy
        that the run took, such as ``batch_size=12``; empty where it ran as planned), ``verdict`` (passed, failed or
        insufficient_evidence), ``outcome`` (ok, host_oom, ...), ``cause`` (of a failure), ``run_id`` (MLflow's), then
        each knob of the run config and each metric, such as ``speed/samples_per_s``, in the units that
        ``roofscale train`` prints. A metric that no run has is no column. Without any attempt the frame has no rows.

    Raises:
        TrackingError: the tracking server does not answer.
    """
    from roofscale.phases.history import latest_result

    climbs = [climb for number in phases if (climb := latest_result(number))]
    return _frame(
        {
            "phase": climb.phase.number,
            "step": step.step.name,
            "changed": step.fallback.changed if step.fallback else "",
            "verdict": str(step.verdict.verdict),
            "outcome": str(step.measurement.outcome),
            "cause": str(step.cause or ""),
            "run_id": step.run_id,
            **step.config.as_dict(),
            **step.measurement.metrics,
        }
        for climb in climbs
        for step in climb.results
    )


def read_runs(phases: Iterable[int] = _ALL) -> "pandas.DataFrame":
    """Read every judged run of every attempt at each phase, those of the newest attempt first.

    Returns:
        A row for each run, in the columns of ``read_steps``; the metrics are all that the run logged in MLflow.

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
    return pandas.DataFrame(found) if (found := list(rows)) else pandas.DataFrame(columns=names)


def forecast_gpu_memory(config: RunConfig) -> MemoryForecast:
    """Forecast the memory of one GPU of ``config.compute``, on a machine without one; takes seconds to a minute.

    Raises:
        ConfigError: the compute has no GPU, or the model cannot be built or traced.
    """
    from roofscale import compute
    from roofscale.forecast.gpu_memory import GpuForecaster

    forecaster = GpuForecaster(config, compute.get(config.compute))
    found, largest = forecaster.forecast(config.batch_size), forecaster.largest_batch()
    return MemoryForecast(found.total_mib, found.low_mib, found.high_mib, found.usable_mib, str(found.fit()), largest)


def forecast_host_memory(config: RunConfig) -> MemoryForecast:
    """Forecast the host memory of a training on the CPU, from runs on record and from probes made before.

    Raises:
        ConfigError: too few such runs (``roofscale forecast host --probe`` makes them), or a compute with a GPU.
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
    """Forecast the duration and the cost of a run, from runs on record, or from the peaks of a GPU's data sheet.

    Raises:
        ConfigError: no run on record says anything of it.
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
    """Segment a picture with a trained model, and write the mask as a GeoTIFF in the picture's place on the ground.

    Args:
        image: an RGB picture of 8 bits, of any size.
        mask: the .tif to write; an earlier mask there is replaced.
        model: the id of a run, ``name@alias`` or ``name/version``; empty: the champion, else the last good model.
        channel: what to look for: roof, eave, ridge or hip, as far as the model was trained on it.
        threshold: the least probability, 0 to 1, that counts as found.

    Returns:
        The mask, ``(H,W)`` uint8: 1 where the channel is found, 0 where not, 255 where the picture shows nothing.

    Raises:
        ConfigError: there is no such model, it does not know the channel, or ``mask`` cannot be written there.
        DataError: the picture cannot be read, or is no RGB picture.
        TrackingError: the tracking server does not answer.
    """
    from roofscale.cli.console import console
    from roofscale.cli.run_predict import InferenceOptions, segment_image
    from roofscale.predict.raster import read_mask

    wish = InferenceOptions(model=model, channel=channel, threshold=threshold)
    segment_image(Path(image), Path(mask), None, wish, console(quiet=True))
    return read_mask(Path(mask))
