"""Construction of a run's measurement from the training process's events and the monitor's samples. Pure functions."""

import bisect
import dataclasses
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from roofscale.compute import GIB, MIB, Compute, ResourceLimits
from roofscale.config import RunConfig
from roofscale.measurement import Measurement, MemoryPoint, Outcome, ResourceSample, StepRecord, Validation
from roofscale.monitoring.rates import nan_max
from roofscale.runners import events as event_log
from roofscale.runners.events import Event
from roofscale.stats.intervals import log_rate

# The Theil-Sen slope is a median over all pairs; this many points are 125 thousand pairs.
_MAX_SLOPE_POINTS = 500
# Total seconds of steps from which the sampled peak is reliable. Memory is sampled five times a second. In trials of
# resnet18 at 192 px, some runs with 1.1 to 1.6 s of steps had sampled peaks of 598 to 674 MiB where the kernel counted
# 786 to 861 MiB; runs with 1.8 to 10 s were within 8 % of the kernel.
_RELIABLE_PEAK_SECONDS = 2.0
# The allocator, the optimiser's state and the loader's queues fill up over the first steps: not yet lasting growth.
_WARM_UP_STEPS = 3


@dataclass(frozen=True)
class RunObservation:
    """Observation of one run by its runner: outcome, events and the monitor's samples."""

    outcome: Outcome
    detail: str
    started: float  # epoch seconds
    ended: float
    events: Sequence[Event]  # all in the run folder, including those of earlier processes of a resumed run
    memory: tuple[MemoryPoint, ...]
    metrics: Mapping[str, float]  # the monitor's summary
    source: str  # of the memory samples, such as the cgroup
    limit: str  # the memory limit in words, and what enforces it
    resources: tuple[ResourceSample, ...] = ()


def build_measurement(config: RunConfig, size: Compute, limits: ResourceLimits, seen: RunObservation) -> Measurement:
    """Build the measurement of a run; all its fields are filled for every outcome."""
    events = event_log.drop_superseded(seen.events)
    steps = tuple(with_memory(event_log.steps(events), seen.memory))
    validations = tuple(event_log.validations(events))
    # Memory and set-up are those of this process; a resumed run has steps of earlier processes too.
    own_steps = [step for step in steps if step.time >= seen.started]
    metrics = {
        **seen.metrics,
        **memory_metrics(
            own_steps, seen, config.batch_size * config.processes, writes_nothing=bool(config.stop_precision)
        ),
        **speed_metrics(steps),
        **setup_metrics(own_steps, seen),
        **loss_metrics(steps),
        **validation_metrics(validations),
        **forgetting_metrics(steps, validations),
        **_reported(events),
    }
    if config.world_size > 1:
        metrics.pop("memory/workers_mib", None)  # it would include torchrun's training processes
    metrics |= memory_shares(metrics, limits.memory_bytes, size.gpu_memory_gib)
    return Measurement(
        outcome=seen.outcome,
        detail=seen.detail,
        fingerprint=config.fingerprint,
        steps=steps,
        validations=validations,
        memory=seen.memory,
        metrics={name: value for name, value in metrics.items() if not math.isnan(value)},
        facts=_facts(events, size, limits, seen),
        resources=seen.resources,
    )


def with_memory(steps: Sequence[StepRecord], memory: Sequence[MemoryPoint]) -> list[StepRecord]:
    """Return the steps with the last memory sample (MiB) before the end of each; NaN before the first sample.

    Never a later sample: after an epoch's last step the loader is already shutting down.
    """
    times = [point.time for point in memory]
    indices = (bisect.bisect_right(times, step.time) - 1 for step in steps)
    return [
        dataclasses.replace(step, memory_mib=memory[i].mib) if i >= 0 else step
        for step, i in zip(steps, indices, strict=True)
    ]


def memory_metrics(
    steps: Sequence[StepRecord], seen: RunObservation, batch_size: int, *, writes_nothing: bool = False
) -> dict[str, float]:
    """Return the peak memory (MiB), MiB per sample of the batch, and the memory slope (MiB per step).

    The kernel's peak is used if it is higher and either the run ended out of memory, perhaps between two samples, or it
    was too short to be sampled often enough. The latter only for a run that writes no files: the kernel's peak includes
    their page cache.

    Args:
        steps: of the process that was monitored.
        batch_size: samples per step on this machine.
        writes_nothing: whether the run writes no files, as it only measures its speed (``stop_precision``).
    """
    peak = seen.metrics.get("memory/peak_mib", math.nan)
    brief = writes_nothing and math.fsum(step.seconds for step in steps) < _RELIABLE_PEAK_SECONDS
    if seen.outcome is Outcome.HOST_OOM or brief:
        peak = nan_max(peak, seen.metrics.get("memory/kernel_peak_mib", math.nan))
    metrics = {"memory/peak_mib": peak, "memory/growth_mib_per_step": memory_slope(steps)}
    metrics["memory/mib_per_sample"] = (peak - baseline_mib(steps, seen.memory)) / batch_size
    return metrics


def baseline_mib(steps: Sequence[StepRecord], memory: Sequence[MemoryPoint]) -> float:
    """Return the memory in use when the first step began, MiB; NaN if there is no sample before it."""
    before = [point.mib for point in memory if steps and point.time <= steps[0].time - steps[0].seconds]
    return before[-1] if before else math.nan


def memory_slope(steps: Sequence[StepRecord]) -> float:
    """Return the Theil-Sen slope of memory over steps after the warm-up, MiB per step; NaN with fewer than five points.

    Source: P. K. Sen, Estimates of the regression coefficient based on Kendall's tau, JASA 63 (1968).
    """
    from scipy import stats  # takes seconds; a runner imports it while the training process starts

    points = [(step.step, step.memory_mib) for step in steps[_WARM_UP_STEPS:] if math.isfinite(step.memory_mib)]
    points = points[:: math.ceil(len(points) / _MAX_SLOPE_POINTS) or 1]
    if len(points) < 5:
        return math.nan
    x, y = zip(*points, strict=True)
    return float(stats.theilslopes(y, x).slope)


def speed_metrics(steps: Sequence[StepRecord]) -> dict[str, float]:
    """Return throughput and loader wait over all steps except each epoch's first, which waits for the loader's start.

    Totals, not medians: with W loader processes only one step in W may have to wait, and a median would hide it.
    ``speed/loader_wait`` is a share of the time of the steps; ``speed/start_up_seconds`` is what the first step of the
    run took longer than the mean step.
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
    """Return the relative standard error of the seconds per sample; NaN with too few steps.

    Args:
        timed: steps, each with the number of samples in its batch.
    """
    rate = log_rate([[(float(size), step.seconds) for step, size in timed]])
    return math.sqrt(rate.variance) if rate else math.nan


def without_first_steps(steps: Sequence[StepRecord]) -> list[tuple[StepRecord, int]]:
    """Return all steps except each epoch's first, each with the number of samples in its batch."""
    sized = list(zip(steps, batch_samples(steps), strict=True))
    return [(step, size) for before, (step, size) in zip(steps, sized[1:], strict=False) if before.epoch == step.epoch]


def batch_samples(steps: Sequence[StepRecord]) -> list[int]:
    """Return the number of samples in each step's batch, from the running count."""
    counts = [0, *(step.samples for step in steps)]
    return [after - before for before, after in itertools.pairwise(counts)]


def epoch_seconds(steps: Sequence[StepRecord]) -> float:
    """Return the mean seconds per epoch, with each epoch's first step counted as the mean of its other steps.

    The first step includes the loader's start and the choice of kernels, a cost that does not depend on the number of
    samples: in an epoch of five steps it is a third of the time, and would distort a comparison of sample counts.
    """
    seconds: dict[int, list[float]] = {}
    for step in steps:
        seconds.setdefault(step.epoch, []).append(step.seconds)
    return statistics.fmean(statistics.fmean(s[1:] or s) * len(s) for s in seconds.values()) if seconds else math.nan


def setup_metrics(steps: Sequence[StepRecord], seen: RunObservation) -> dict[str, float]:
    """Return the seconds of the monitored process: in total, and before its first step began."""
    metrics = {"speed/run_seconds": seen.ended - seen.started}
    if steps:
        metrics["speed/setup_seconds"] = steps[0].time - steps[0].seconds - seen.started
    return metrics


def loss_metrics(steps: Sequence[StepRecord]) -> dict[str, float]:
    """Return the final loss (mean over the last tenth of the steps) and the totals of steps and samples."""
    if not steps:
        return {"train/steps": 0.0, "train/samples": 0.0}
    last_tenth = steps[-max(1, len(steps) // 10) :]
    return {
        "train/final_loss": statistics.fmean(step.loss for step in last_tenth),
        "train/steps": float(steps[-1].step),
        "train/samples": float(steps[-1].samples),
    }


def validation_metrics(validations: Sequence[Validation]) -> dict[str, float]:
    """Return ``val/<data set>/<metric>`` of each data set's last validation, and the seconds per validated sample."""
    last = {validation.dataset: validation for validation in validations}
    metrics: dict[str, float] = {}
    for name, validation in last.items():
        metrics |= {f"val/{name}/{metric}": float(value) for metric, value in validation.metrics.items()}
        if validation.losses:
            metrics[f"val/{name}/loss"] = statistics.fmean(validation.losses)
    validated = sum(len(validation.sample_ids) for validation in validations)
    if validated:
        seconds = math.fsum(validation.seconds for validation in validations)
        metrics |= {"train/validated_samples": float(validated), "speed/seconds_per_validated": seconds / validated}
    return metrics


def validations_since_trained(
    steps: Sequence[StepRecord], validations: Sequence[Validation]
) -> dict[str, tuple[Validation, Validation]]:
    """Return, by data set, its first validation after the last step that trained on it, and its last validation.

    Data sets with fewer than two such validations (the last one trained on, for example) are left out.
    """
    trained = {name: step.step for step in steps for name in step.dataset.split("+")}  # data set: its last step
    since = {name: [v for v in validations if v.dataset == name and v.step >= last] for name, last in trained.items()}
    return {name: (later[0], later[-1]) for name, later in since.items() if len(later) > 1}


def forgetting_metrics(steps: Sequence[StepRecord], validations: Sequence[Validation]) -> dict[str, float]:
    """Return ``forgetting/<data set>``: the drop of its validation IoU since the run last trained on it."""
    return {
        f"forgetting/{name}": first.metrics.get("iou", math.nan) - last.metrics.get("iou", math.nan)
        for name, (first, last) in validations_since_trained(steps, validations).items()
    }


def memory_shares(metrics: Mapping[str, float], memory_bytes: int, gpu_memory_gib: float) -> dict[str, float]:
    """Return the peaks of host and GPU memory as shares of what the compute has."""
    shares = {"memory/share": metrics.get("memory/peak_mib", math.nan) / (memory_bytes / MIB)}
    if gpu_memory_gib:
        shares["gpu/memory_share"] = metrics.get("gpu/memory_peak_mib", math.nan) / (gpu_memory_gib * GIB / MIB)
    return shares


def _reported(events: Sequence[Event]) -> dict[str, float]:
    """Return the metrics that the training process reports; these precede the monitor's, as for its own GPU memory."""
    metrics: dict[str, float] = {}
    for event in events:
        if event["event"] == "metrics":
            metrics |= {name: float(value) for name, value in event["metrics"].items() if value is not None}
    return metrics


def _facts(events: Sequence[Event], size: Compute, limits: ResourceLimits, seen: RunObservation) -> dict[str, str]:
    facts: dict[str, str] = {}
    for event in events:
        if event["event"] == "start":
            facts |= event["facts"]
        elif event["event"] == "resumed":
            facts["resumed_at_step"] = str(event["step"])
    facts |= {
        "compute": f"{size.name}, {limits.cores} cores, {limits.memory_bytes / GIB:.3g} GiB",
        "memory_limit": seen.limit,
        "memory_source": seen.source,
    }
    return facts | ({"compute_note": limits.note} if limits.note else {})
