"""Criteria on a step's use of the machine: memory, loader, CPU and GPU, and which of them is the bottleneck.

The thresholds on shares of time are those of SageMaker Debugger's profiler rules, which AWS no longer runs:
CPUBottleneck (CPU over 90 % with GPU under 10 %), IOBottleneck (I/O wait over 50 %), both for over half the time,
LowGPUUtilization (95th percentile under 70 %) and StepOutlier (over 3 standard deviations); Amazon SageMaker Developer
Guide, "List of Debugger Built-in Rules".
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from roofscale.measurement import Measurement
from roofscale.memory_margin import MEMORY_MARGIN
from roofscale.phases.criteria.evidence import (
    Criterion,
    Evidence,
    Limit,
    insufficient,
    largest,
    unless_disturbed,
    worst_metric,
)
from roofscale.runners.build_measurement import without_first_steps
from roofscale.stats.curves import MAD_TO_SIGMA, SIGMA_FLOOR, SMALL_SAMPLE, Finding, Values, Verdict, combine
from roofscale.stats.intervals import MIN_WINDOWS, Estimate, batch_means, compare_to_band, difference, interval

FULL = 0.90  # share of the cores: what CPUBottleneck calls a busy CPU
IDLE_GPU = 0.10  # utilisation that CPUBottleneck calls an idle GPU
OVER_HALF = 0.5  # share of the time above which these rules report a bottleneck
MIN_ROWS = 5  # rows of the resources, one every two seconds of training, needed for a share of the time
OUTLIER_SIGMAS = 3.0
OUTLIER_ALPHA = {"failed": 0.01, "passed": 0.05}  # stricter to fail: a sigma of few steps is rough
OUTLIERS_EXCLUDED = 0.25  # share of slow steps to be excluded for a pass; eleven steps without a slow one suffice

Flags = npt.NDArray[np.bool_]
Part = Callable[[Evidence, Mapping[str, float]], Finding | None]  # None: the run has no such resource


def memory_margin(evidence: Evidence, limits: Mapping[str, float]) -> Finding:
    """Judge whether the worst run's peak is under ``max_share`` of the compute's memory, host and GPU each."""
    shares = {"host": worst_metric(evidence, "memory/share"), "GPU": worst_metric(evidence, "gpu/memory_share")}
    if all(run.metrics.get("gpu/memory_share") is None for run in evidence.runs):
        del shares["GPU"]  # a run without a GPU
    if not all(map(math.isfinite, shares.values())):
        return insufficient("peak memory was not measured")
    over = any(share >= limits["max_share"] for share in shares.values())
    peak = worst_metric(evidence, "memory/peak_mib")
    text = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    return Finding(
        Verdict.FAILED if over else Verdict.PASSED,
        f"peak memory {text} of the compute's"
        + (f", {peak:.0f} MiB" if math.isfinite(peak) else "")
        + f" (limit {limits['max_share']:.0%})",
        {f"{name.lower()}_share": share for name, share in shares.items()},
    )


def data_stall(evidence: Evidence, limits: Mapping[str, float]) -> Finding:
    """Judge whether training waits for the loader.

    Failed if both the wait and the time that a cached batch saves are over ``max_share`` of the steps' time. Only both
    together prove that the loader is the cause: a step may be slower than one on a cached batch because the machine was
    busy, without any wait; and a wait may be short for a batch that would have been late anyway.
    """
    stall = float(np.median([run.metric("speed/data_stall") for run in evidence.runs]))
    wait = float(np.median([run.metric("speed/loader_wait") for run in evidence.runs]))
    if not (math.isfinite(stall) and math.isfinite(wait)):
        return insufficient("the wait for the loader was not measured")
    finding = Finding(
        Verdict.FAILED if min(stall, wait) > limits["max_share"] else Verdict.PASSED,
        f"{wait:.0%} of the steps' time waiting for the loader; a cached batch saves {stall:.0%} (both over "
        f"{limits['max_share']:.0%} fails)",
        {"data_stall": stall, "loader_wait": wait},
    )
    return unless_disturbed(finding, evidence)


def attains(evidence: Evidence, limits: Mapping[str, float]) -> Finding:
    """Judge whether whole epochs achieve at least ``min_share`` of the samples per second of a cached batch.

    The step on a cached batch is the attainable speed with this model, batch and precision; loader, checkpoints and
    logging count against it. GPU utilisation cannot replace this criterion: it is the share of the time in which
    anything runs on the GPU, so that it may be high on a slow run.
    """
    share = float(np.median([_attained(run) for run in evidence.runs]))
    if not math.isfinite(share):
        return insufficient("the same step on a cached batch was not timed")
    finding = Finding(
        Verdict.PASSED if share >= limits["min_share"] else Verdict.FAILED,
        f"{share:.0%} of the samples/s of a cached batch, over whole epochs (at least {limits['min_share']:.0%})",
        {"attained": share},
    )
    return unless_disturbed(finding, evidence)


def _attained(run: Measurement) -> float:
    """Return achieved over attainable samples per second; NaN if either was not measured."""
    epochs = len({step.epoch for step in run.steps})
    if not epochs:
        return math.nan
    attainable = run.metric("speed/cached_seconds_per_sample") * run.steps[-1].samples / epochs
    return attainable / run.metric("speed/seconds_per_epoch")


def utilisation_up(evidence: Evidence, limits: Mapping[str, float]) -> Finding:
    """Judge whether CPU utilisation in training is above the base step's by ``min_gain``, or already near its maximum.

    Successive rows are correlated, so the interval of the difference is one of block means
    (``stats.intervals.batch_means``). Passed if it lies wholly above min_gain, or if the step's own utilisation lies
    wholly above 90 % of the cores; failed if both lie wholly below; else, and with fewer than nine rows per run, the
    evidence is insufficient.
    """
    if not evidence.base:
        return insufficient("no base step to compare with")
    ours, theirs = (_level_of("cpu/utilisation", runs) for runs in (evidence.runs, evidence.base))
    if ours is None or theirs is None:
        return insufficient(f"CPU utilisation over fewer than {MIN_WINDOWS**2} rows of two seconds")
    gain, own = interval(difference(ours, theirs)), interval(ours)
    verdicts = {
        compare_to_band(gain.low, gain.high, limits["min_gain"], math.inf),
        compare_to_band(own.low, own.high, FULL, math.inf),
    }
    verdict = Verdict.FAILED if verdicts == {Verdict.FAILED} else Verdict.INSUFFICIENT_EVIDENCE
    finding = Finding(
        Verdict.PASSED if Verdict.PASSED in verdicts else verdict,
        f"CPU {ours.value:.0%}, {gain:+.1%} on base (more than {limits['min_gain']:+.0%} wanted, or {FULL:.0%} in all)",
        {"utilisation": ours.value, "gain": gain.centre, "gain_low": gain.low, "gain_high": gain.high},
    )
    return unless_disturbed(finding, evidence, evidence.base)


def _level_of(name: str, runs: Sequence[Measurement]) -> Estimate | None:
    return batch_means([training_rows(run, name)[0] for run in runs])


def training_rows(run: Measurement, *names: str) -> Values:
    """Return the series of metrics within training steps, shape (names, rows), at the times when all of them are known.

    Rows between steps are left out: validation and the end of an epoch.
    """
    ends = np.array([step.time for step in run.steps])
    starts = ends - np.array([step.seconds for step in run.steps])
    times = np.array([row.time for row in run.resources])
    values: Values = np.array([[row.metrics.get(name, math.nan) for name in names] for row in run.resources])
    step_of = np.searchsorted(ends, times)  # index of the first step that ends at or after the row
    inside = step_of < ends.size
    inside[inside] = starts[step_of[inside]] < times[inside]
    known = np.isfinite(values.reshape(-1, len(names))).all(axis=1)
    return values.reshape(-1, len(names))[inside & known].T


def balanced(evidence: Evidence, limits: Mapping[str, float]) -> Finding:
    """Judge whether a resource is the bottleneck, and name it.

    Each resource of ``_PARTS`` is judged by itself; one that the machine does not have is left out.
    """
    findings = {name: part(evidence, limits) for name, part in _PARTS.items()}
    parts = {name: finding for name, finding in findings.items() if finding}
    bottlenecks = [name for name, finding in parts.items() if finding.verdict is Verdict.FAILED]
    text = "; ".join(f"{name}: {finding.evidence}" for name, finding in parts.items())
    return Finding(
        combine([finding.verdict for finding in parts.values()]),
        f"bottleneck: {' and '.join(bottlenecks)} ({text})" if bottlenecks else text,
        {name: value for finding in parts.values() for name, value in finding.numbers.items()}
        | {f"bottleneck/{name}": 1.0 for name in bottlenecks},
    )


def _stall_part(evidence: Evidence, limits: Mapping[str, float]) -> Finding:
    return data_stall(evidence, {"max_share": limits["max_stall"]})


def _memory_part(evidence: Evidence, limits: Mapping[str, float]) -> Finding:
    return memory_margin(evidence, {"max_share": limits["max_memory_share"]})


def _shm_part(evidence: Evidence, limits: Mapping[str, float]) -> Finding | None:
    share = largest(run.metric("memory/shm_share") for run in evidence.runs)
    if not math.isfinite(share):
        return None  # a system without /dev/shm
    over = share >= limits["max_shm_share"]
    return Finding(Verdict.FAILED if over else Verdict.PASSED, f"{share:.0%} full", {"shm_share": share})


def _io_part(evidence: Evidence, limits: Mapping[str, float]) -> Finding | None:
    (waits,) = _rows(evidence, "cpu/io_wait")
    if not waits.size and _rows(evidence, "cpu/utilisation").size:
        return None  # a system that does not report I/O wait
    max_wait = limits["max_io_wait"]
    return _over_half(waits > max_wait, evidence, f"over {max_wait:.0%}", "io_wait_time")


def _cpu_part(evidence: Evidence, limits: Mapping[str, float]) -> Finding | None:
    if not _has_gpu(evidence):
        return None
    cpu, gpu = _rows(evidence, "cpu/utilisation", "gpu/utilisation")
    starved = (cpu > FULL) & (gpu < IDLE_GPU)
    return _over_half(starved, evidence, f"over {FULL:.0%} with the GPU under {IDLE_GPU:.0%}", "starved_time")


def _gpu_part(evidence: Evidence, limits: Mapping[str, float]) -> Finding | None:
    if not _has_gpu(evidence):
        return None
    (busy,) = _rows(evidence, "gpu/utilisation")
    if busy.size < MIN_ROWS:
        return insufficient(f"{busy.size} rows, {MIN_ROWS} needed")
    p95 = float(np.percentile(busy, 95))
    low = p95 < limits["min_gpu_p95"]
    text = f"95th percentile of its use {p95:.0%} (at least {limits['min_gpu_p95']:.0%})"
    return unless_disturbed(Finding(Verdict.FAILED if low else Verdict.PASSED, text, {"gpu_p95": p95}), evidence)


def _outlier_part(evidence: Evidence, limits: Mapping[str, float]) -> Finding:
    """Judge the share of steps slower than three robust sigmas of log time, by exact binomial tests.

    Failed if it is significantly over ``max_outliers``; passed if a share of OUTLIERS_EXCLUDED can be excluded.
    """
    from scipy import stats  # takes seconds, so only where a test is made

    flags = np.concatenate([_outliers(run) for run in evidence.runs])
    if not flags.size:
        return insufficient(f"fewer than {MIN_WINDOWS} timed steps")
    count = int(flags.sum())
    p = float(stats.binom.sf(count - 1, flags.size, limits["max_outliers"]))
    text = f"{count} of {flags.size} over {OUTLIER_SIGMAS:g} sigma (more than {limits['max_outliers']:.0%}: p={p:.2g})"
    verdict = Verdict.FAILED if p < OUTLIER_ALPHA["failed"] else Verdict.INSUFFICIENT_EVIDENCE
    excluded = float(stats.binom.cdf(count, flags.size, OUTLIERS_EXCLUDED))
    if verdict is not Verdict.FAILED and excluded < OUTLIER_ALPHA["passed"]:
        verdict = Verdict.PASSED
    return unless_disturbed(Finding(verdict, text, {"outliers": count / flags.size}), evidence)


def _outliers(run: Measurement) -> Flags:
    seconds = np.array([step.seconds for step, _ in without_first_steps(run.steps)])
    if seconds.size < MIN_WINDOWS or not (np.isfinite(seconds) & (seconds > 0)).all():
        return np.zeros(0, dtype=np.bool_)
    excess = np.log(seconds) - np.median(np.log(seconds))
    # Sigma is taken from the faster half, so that many slow steps do not raise the threshold for slow steps.
    faster = -excess[excess <= 0]
    sigma = max(SIGMA_FLOOR, MAD_TO_SIGMA * float(np.median(faster)) * (1 + SMALL_SAMPLE / excess.size))
    outliers: Flags = excess > OUTLIER_SIGMAS * sigma
    return outliers


def _over_half(flags: Flags, evidence: Evidence, what: str, name: str) -> Finding:
    """Judge flags, one per row: failed if they are set for over half the time."""
    if flags.size < MIN_ROWS:
        return insufficient(f"{flags.size} rows, {MIN_ROWS} needed")
    share = float(flags.mean())
    finding = Finding(
        Verdict.FAILED if share > OVER_HALF else Verdict.PASSED, f"{what} in {share:.0%} of the time", {name: share}
    )
    return unless_disturbed(finding, evidence)


def _rows(evidence: Evidence, *names: str) -> Values:
    return np.concatenate([training_rows(run, *names) for run in evidence.runs], axis=1)


def _has_gpu(evidence: Evidence) -> bool:
    return any("gpu/utilisation" in run.metrics for run in evidence.runs)


_PARTS: Mapping[str, Part] = {
    "data stall": _stall_part,
    "I/O wait": _io_part,
    "memory": _memory_part,
    "/dev/shm": _shm_part,
    "CPU": _cpu_part,
    "GPU": _gpu_part,
    "step times": _outlier_part,
}

CRITERIA = {
    "memory_margin": Criterion(
        "the peak stays under a share of the compute's memory, host and GPU each",
        memory_margin,
        {
            "max_share": Limit(
                MEMORY_MARGIN,
                "share of the memory; a fifth is kept for peaks between two samples",
                is_memory_margin=True,
            )
        },
    ),
    "data_stall": Criterion(
        "the loader keeps up with training",
        data_stall,
        {"max_share": Limit(0.20, "share of a step's time spent waiting for the loader")},
    ),
    "attains": Criterion(
        "the samples/s that the device can attain with this model are achieved, over whole epochs",
        attains,
        {"min_share": Limit(0.95, "share of the samples/s of the same step on a cached batch")},
    ),
    "utilisation_up": Criterion(
        "CPU utilisation while training is up on the base step's, or near all that there is",
        utilisation_up,
        {"min_gain": Limit(0.05, "share of the cores, on top of the base step's")},
        finding=True,
    ),
    "balanced": Criterion(
        "no resource is the bottleneck: loader, I/O, memory, /dev/shm, CPU, GPU or single slow steps",
        balanced,
        {
            "max_stall": Limit(0.20, "share of a step's time spent waiting for the loader"),
            "max_io_wait": Limit(0.50, "share of the machine's time, over half of training (Debugger: IOBottleneck)"),
            "max_memory_share": Limit(MEMORY_MARGIN, "share of the memory, host and GPU each", is_memory_margin=True),
            "max_shm_share": Limit(MEMORY_MARGIN, "share of /dev/shm, as of the memory", is_memory_margin=True),
            "min_gpu_p95": Limit(0.70, "95th percentile of the GPU's use (Debugger: LowGPUUtilization)"),
            "max_outliers": Limit(0.05, "share of steps over 3 sigma (Debugger: StepOutlier counts ten)"),
        },
    ),
}
