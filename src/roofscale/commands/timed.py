"""What a forecast of time stands on, runs on record among it, and the words that it is told in."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

from roofscale import compute
from roofscale.config import RunConfig
from roofscale.data.locate import DatasetSizes, dataset_sizes
from roofscale.errors import ConfigError
from roofscale.forecast.roofline_model import MEAN_ERROR
from roofscale.forecast.run_time import TimeForecast, forecast_time
from roofscale.forecast.time_scaling import TimingRecord
from roofscale.measurement import Outcome
from roofscale.phases.history import SEARCH_EXPERIMENT, SEARCHING, experiment_name, judged_runs, read_config, trials_of
from roofscale.stats.intervals import CONFIDENCE, Interval
from roofscale.tracking import RunRecord, Tracker

TRAIN_EXPERIMENT = "roofscale-train"  # of single trainings


def runs_on_record() -> list[RunRecord]:
    """Every judged run of the phases on the tracking server, and every single training."""
    single = Tracker.find(TRAIN_EXPERIMENT)
    return [*(run for phase in range(1, 6) for run in judged_runs(phase)), *(single.attempts() if single else ())]


def trials_on_record() -> list[RunRecord]:
    """Every trial of every search on the tracking server."""
    names = (experiment_name(SEARCHING), SEARCH_EXPERIMENT)
    return [trial for name in names if (tracker := Tracker.find(name)) for trial in trials_of(tracker)]


def timed_runs() -> list[TimingRecord]:
    """What each run on record took that came to its end."""
    return [as_timed(run) for run in runs_on_record() if went_well(run)]


def went_well(run: RunRecord) -> bool:
    """Whether a run was really made, and to its end."""
    return run.tags.get("outcome") == Outcome.OK and "ruled_out_by" not in run.tags


def as_timed(run: RunRecord) -> TimingRecord:
    """A run of the tracking server."""
    return timed_of(read_config(run), run.metrics, run.tags, run.run_id)


def timed_of(config: RunConfig, metrics: Mapping[str, float], facts: Mapping[str, str], run_id: str) -> TimingRecord:
    """A run by what it measured and the facts that it told of itself."""
    on_gpu = facts.get("device") == "cuda"
    gpu = compute.get(config.compute).gpu if on_gpu and config.compute in compute.names() else ""
    return TimingRecord(config, metrics, run_id, facts.get("precision", ""), int(facts.get("threads", 0)), on_gpu, gpu)


def foresee_time(config: RunConfig, runs: Sequence[TimingRecord]) -> TimeForecast | None:
    """The forecast of a run as this machine, held to its compute, would make it; None where nothing is known of it.

    A compute with a GPU of which no run is on record has the roofline estimate of its step.
    """
    where, there = compute.get(config.compute), counted(config).samples
    threads = 0 if where.gpu else config.threads or compute.resource_limits(where).cores
    found = forecast_time(config, where, runs, there, threads=threads)
    if found is None and where.gpu:
        from roofscale.forecast.gpu_memory import estimate_step_time  # imports PyTorch

        found = forecast_time(config, where, runs, there, estimate=estimate_step_time(config, where))
    return found


def require_time(config: RunConfig, runs: Sequence[TimingRecord]) -> TimeForecast:
    """The forecast of a run as ``foresee_time`` makes it.

    Raises:
        ConfigError: no run on record says anything of it.
    """
    if found := foresee_time(config, runs):
        return found
    raise ConfigError(
        f"encoder={config.encoder} decoder={config.decoder} precision={config.precision}: a forecast of time needs "
        "a timed run of these, and none is on record. Make one: roofscale phase 1, whose first step is a short one."
    )


def counted(config: RunConfig) -> DatasetSizes:
    """How many samples its data sets have; counted once for all configs that read the same."""
    knobs = ("datasets", "data_root", "split", "split_number", "image_size")
    return _counted(RunConfig().with_overrides({knob: getattr(config, knob) for knob in knobs}))


_counted = cache(dataset_sizes)


def everything(config: RunConfig) -> RunConfig:
    """The same run on all samples of its data sets."""
    return config.with_overrides({"max_samples": 0, "val_samples": 0})


def seconds_words(seconds: Interval) -> str:
    """A time with its interval, in the unit that suits it."""
    unit, size = next((unit, size) for unit, size in _UNITS if seconds.centre >= 2 * size or size == 1)
    centre, low, high = (_short(value / size) for value in (seconds.centre, seconds.low, seconds.high))
    return f"{centre} {unit} ({low} to {high})"


_UNITS = (("h", 3600), ("min", 60), ("s", 1))  # the largest of which there are two


def money_words(usd: Interval | None) -> str:
    """A cost with its interval; empty where there is no price."""
    if usd is None:
        return ""
    centre, low, high = (
        f"{value:,.2f}" if value >= 0.1 else f"{value:.2g}" for value in (usd.centre, usd.low, usd.high)
    )
    return f"{centre} USD ({low} to {high})"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def notes(forecast: TimeForecast) -> Iterator[str]:
    """What a reader of a forecast has to know: what it is scaled from, over what, and how far to trust it."""
    if forecast.estimate:
        step = forecast.estimate
        yield (
            f"A roofline estimate, not validated on a GPU: {step.flops:.3g} FLOPs and {step.nbytes:.3g} bytes a step "
            f"of {step.samples} over the data sheet's peaks of {step.gpu}. Others find a roofline {MEAN_ERROR:.0%} off "
            "on average, which is what the interval stands on. It takes the loader to deliver "
            f"{1 / forecast.seconds_per_sample:.3g} samples/s; with a slower one the GPU waits."
        )
    if forecast.scaled:
        yield f"Scaled over: {', '.join(forecast.scaled)}. The interval is wider by what such a change may move."


def as_dict(forecast: TimeForecast | None) -> dict[str, Any] | None:
    """For a script."""
    return {**asdict(forecast), "confidence": CONFIDENCE, "basis": basis(forecast)} if forecast else None


def basis(forecast: TimeForecast) -> str:
    """What a forecast stands on, in two words."""
    return "roofline estimate" if forecast.estimate else "measured runs"
