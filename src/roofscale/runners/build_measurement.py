"""Joins what a training process said with what was seen of it into one measurement. Pure functions."""

import bisect
import dataclasses
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

from roofscale.compute import GIB, Compute, ResourceLimits
from roofscale.config import RunConfig
from roofscale.measurement import Measurement, MemoryPoint, Outcome, ResourceSample, StepRecord, Validation
from roofscale.runners import events as event_log
from roofscale.runners.events import Event
from roofscale.stats.intervals import log_rate

_MIB = 2**20
# The Theil-Sen slope looks at every pair; this many points are 125 thousand pairs.
_MOST_POINTS_FOR_SLOPE = 500
# Memory is looked at five times a second. Of trials of resnet18 at 192 px whose steps took 1.1 to 1.6 s some showed 598
# to 674 MiB where the kernel had seen 786 to 861; those of 1.8 to 10 s showed what the kernel had seen, within 8 %.
_SEEN_WELL_SECONDS = 2.0
# The allocator, the optimiser's state and the loader's queues fill up over the first steps: not yet lasting growth.
_WARM_UP_STEPS = 3


@dataclass(frozen=True)
class RunObservation:
    """All that a runner saw of one run."""

    outcome: Outcome
    detail: str
    started: float  # epoch seconds
    ended: float
    events: Sequence[Event]  # everything in the run folder, those of earlier processes included
    memory: tuple[MemoryPoint, ...]
    metrics: Mapping[str, float]  # the monitor's summary
    source: str  # of the memory figures
    limit: str  # of the memory, and by what means
    resources: tuple[ResourceSample, ...] = ()


def build_measurement(config: RunConfig, size: Compute, allowed: ResourceLimits, seen: RunObservation) -> Measurement:
    """The measurement of a run, complete whatever the outcome."""
    in_force = event_log.drop_superseded(seen.events)
    steps = tuple(with_memory(event_log.steps(in_force), seen.memory))
    validations = tuple(event_log.validations(in_force))
    now = [step for step in steps if step.time >= seen.started]
    metrics = {
        **seen.metrics,
        **memory_metrics(now, seen, config.batch_size * config.processes, writes_nothing=bool(config.stop_precision)),
        **speed_metrics(steps),
        **setup_metrics(now, seen),
        **loss_metrics(steps),
        **validation_metrics(validations),
        **forgetting_metrics(steps, validations),
        **_reported(in_force),
    }
    if config.world_size > 1:
        metrics.pop("memory/workers_mib", None)  # what torchrun has started counts as such, too
    metrics |= memory_shares(metrics, allowed.memory_bytes, size.gpu_memory_gib)
    return Measurement(
        outcome=seen.outcome,
        detail=seen.detail,
        fingerprint=config.fingerprint,
        steps=steps,
        validations=validations,
        memory=seen.memory,
        metrics={name: value for name, value in metrics.items() if not math.isnan(value)},
        facts=_facts(in_force, size, allowed, seen),
        resources=seen.resources,
    )


def with_memory(steps: Sequence[StepRecord], memory: Sequence[MemoryPoint]) -> list[StepRecord]:
    """The steps with the memory last sampled by the end of each; NaN for steps before the first sample.

    Not with a sample after it: behind an epoch's last step the loader is already being taken down.
    """
    times = [point.time for point in memory]
    found = (bisect.bisect_right(times, step.time) - 1 for step in steps)
    return [
        dataclasses.replace(step, memory_mib=memory[i].mib) if i >= 0 else step
        for step, i in zip(steps, found, strict=True)
    ]


def memory_metrics(
    steps: Sequence[StepRecord], seen: RunObservation, batch_size: int, *, writes_nothing: bool = False
) -> dict[str, float]:
    """Peak, MiB a sample and lasting growth.

    The kernel's own peak counts where a run died between two samples, and where one that writes no file, which the
    kernel would count as page cache, was over before its memory was looked at often enough.

    Args:
        steps: of the process that was watched.
        writes_nothing: whether it only measures its pace.
    """
    peak = seen.metrics.get("memory/peak_mib", math.nan)
    brief = writes_nothing and math.fsum(step.seconds for step in steps) < _SEEN_WELL_SECONDS
    if seen.outcome is Outcome.HOST_OOM or brief:
        peak = max(peak, seen.metrics.get("memory/kernel_peak_mib", math.nan), key=_nan_last)
    metrics = {"memory/peak_mib": peak, "memory/growth_mib_per_step": memory_slope(steps)}
    metrics["memory/mib_per_sample"] = (peak - baseline_mib(steps, seen.memory)) / batch_size
    return metrics


def baseline_mib(steps: Sequence[StepRecord], memory: Sequence[MemoryPoint]) -> float:
    """MiB that were held when the first step began; NaN where they were not sampled."""
    before = [point.mib for point in memory if steps and point.time <= steps[0].time - steps[0].seconds]
    return before[-1] if before else math.nan


def memory_slope(steps: Sequence[StepRecord]) -> float:
    """Theil-Sen slope of memory over steps after the warm-up, MiB a step; NaN with fewer than five points.

    Source: P. K. Sen, Estimates of the regression coefficient based on Kendall's tau, JASA 63 (1968).
    """
    points = [(step.step, step.memory_mib) for step in steps[_WARM_UP_STEPS:] if math.isfinite(step.memory_mib)]
    points = points[:: math.ceil(len(points) / _MOST_POINTS_FOR_SLOPE) or 1]
    if len(points) < 5:
        return math.nan
    x, y = zip(*points, strict=True)
    return float(stats.theilslopes(y, x).slope)


def speed_metrics(steps: Sequence[StepRecord]) -> dict[str, float]:
    """Throughput and the wait for the loader over all steps but each epoch's first, which waits for the loader's start.

    Totals, not medians: with W loader processes only one step in W may have to wait, and a median would not see it.
    """
    timed = without_first_steps(steps) or list(zip(steps, batch_samples(steps), strict=True))
    seconds = math.fsum(step.seconds for step, _ in timed)
    samples = sum(size for _, size in timed)
    if not (seconds > 0 and samples > 0):
        return {}
    return {
        "speed/samples_per_s": samples / seconds,
        "speed/seconds_per_sample": seconds / samples,
        "speed/seconds_per_epoch": epoch_seconds(steps),
        "speed/start_up_seconds": max(0.0, steps[0].seconds - seconds / len(timed)),
        "speed/loader_wait": math.fsum(step.wait_seconds for step, _ in timed) / seconds,
        "speed/pace_error": pace_error(timed),
    }


def pace_error(timed: Sequence[tuple[StepRecord, int]]) -> float:
    """Standard error of the seconds a sample as a share of them; NaN with too few steps to tell.

    Args:
        timed: steps with the samples of their batches.
    """
    found = log_rate([[(float(size), step.seconds) for step, size in timed]])
    return math.sqrt(found.variance) if found else math.nan


def without_first_steps(steps: Sequence[StepRecord]) -> list[tuple[StepRecord, int]]:
    """All steps but each epoch's first, with the samples of their batches."""
    sized = list(zip(steps, batch_samples(steps), strict=True))
    return [(step, size) for before, (step, size) in zip(steps, sized[1:], strict=False) if before.epoch == step.epoch]


def batch_samples(steps: Sequence[StepRecord]) -> list[int]:
    """Samples in each step's batch, from the running count; the last batch of an epoch may be smaller."""
    counts = [0, *(step.samples for step in steps)]
    return [after - before for before, after in itertools.pairwise(counts)]


def epoch_seconds(steps: Sequence[StepRecord]) -> float:
    """Mean over the epochs of their steps' seconds, the first of each counted like the mean of the others.

    The first step pays for the loader's start and the choice of kernels, once and whatever the number of samples: in an
    epoch of five steps that is a third of the time, and twice the samples would not seem to take twice as long.
    """
    seconds: dict[int, list[float]] = {}
    for step in steps:
        seconds.setdefault(step.epoch, []).append(step.seconds)
    return statistics.fmean(statistics.fmean(s[1:] or s) * len(s) for s in seconds.values()) if seconds else math.nan


def setup_metrics(steps: Sequence[StepRecord], seen: RunObservation) -> dict[str, float]:
    """Seconds of the whole run and of its start, of the process that was watched."""
    metrics = {"speed/run_seconds": seen.ended - seen.started}
    if steps:
        metrics["speed/setup_seconds"] = steps[0].time - steps[0].seconds - seen.started
    return metrics


def loss_metrics(steps: Sequence[StepRecord]) -> dict[str, float]:
    """The end of the training curve."""
    if not steps:
        return {"train/steps": 0.0, "train/samples": 0.0}
    last_tenth = steps[-max(1, len(steps) // 10) :]
    return {
        "train/final_loss": statistics.fmean(step.loss for step in last_tenth),
        "train/steps": float(steps[-1].step),
        "train/samples": float(steps[-1].samples),
    }


def validation_metrics(validations: Sequence[Validation]) -> dict[str, float]:
    """``val/<data set>/<metric>`` of each data set's last validation, with its mean loss, and what validating took."""
    last = {validation.dataset: validation for validation in validations}
    metrics: dict[str, float] = {}
    for name, validation in last.items():
        metrics |= {f"val/{name}/{metric}": float(value) for metric, value in validation.metrics.items()}
        if validation.losses:
            metrics[f"val/{name}/loss"] = statistics.fmean(validation.losses)
    validated = sum(len(validation.sample_ids) for validation in validations)
    if validated:
        took = math.fsum(validation.seconds for validation in validations)
        metrics |= {"train/validated_samples": float(validated), "speed/seconds_per_validated": took / validated}
    return metrics


def validations_since_trained(
    steps: Sequence[StepRecord], validations: Sequence[Validation]
) -> dict[str, tuple[Validation, Validation]]:
    """By data set that was not trained on to the end: its validation after it last was, and its last validation."""
    trained = {name: step.step for step in steps for name in step.dataset.split("+")}  # the last time counts
    since = {name: [v for v in validations if v.dataset == name and v.step >= last] for name, last in trained.items()}
    return {name: (found[0], found[-1]) for name, found in since.items() if len(found) > 1}


def forgetting_metrics(steps: Sequence[StepRecord], validations: Sequence[Validation]) -> dict[str, float]:
    """``forgetting/<data set>``: how far its validation IoU has fallen since it was last trained on."""
    return {
        f"forgetting/{name}": then.metrics.get("iou", math.nan) - end.metrics.get("iou", math.nan)
        for name, (then, end) in validations_since_trained(steps, validations).items()
    }


def memory_shares(metrics: Mapping[str, float], memory_bytes: int, gpu_memory_gib: float) -> dict[str, float]:
    """Peaks over what there was."""
    found = {"memory/share": metrics.get("memory/peak_mib", math.nan) / (memory_bytes / _MIB)}
    if gpu_memory_gib:
        found["gpu/memory_share"] = metrics.get("gpu/memory_peak_mib", math.nan) / (gpu_memory_gib * GIB / _MIB)
    return found


def _reported(events: Sequence[Event]) -> dict[str, float]:
    """What only the training process can know; it knows its own GPU memory better than one who samples it."""
    metrics: dict[str, float] = {}
    for event in events:
        if event["event"] == "metrics":
            metrics |= {name: float(value) for name, value in event["metrics"].items() if value is not None}
    return metrics


def _facts(events: Sequence[Event], size: Compute, allowed: ResourceLimits, seen: RunObservation) -> dict[str, str]:
    facts: dict[str, str] = {}
    for event in events:
        if event["event"] == "start":
            facts |= event["facts"]
        elif event["event"] == "resumed":
            facts["resumed_at_step"] = str(event["step"])
    facts |= {
        "compute": f"{size.name}, {allowed.cores} cores, {allowed.memory_bytes / GIB:.3g} GiB",
        "memory_limit": seen.limit,
        "memory_source": seen.source,
    }
    return facts | ({"compute_note": allowed.note} if allowed.note else {})


def _nan_last(value: float) -> float:
    return -math.inf if math.isnan(value) else value
