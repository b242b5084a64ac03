"""How long a run will take and what that costs, with a 90 % interval, from the runs that are on record. Pure functions.

    run = start + passes x (seconds a pass) + seconds a sample x (samples trained on)
          + seconds a validated sample x (samples validated) + the last steps on a cached batch

The first two are fixed: they hang on neither samples nor pixels. All of it comes from the runs most like the one asked
about; ``transfer`` says how they are scaled and what that costs in certainty. Where no GPU run is on record, a GPU's
step is one that the caller has estimated (``roofline``).
"""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from roofscale.compute import Compute
from roofscale.config import RunConfig
from roofscale.errors import ConfigError
from roofscale.forecast import time_scaling
from roofscale.forecast.roofline_model import ERROR, StepEstimate
from roofscale.forecast.time_scaling import Bound, SampleTime, TimingRecord, area_ratio, passes_of
from roofscale.stats.intervals import MAX_OTHER_LOAD, Estimate, Interval, add_variance, interval

Amounts = Mapping[str, tuple[int, int]]  # by data set: the training and the validation samples that there are

# Standard deviation of the logarithm of a run's fixed part. The 16 runs of phases 1 to 4 on record, 1 to 6 passes long,
# lie so far about one start (6 s) and one time a pass (3.8 s) for them all.
FIXED_SPREAD = 0.16
_CACHED_STEPS = 3  # on a cached batch, at the end of a run of three steps or more, see train.loop
_MIN_CACHED = 3


@dataclass(frozen=True)
class TimeParts:
    """What a run's seconds are made of."""

    start: float  # the process and its imports, the net, the data
    passes: float  # of each pass: the loader's start, the first step's extra, sheets and checkpoints
    training: float
    validation: float
    cached: float  # the steps on a cached batch by which data stall is told

    @property
    def total(self) -> float:
        """Seconds of the run."""
        return math.fsum(getattr(self, field.name) for field in dataclasses.fields(self))

    @property
    def fixed(self) -> float:
        """What hangs on neither samples nor pixels."""
        return self.start + self.passes


@dataclass(frozen=True)
class TimeForecast:
    """Seconds and cost of a run that was not made yet, each with its 90 % interval."""

    run_seconds: Interval
    epoch_seconds: Interval  # of one pass over the data, its start-up left out
    usd: Interval | None  # of the run; None where the compute has no price
    epoch_usd: Interval | None
    parts: TimeParts
    seconds_per_sample: float
    bound: Bound  # what the pace hangs on
    loader_share: float  # of a step's time, in the runs that it is scaled from: what scales with the workers
    sources: tuple[str, ...]  # MLflow runs that it is scaled from; of a roofline those of the fixed part
    scaled: tuple[str, ...]  # what differs from them, in words
    estimate: StepEstimate | None = None  # of a GPU's step, where no GPU run is on record


def forecast_time(
    config: RunConfig,
    compute: Compute,
    runs: Sequence[TimingRecord],
    amounts: Amounts | None = None,
    *,
    threads: int = 0,
    estimate: StepEstimate | None = None,
) -> TimeForecast | None:
    """Foresee a run's time; None where no run on record says anything of it, and there is no estimate.

    Args:
        config: of the run to come.
        compute: where it will run; its price makes the cost.
        runs: on record, of any phase; those without a measured time are passed over.
        amounts: samples of each data set, for what a config asks all of.
        threads: CPU threads that it will have; 0 where not known.
        estimate: of one step on the compute's GPU; used where no run on such a GPU is on record.

    Raises:
        ConfigError: all samples are asked for, and ``amounts`` does not say how many there are.
    """
    timed = _undisturbed([run for run in runs if run.is_timed])
    alike = [run for run in timed if time_scaling.is_comparable(config, compute.gpu, run)]
    if alike:
        return _from_runs(config, compute, alike, amounts, threads)
    return _from_estimate(config, compute, timed, amounts, estimate) if estimate else None


def training_samples(config: RunConfig, amounts: Amounts | None = None) -> int:
    """Samples that a run trains on over all its passes.

    Raises:
        ConfigError: all are asked for, and it is not known how many there are.
    """
    return config.epochs * sum(_of_each(config, amounts, training=True))


def validated_samples(config: RunConfig, amounts: Amounts | None = None) -> int:
    """Samples validated over a run: every data set before training, and those seen so far after each pass.

    Raises:
        ConfigError: all are asked for, and it is not known how many there are.
    """
    each = _of_each(config, amounts, training=False)
    seen = [sum(each)] if config.schedule == "mixed" else itertools.accumulate(each)
    return sum(each) + config.epochs * sum(seen)


def sum_forecasts(forecasts: Sequence[Interval]) -> Interval:
    """The sum of several, taken to err together: they are scaled from the same runs."""
    parts = zip(*((one.centre, one.low, one.high) for one in forecasts), strict=True)
    return Interval(*map(math.fsum, parts)) if forecasts else Interval(0.0, 0.0, 0.0)


def _of_each(config: RunConfig, amounts: Amounts | None, *, training: bool) -> list[int]:
    """How many samples of each data set a config takes; for validation no more than there are."""
    knob = "max_samples" if training else "val_samples"
    asked = getattr(config, knob)
    found = []
    for name in config.datasets:
        there = (amounts or {}).get(name)
        if there is None and not asked:
            raise ConfigError(
                f"{knob}=0: it is not known how many samples {name} has. Name its folder with data_root=..., or ask "
                f"for a number, such as {knob}=100."
            )
        known = math.inf if there is None else there[0 if training else 1]
        found.append(int(min(asked or math.inf, known)))
    return found


def _undisturbed(runs: Sequence[TimingRecord]) -> list[TimingRecord]:
    """Those that had the machine to themselves; all of them where none had."""
    quiet = [run for run in runs if run.metrics.get("cpu/others", 0.0) <= MAX_OTHER_LOAD]
    return quiet or list(runs)


def _from_runs(
    config: RunConfig, compute: Compute, alike: list[TimingRecord], amounts: Amounts | None, threads: int
) -> TimeForecast:
    deviations = [time_scaling.deviation(config, threads, run) for run in alike]
    least = min(deviations)
    nearest = [run for run, found in zip(alike, deviations, strict=True) if math.isclose(found, least, abs_tol=1e-9)]
    paces = [_pace(config, threads, run) for run in nearest]
    seconds = math.exp(statistics.fmean(math.log(found) for found, _ in paces))
    parts = _parts(config, nearest, seconds, amounts, threads)
    steps = max(1.0, training_samples(config, amounts) / config.global_batch_size)
    return _with_intervals(
        config,
        compute,
        parts,
        _log_pace(math.log(seconds), least, nearest, alike, steps),
        amounts,
        bound=paces[-1][1],
        loader_share=statistics.fmean(run.loader_share for run in nearest),
        sources=tuple(run.run_id for run in nearest),
        scaled=tuple(time_scaling.differences(config, threads, nearest[0])),
    )


def _pace(config: RunConfig, threads: int, run: TimingRecord) -> tuple[float, Bound]:
    """Seconds a sample of a config as one measured run foretells them."""
    factor = area_ratio(config, run) * time_scaling.core_speedup(threads, run)[0]
    return SampleTime.of(run).scaled(factor).with_workers(config.num_workers)


def _log_pace(
    centre: float, transferred: float, nearest: list[TimingRecord], alike: list[TimingRecord], steps: float
) -> Estimate:
    """Log seconds a sample of a run to come: the spread between runs, of these and of that one, the noise of the
    steps, of these and of its own, and the extra error where it is scaled."""
    variance, freedom = time_scaling.run_to_run_variance(alike)
    between = Estimate(centre, variance * (1 + 1 / len(nearest)), freedom)
    within = statistics.fmean(run.log_error**2 for run in nearest)
    a_step = statistics.fmean(run.log_error**2 * max(1.0, run.metrics["train/steps"]) for run in nearest)
    return add_variance(between, within / len(nearest) + a_step / steps + transferred**2)


def _parts(
    config: RunConfig, runs: list[TimingRecord], seconds: float, amounts: Amounts | None, threads: int
) -> TimeParts:
    taken = [_Taken.of(run) for run in runs]
    factors = [area_ratio(config, run) * time_scaling.core_speedup(threads, run)[0] for run in runs]
    validated = statistics.fmean(one.validated * factor for one, factor in zip(taken, factors, strict=True))
    return _add_up(config, taken, seconds, validated, amounts)


def _add_up(
    config: RunConfig, taken: Sequence["_Taken"], seconds: float, validated: float, amounts: Amounts | None
) -> TimeParts:
    samples = training_samples(config, amounts)
    cached = _CACHED_STEPS * config.global_batch_size * seconds
    return TimeParts(
        start=statistics.fmean(one.start for one in taken) if taken else 0.0,
        passes=passes_of(config) * statistics.fmean(one.each_pass for one in taken) if taken else 0.0,
        training=seconds * samples,
        validation=validated * validated_samples(config, amounts),
        cached=cached if samples >= _MIN_CACHED * config.global_batch_size else 0.0,
    )


@dataclass(frozen=True)
class _Taken:
    """Seconds that a measured run took beside training."""

    start: float
    each_pass: float
    validated: float  # of one sample

    @classmethod
    def of(cls, run: TimingRecord) -> "_Taken":
        """Split up what is left of a run's time.

        An older run does not say what validation took: then all that is left after training counts as validation,
        the passes' starts too.
        """
        metrics, config = run.metrics, run.config
        cached = _CACHED_STEPS * config.global_batch_size * metrics.get("speed/cached_seconds_per_sample", 0.0)
        setup = metrics.get("speed/setup_seconds", 0.0)
        training = metrics["speed/seconds_per_sample"] * metrics["train/samples"]
        left = max(0.0, metrics["speed/run_seconds"] - setup - training - cached)
        ahead, behind = _validations(config)
        if "speed/seconds_per_validated" not in metrics:
            validated = left / (behind * config.val_samples)
            return cls(max(0.0, setup - validated * ahead * config.val_samples), 0.0, validated)
        validated, count = metrics["speed/seconds_per_validated"], metrics["train/validated_samples"]
        before = validated * count * ahead / (ahead + behind)
        after = validated * count - before
        return cls(max(0.0, setup - before), max(0.0, left - after) / run.passes, validated)


def _validations(config: RunConfig) -> tuple[int, int]:
    """Validations of a data set before training, and after it has begun."""
    one = dataclasses.replace(config, val_samples=1)
    return len(config.datasets), validated_samples(one) - len(config.datasets)


def _from_estimate(
    config: RunConfig, compute: Compute, runs: Sequence[TimingRecord], amounts: Amounts | None, estimate: StepEstimate
) -> TimeForecast:
    """A GPU's step as it was estimated; start and passes as runs on record took them, of whatever kind.

    Several GPUs take as many samples in the time of one: the exchange of gradients is taken to go on beside backward.
    """
    seconds = estimate.seconds / config.global_batch_size
    forward_seconds = estimate.forward_seconds / config.global_batch_size
    parts = _add_up(config, [_Taken.of(run) for run in runs], seconds, forward_seconds, amounts)
    return _with_intervals(
        config,
        compute,
        parts,
        Estimate(math.log(seconds), ERROR**2, math.inf),
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
    """The forecast from its parts: all that goes with the pace errs together, the fixed part by itself."""
    moving = 1 - parts.fixed / parts.total
    whole = Estimate(math.log(parts.total), pace.variance * moving**2, pace.freedom)
    run = interval(add_variance(whole, (FIXED_SPREAD * (1 - moving)) ** 2)).exp()
    an_epoch = training_samples(config, amounts) / passes_of(config)
    epoch = _times(interval(pace).exp(), an_epoch)
    price = None if compute.usd_per_hour is None else config.instance_count * compute.usd_per_hour / 3600
    return TimeForecast(
        run_seconds=run,
        epoch_seconds=epoch,
        usd=None if price is None else _times(run, price),
        epoch_usd=None if price is None else _times(epoch, price),
        parts=parts,
        seconds_per_sample=math.exp(pace.value),
        **rest,
    )


def _times(one: Interval, factor: float) -> Interval:
    return Interval(one.centre * factor, one.low * factor, one.high * factor)
