"""Forecasts of a run before it begins: memory and time, each with its interval."""

from collections.abc import Callable
from pathlib import Path

from roofscale import compute
from roofscale.config import RunConfig
from roofscale.errors import RoofscaleError
from roofscale.forecast import history, host_memory
from roofscale.forecast.host_memory import PeakObservation
from roofscale.forecast.probes import peak_observations, probe_observations, profile_for, require_one_cpu
from roofscale.forecast.time_scaling import TimingRecord
from roofscale.measurement import Measurement, Outcome, forecast_metrics
from roofscale.runners import registry

Metrics = dict[str, float]


class RunForecaster:
    """Forecaster of the runs of a phase: reads the tracking server once, then observes each run.

    A forecast that fails is left out, so that it never stops a run; ``say`` prints its error.
    """

    def __init__(self, runs: Path, say: Callable[[str], None], runner: str = registry.LOCAL) -> None:
        self._runs, self._say, self._here = runs, say, registry.runs_on_this_machine(runner)
        self._profile_of = profile_for(runner)
        self._timed: list[TimingRecord] | None = None
        self._points: list[PeakObservation] | None = None

    def __call__(self, config: RunConfig) -> Metrics:
        """Return the metrics ``forecast/...`` of a run that is about to begin."""
        return {
            **self._attempt(lambda: self._time(config), "forecast of its time"),
            **self._attempt(lambda: self._host_peak(config), "forecast of its host memory"),
            **self._attempt(lambda: self._gpu_peak(config), "forecast of its GPU memory"),
        }

    def observe(self, config: RunConfig, measured: Measurement, run_id: str) -> None:
        """Add the measurement of a run to what the next forecasts use."""
        if measured.outcome is Outcome.OK:
            self._attempt(lambda: self._observe(config, measured, run_id), "record of that run's memory and time")

    def _observe(self, config: RunConfig, measured: Measurement, run_id: str) -> Metrics:
        facts = measured.facts
        if self._timed is not None:
            self._timed.append(history.timing_record(config, measured.metrics, facts, run_id))
        if self._points is not None and facts["device"] == "cpu":
            self._points.append(PeakObservation.of_run(config, facts, measured.metrics, run_id))
        return {}

    def _attempt(self, attempt: Callable[[], Metrics], what: str) -> Metrics:
        try:
            return attempt()
        except RoofscaleError:  # too few records, or a run that this forecast does not cover
            return {}
        except Exception as error:  # of any kind: a forecast must not stop the run
            self._say(f"No {what}: {type(error).__name__}: {error}")
            return {}

    def _time(self, config: RunConfig) -> Metrics:
        lacks_gpu = compute.get(config.compute).gpu and self._here and not _has_gpu()
        if config.stop_precision or lacks_gpu:
            return {}  # it stops by itself, or --force runs it without its GPU
        if self._timed is None:
            self._timed = history.timing_records()
        forecast = history.forecast_time_of(config, self._timed)
        if forecast is None:
            return {}
        run, epoch = forecast.run_seconds, forecast.epoch_seconds
        return {
            **forecast_metrics("run_seconds", run.centre, run.low, run.high),
            **forecast_metrics("seconds_per_epoch", epoch.centre, epoch.low, epoch.high),
        }

    def _host_peak(self, config: RunConfig) -> Metrics:
        size = compute.get(config.compute)
        require_one_cpu(config, size)
        if self._points is None:
            self._points = [*peak_observations(), *probe_observations(self._runs / "probes")]
        if len(self._points) < host_memory.FEWEST_POINTS:
            return {}  # before the profile is asked for, which imports PyTorch for the precision of this machine
        model = host_memory.fit_host_model(self._profile_of(config, size), self._points)
        peak = model.forecast(config, size.memory_gib * 1024).peak
        return forecast_metrics("host_peak_mib", peak.mib, peak.low_mib, peak.high_mib)

    def _gpu_peak(self, config: RunConfig) -> Metrics:
        size = compute.get(config.compute)
        if not size.gpu:
            return {}
        from roofscale.forecast.gpu_memory import GpuForecaster  # imports PyTorch

        return GpuForecaster.of_run(config, size).forecast(config.batch_size).metrics()


def _has_gpu() -> bool:
    import torch  # only for a compute with a GPU

    return torch.cuda.is_available()
