"""Timing records from runs on record, and the forecast of a run's time that stands on them."""

from collections.abc import Mapping, Sequence
from functools import cache

from roofscale import compute
from roofscale.config import RunConfig
from roofscale.data.locate import DatasetSizes, dataset_sizes
from roofscale.errors import ConfigError
from roofscale.forecast.run_time import TimeForecast, forecast_time
from roofscale.forecast.time_scaling import TimingRecord
from roofscale.tracking import RunRecord
from roofscale.tracking.history import read_config, recorded_runs, succeeded


def timing_records() -> list[TimingRecord]:
    """Return the timing of each run on record that ran to its end."""
    return [from_run(run) for run in recorded_runs() if succeeded(run)]


def from_run(run: RunRecord) -> TimingRecord:
    """Convert a run of the tracking server."""
    return timing_record(read_config(run), run.metrics, run.tags, run.run_id)


def timing_record(
    config: RunConfig, metrics: Mapping[str, float], facts: Mapping[str, str], run_id: str
) -> TimingRecord:
    """Build a record from a run's metrics and facts."""
    on_gpu = facts.get("device") == "cuda"
    gpu = compute.get(config.compute).gpu if on_gpu and config.compute in compute.names() else ""
    return TimingRecord(config, metrics, run_id, facts.get("precision", ""), int(facts.get("threads", 0)), on_gpu, gpu)


def forecast_time_of(config: RunConfig, runs: Sequence[TimingRecord]) -> TimeForecast | None:
    """Forecast a run on this machine, held to its compute; None if no run on record is comparable.

    A compute with a GPU and no run on record gets the roofline estimate of its step.
    """
    size, samples = compute.get(config.compute), dataset_sizes_cached(config).samples
    threads = 0 if size.gpu else config.threads or compute.resource_limits(size).cores
    forecast = forecast_time(config, size, runs, samples, threads=threads)
    if forecast is None and size.gpu:
        from roofscale.forecast.gpu_memory import GpuForecaster  # imports PyTorch

        step = GpuForecaster.of_run(config, size).step(config.batch_size)
        forecast = forecast_time(config, size, runs, samples, estimate=step)
    return forecast


def require_time_forecast(config: RunConfig, runs: Sequence[TimingRecord]) -> TimeForecast:
    """Forecast as ``forecast_time_of`` does.

    Raises:
        ConfigError: no recorded run is comparable.
    """
    if found := forecast_time_of(config, runs):
        return found
    raise ConfigError(
        f"encoder={config.encoder} decoder={config.decoder} precision={config.precision}: a forecast of time needs "
        "a timed run of these, and none is on record. Make one: roofscale phase 1, whose first step is a short one."
    )


def dataset_sizes_cached(config: RunConfig) -> DatasetSizes:
    """Return the sizes of a config's data sets; counted once for all configs that read the same."""
    knobs = ("datasets", "data_root", "split", "split_number", "image_size")
    return _counted(RunConfig().with_overrides({knob: getattr(config, knob) for knob in knobs}))


_counted = cache(dataset_sizes)


def with_all_samples(config: RunConfig) -> RunConfig:
    """Return the config on all samples of its data sets."""
    return config.with_overrides({"max_samples": 0, "val_samples": 0})
