"""Forecast of a run's time and cost with 90 % intervals, from recorded runs. Pure functions.

    run = start + passes x (seconds a pass) + seconds a sample x (samples trained on)
          + seconds a validated sample x (samples validated) + the last steps on a cached batch

The first two are fixed: they depend on neither samples nor pixels. All terms come from the recorded runs most like the
forecast one; ``time_scaling`` scales them and widens the interval for it. If no GPU run is recorded, the seconds of a
GPU's step are the caller's estimate (``roofline_model``).
"""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from roofscale.compute import Compute
from roofscale.config import CACHED_STEPS, RunConfig
from roofscale.errors import ConfigError
from roofscale.forecast import time_scaling
from roofscale.forecast.roofline_model import StepEstimate
from roofscale.forecast.time_scaling import Bound, SampleTime, TimingRecord, area_ratio
from roofscale.stats.intervals import MAX_OTHER_LOAD, Estimate, Interval, add_variance, interval

Amounts = Mapping[str, tuple[int, int]]  # by data set: the numbers of its training and its validation samples

# Standard deviation of the logarithm of a run's fixed part: that of the 16 recorded runs of phases 1 to 4, with 1 to 6
# passes each, around one start (6 s) and one time a pass (3.8 s) for all of them.
FIXED_SPREAD = 0.16
_MIN_CACHED = 3  # a run of so many steps or more ends with CACHED_STEPS steps on a cached batch


@dataclass(frozen=True)
class TimeParts:
    """Parts of a run's time, in seconds."""

    start: float  # the process and its imports, the model, the data
    passes: float  # over all passes: the loader's start, the first step's extra time, sample sheets and checkpoints
    training: float
    validation: float
    cached: float  # the steps on a cached batch that measure data stall

    @property
    def total(self) -> float:
        """Seconds of the whole run."""
        return math.fsum(getattr(self, field.name) for field in dataclasses.fields(self))

    @property
    def fixed(self) -> float:
        """Seconds that depend on neither samples nor pixels."""
        return self.start + self.passes


@dataclass(frozen=True)
class TimeForecast:
    """Forecast seconds and cost of a run, each with its 90 % interval."""

    run_seconds: Interval
    epoch_seconds: Interval  # of one pass over the data, without its start-up
    usd: Interval | None  # of the run; None if the compute has no price
    epoch_usd: Interval | None
    parts: TimeParts
    seconds_per_sample: float
    bound: Bound  # what limits the pace
    loader_share: float  # share of a step that waits for the loader, in the source runs; NaN for a roofline
    sources: tuple[str, ...]  # MLflow runs that it is scaled from; for a roofline those of the fixed part
    scaled: tuple[str, ...]  # differences from these runs, such as "batch_size 2 to 4"
    estimate: StepEstimate | None = None  # of a GPU's step, if no run on such a GPU is recorded


def forecast_time(
    config: RunConfig,
    compute: Compute,
    runs: Sequence[TimingRecord],
    amounts: Amounts | None = None,
    *,
    threads: int = 0,
    estimate: StepEstimate | None = None,
) -> TimeForecast | None:
    """Forecast a run's time and cost, None if no recorded run is comparable and there is no estimate.

    Args:
        config: run config.
        compute: compute of the run; its price gives the cost.
        runs: recorded runs of any phase; those without a measured time are ignored.
        amounts: numbers of samples of each data set, needed if the config takes all of them.
        threads: CPU threads of the run; 0 if not known.
        estimate: estimate of one step on the compute's GPU; used if no run on such a GPU is recorded.

    Raises:
        ConfigError: the config takes all samples of a data set that ``amounts`` does not hold.
    """
    timed = _undisturbed([run for run in runs if run.is_timed])
    comparable = [run for run in timed if time_scaling.is_comparable(config, compute.gpu, run)]
    if comparable:
        return _from_runs(config, compute, comparable, amounts, threads)
    return _from_estimate(config, compute, timed, amounts, estimate) if estimate else None


def training_samples(config: RunConfig, amounts: Amounts | None = None) -> int:
    """Return the number of samples that a run trains on over all its passes.

    Raises:
        ConfigError: the config takes all samples of a data set that ``amounts`` does not hold.
    """
    return config.epochs * sum(_dataset_samples(config, amounts, training=True))


def validated_samples(config: RunConfig, amounts: Amounts | None = None) -> int:
    """Return the number of samples validated over a run.

    The trainer validates every data set before training, and those trained on so far after each pass.

    Raises:
        ConfigError: the config takes all samples of a data set that ``amounts`` does not hold.
    """
    sizes = _dataset_samples(config, amounts, training=False)
    after_passes = [sum(sizes)] if config.schedule == "mixed" else itertools.accumulate(sizes)
    return sum(sizes) + config.epochs * sum(after_passes)


def sum_forecasts(forecasts: Sequence[Interval]) -> Interval:
    """Return the sum of forecasts whose errors are fully correlated, as they are scaled from the same runs."""
    columns = zip(*((forecast.centre, forecast.low, forecast.high) for forecast in forecasts), strict=True)
    return Interval(*map(math.fsum, columns)) if forecasts else Interval(0.0, 0.0, 0.0)


def _dataset_samples(config: RunConfig, amounts: Amounts | None, *, training: bool) -> list[int]:
    """Return how many samples a config takes of each data set, no more than there are if that is known."""
    knob = "max_samples" if training else "val_samples"
    limit = getattr(config, knob)
    samples = []
    for name in config.datasets:
        size = (amounts or {}).get(name)
        if size is None and not limit:
            raise ConfigError(
                f"{knob}=0: it is not known how many samples {name} has. Name its folder with data_root=..., or ask "
                f"for a number, such as {knob}=100."
            )
        available = math.inf if size is None else size[0 if training else 1]
        samples.append(int(min(limit or math.inf, available)))
    return samples


def _undisturbed(runs: Sequence[TimingRecord]) -> list[TimingRecord]:
    """Return the runs that had the machine to themselves, all of them if none had."""
    quiet = [run for run in runs if run.metrics.get("cpu/others", 0.0) <= MAX_OTHER_LOAD]
    return quiet or list(runs)


def _from_runs(
    config: RunConfig, compute: Compute, comparable: list[TimingRecord], amounts: Amounts | None, threads: int
) -> TimeForecast:
    """Scale the times of those comparable runs that differ least from a config."""
    deviations = [time_scaling.deviation(config, threads, run) for run in comparable]
    least = min(deviations)
    nearest = [run for run, sd in zip(comparable, deviations, strict=True) if math.isclose(sd, least, abs_tol=1e-9)]
    paces = [_pace(config, threads, run) for run in nearest]
    seconds = math.exp(statistics.fmean(math.log(pace) for pace, _ in paces))
    parts = _parts_from_runs(config, nearest, seconds, amounts, threads)
    steps = max(1.0, training_samples(config, amounts) / config.global_batch_size)
    return _with_intervals(
        config,
        compute,
        parts,
        _log_pace(math.log(seconds), least, nearest, comparable, steps),
        amounts,
        bound=paces[-1][1],
        loader_share=statistics.fmean(run.loader_share for run in nearest),
        sources=tuple(run.run_id for run in nearest),
        scaled=tuple(time_scaling.differences(config, threads, nearest[0])),
    )


def _pace(config: RunConfig, threads: int, run: TimingRecord) -> tuple[float, Bound]:
    """Return a config's seconds a sample, scaled from one measured run, and what limits them."""
    factor = area_ratio(config, run) * time_scaling.core_speedup(threads, run)[0]
    return SampleTime.of(run).scaled(factor).with_workers(config.num_workers)


def _log_pace(
    centre: float, scaling_sd: float, nearest: list[TimingRecord], comparable: list[TimingRecord], steps: float
) -> Estimate:
    """Return the log seconds a sample of the forecast run, with their prediction variance.

    The variance has three terms: between runs (of the nearest runs' mean and of the new run), between steps (likewise)
    and of the scaling.
    """
    variance, freedom = time_scaling.run_to_run_variance(comparable)
    between = Estimate(centre, variance * (1 + 1 / len(nearest)), freedom)
    within = statistics.fmean(run.log_error**2 for run in nearest)
    one_step = statistics.fmean(run.log_error**2 * max(1.0, run.metrics["train/steps"]) for run in nearest)
    return add_variance(between, within / len(nearest) + one_step / steps + scaling_sd**2)


def _parts_from_runs(
    config: RunConfig, runs: list[TimingRecord], seconds: float, amounts: Amounts | None, threads: int
) -> TimeParts:
    overheads = [_Overhead.of(run) for run in runs]
    factors = [area_ratio(config, run) * time_scaling.core_speedup(threads, run)[0] for run in runs]
    validated = statistics.fmean(run.validated * factor for run, factor in zip(overheads, factors, strict=True))
    return _time_parts(config, overheads, seconds, validated, amounts)


def _time_parts(
    config: RunConfig, overheads: Sequence["_Overhead"], seconds: float, validated: float, amounts: Amounts | None
) -> TimeParts:
    """Return the parts of a run's time, from seconds of a training and of a validated sample, and mean overheads."""
    samples = training_samples(config, amounts)
    cached = CACHED_STEPS * config.global_batch_size * seconds
    return TimeParts(
        start=statistics.fmean(run.start for run in overheads) if overheads else 0.0,
        passes=config.passes * statistics.fmean(run.each_pass for run in overheads) if overheads else 0.0,
        training=seconds * samples,
        validation=validated * validated_samples(config, amounts),
        cached=cached if samples >= _MIN_CACHED * config.global_batch_size else 0.0,
    )


@dataclass(frozen=True)
class _Overhead:
    """Seconds of a measured run in addition to training."""

    start: float
    each_pass: float
    validated: float  # of one validated sample

    @classmethod
    def of(cls, run: TimingRecord) -> "_Overhead":
        """Split the time of a run that is not training into start, passes and validation.

        If the run did not log the time of validation, all of the rest after training counts as validation, the start-up
        of passes included.
        """
        metrics, config = run.metrics, run.config
        cached = CACHED_STEPS * config.global_batch_size * metrics.get("speed/cached_seconds_per_sample", 0.0)
        setup = metrics.get("speed/setup_seconds", 0.0)
        training = metrics["speed/seconds_per_sample"] * metrics["train/samples"]
        rest = max(0.0, metrics["speed/run_seconds"] - setup - training - cached)
        before, after = _validations(config)
        if "speed/seconds_per_validated" not in metrics:
            validated = rest / (after * config.val_samples)
            return cls(max(0.0, setup - validated * before * config.val_samples), 0.0, validated)
        validated, count = metrics["speed/seconds_per_validated"], metrics["train/validated_samples"]
        seconds_before = validated * count * before / (before + after)
        seconds_after = validated * count - seconds_before
        return cls(max(0.0, setup - seconds_before), max(0.0, rest - seconds_after) / config.passes, validated)


def _validations(config: RunConfig) -> tuple[int, int]:
    """Return how many validations of a data set a run does before training, and after its passes."""
    single = dataclasses.replace(config, val_samples=1)  # so that samples count validations
    return len(config.datasets), validated_samples(single) - len(config.datasets)


def _from_estimate(
    config: RunConfig, compute: Compute, runs: Sequence[TimingRecord], amounts: Amounts | None, estimate: StepEstimate
) -> TimeForecast:
    """Forecast from an estimate of a GPU's step; start and passes are the mean of all recorded runs.

    A step on several GPUs is assumed to take as long as on one: the gradients are exchanged during the backward pass.
    """
    seconds = estimate.seconds / config.global_batch_size
    forward_seconds = estimate.forward_seconds / config.global_batch_size
    parts = _time_parts(config, [_Overhead.of(run) for run in runs], seconds, forward_seconds, amounts)
    return _with_intervals(
        config,
        compute,
        parts,
        Estimate(math.log(seconds), estimate.deviation**2, math.inf),
        amounts,
        bound=Bound.UNKNOWN,
        loader_share=math.nan,
        sources=tuple(run.run_id for run in runs),
        scaled=(),
        estimate=estimate,
    )


def _with_intervals(
    config: RunConfig, compute: Compute, parts: TimeParts, pace: Estimate, amounts: Amounts | None, **rest: Any
) -> TimeForecast:
    """Return the forecast: parts in proportion to the pace share its error, the fixed part's error is independent."""
    variable = 1 - parts.fixed / parts.total  # share of the total
    total = Estimate(math.log(parts.total), pace.variance * variable**2, pace.freedom)
    run = interval(add_variance(total, (FIXED_SPREAD * (1 - variable)) ** 2)).exp()
    samples_per_pass = training_samples(config, amounts) / config.passes
    epoch = interval(pace).exp().scaled(samples_per_pass)
    price = None if compute.usd_per_hour is None else config.instance_count * compute.usd_per_hour / 3600
    return TimeForecast(
        run_seconds=run,
        epoch_seconds=epoch,
        usd=None if price is None else run.scaled(price),
        epoch_usd=None if price is None else epoch.scaled(price),
        parts=parts,
        seconds_per_sample=math.exp(pace.value),
        **rest,
    )
