"""What is foreseen of a run, to be written down before it begins: memory and time, each with its interval."""

from collections.abc import Callable
from pathlib import Path

from roofscale import compute
from roofscale.config import RunConfig
from roofscale.errors import RoofscaleError
from roofscale.forecast import history, host_memory
from roofscale.forecast.host_memory import MemoryProfile, PeakObservation
from roofscale.forecast.probes import Probes, peak_observations, profile_for
from roofscale.forecast.time_scaling import TimingRecord
from roofscale.measurement import Measurement, Outcome, forecast_metrics
from roofscale.runners import registry

Metrics = dict[str, float]


class RunForecaster:
    """Foresees each run of a climb. The tracking server is read once, at the first; what follows is learnt run by run.

    A forecast that cannot be made is left out: none may stop a run.

    Args:
        runs: folder of the runs, with the probes among them.
        say: prints that a forecast broke.
        runner: that runs it.
    """

    def __init__(self, runs: Path, say: Callable[[str], None], runner: str = registry.LOCAL) -> None:
        self._runs, self._say, self._here = runs, say, registry.runs_on_this_machine(runner)
        self._kind_of = profile_for(runner)
        self._timed: list[TimingRecord] | None = None
        self._points: list[PeakObservation] | None = None

    def __call__(self, config: RunConfig) -> Metrics:
        """The metrics ``forecast/...`` of a run that is about to begin."""
        return {
            **self._attempt(lambda: self._time(config), "foreseen of its time"),
            **self._attempt(lambda: self._host_peak(config), "foreseen of its host memory"),
            **self._attempt(lambda: self._gpu_peak(config), "foreseen of its GPU memory"),
        }

    def learn(self, config: RunConfig, measured: Measurement, run_id: str) -> None:
        """Take in what a run came to, for those that follow."""
        if measured.outcome is Outcome.OK:
            self._attempt(lambda: self._learn(config, measured, run_id), "learnt of that run's memory and time")

    def _learn(self, config: RunConfig, measured: Measurement, run_id: str) -> Metrics:
        facts = measured.facts
        if self._timed is not None:
            self._timed.append(history.timing_record(config, measured.metrics, facts, run_id))
        if self._points is not None and facts["device"] == "cpu":
            kind = MemoryProfile.of_run(config, facts)
            peak, copied = measured.metric("memory/peak_mib"), measured.metric("memory/copied_mib")
            self._points.append(PeakObservation(config, kind, peak, run_id, copied))
        return {}

    def _attempt(self, attempt: Callable[[], Metrics], what: str) -> Metrics:
        try:
            return attempt()
        except RoofscaleError:  # too little is known, or this is no run of that sort
            return {}
        except Exception as error:  # whatever it is, the run is worth more than its forecast
            self._say(f"Nothing {what}: {type(error).__name__}: {error}")
            return {}

    def _time(self, config: RunConfig) -> Metrics:
        lacks_gpu = compute.get(config.compute).gpu and self._here and not _has_gpu()
        if config.stop_precision or lacks_gpu:
            return {}  # a run that stops by itself, or one that was forced onto a machine without its GPU
        if self._timed is None:
            self._timed = history.timing_records()
        found = history.forecast_time_of(config, self._timed)
        if found is None:
            return {}
        run, epoch = found.run_seconds, found.epoch_seconds
        return {
            **forecast_metrics("run_seconds", run.centre, run.low, run.high),
            **forecast_metrics("seconds_per_epoch", epoch.centre, epoch.low, epoch.high),
        }

    def _host_peak(self, config: RunConfig) -> Metrics:
        size = compute.get(config.compute)
        kind = self._kind_of(config, size)
        if self._points is None:
            self._points = [*peak_observations(), *Probes(self._runs / "probes", kind).points()]
        model = host_memory.fit_host_model(kind, self._points)
        peak = model.forecast(config, size.memory_gib * 1024).peak
        return forecast_metrics("host_peak_mib", peak.mib, peak.low_mib, peak.high_mib)

    def _gpu_peak(self, config: RunConfig) -> Metrics:
        where = compute.get(config.compute)
        if not where.gpu:
            return {}
        from roofscale.forecast.gpu_memory import forecast_gpu_memory  # imports PyTorch

        found = forecast_gpu_memory(config, where)
        assert found, "as the compute has a GPU"
        return found.metrics()


def _has_gpu() -> bool:
    import torch  # only for a compute with a GPU

    return torch.cuda.is_available()
