"""What a step made of the machine: memory, the loader, CPU and GPU, and which of them holds the others up.

The thresholds by time are those of SageMaker Debugger's profiler rules, which AWS no longer runs: CPUBottleneck (CPU
over 90 % with GPU under 10 %), IOBottleneck (I/O wait over 50 %), both for over half the time, LowGPUUtilization (95th
percentile under 70 %) and StepOutlier (over 3 standard deviations); Amazon SageMaker Developer Guide, "List of Debugger
Built-in Rules".
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

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
IDLE_GPU = 0.10  # what it calls an idle GPU
OVER_HALF = 0.5  # of the time, from which those rules speak of a bottleneck
MIN_ROWS = 5  # of the resources over time, ten seconds of training, before a share of the time says anything
OUTLIER_SIGMAS = 3.0
OUTLIER_ALPHA = {"failed": 0.01, "passed": 0.05}  # a sigma of few steps is rough: more than chance has to fail one
OUTLIERS_EXCLUDED = 0.25  # share of slow steps that must be excluded to pass; eleven steps without one do

Flags = npt.NDArray[np.bool_]
Part = Callable[[Evidence, Mapping[str, float]], Finding | None]  # None: the run has no such resource


def memory_margin(evidence: Evidence, limits: Mapping[str, float]) -> Finding:
    """The worst run's peak is under ``max_share`` of what the compute has, host and GPU each."""
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
    """Judged by what a cached batch saves and by the wait itself, because only together do they blame the loader.

    A step may be slower than a cached one because the machine was busy, without having waited; and a wait may be short
    where the batch would have been late anyway.
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
    """An epoch takes hardly longer than its samples would if every batch lay ready on the device.

    The same step on a cached batch is what can be attained with this model, batch and arithmetic; all else that an
    epoch takes time for counts against it: the loader, checkpoints, what is put on record. A GPU may be called busy
    all the while, as its utilisation is the share of the time in which anything runs on it at all.
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
    """Achieved over attainable samples a second; NaN where one of them was not measured."""
    passes = len({step.epoch for step in run.steps})
    if not passes:
        return math.nan
    attainable = run.metric("speed/cached_seconds_per_sample") * run.steps[-1].samples / passes
    return attainable / run.metric("speed/seconds_per_epoch")


def utilisation_up(evidence: Evidence, limits: Mapping[str, float]) -> Finding:
    """CPU utilisation while training is up on the base step's by ``min_gain``, or has no room left to be.

    Neighbouring rows are alike, so the interval of the difference is one of block means (``interval.level``). Passed
    where it lies wholly above min_gain, or where the step's own lies wholly above 90 % of the cores; failed where both
    lie wholly below; else, and with fewer than nine rows a run, the evidence is insufficient.
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
    """The resources over time while training: for each name its series, at the moments where all are known.

    What lies between the steps, validation and the end of an epoch, is left out.
    """
    ends = np.array([step.time for step in run.steps])
    starts = ends - np.array([step.seconds for step in run.steps])
    times = np.array([row.time for row in run.resources])
    found: Values = np.array([[row.metrics.get(name, math.nan) for name in names] for row in run.resources])
    step_of = np.searchsorted(ends, times)  # the one that ends at that moment or after
    inside = step_of < ends.size
    inside[inside] = starts[step_of[inside]] < times[inside]
    known = np.isfinite(found.reshape(-1, len(names))).all(axis=1)
    return found.reshape(-1, len(names))[inside & known].T


def balanced(evidence: Evidence, limits: Mapping[str, float]) -> Finding:
    """No resource holds the others up; the one that does is named.

    Each resource of ``_PARTS`` is judged by itself; one that the machine does not have is left out.
    """
    found = {name: part(evidence, limits) for name, part in _PARTS.items()}
    parts = {name: finding for name, finding in found.items() if finding}
    guilty = [name for name, finding in parts.items() if finding.verdict is Verdict.FAILED]
    text = "; ".join(f"{name}: {finding.evidence}" for name, finding in parts.items())
    return Finding(
        combine([finding.verdict for finding in parts.values()]),
        f"bottleneck: {' and '.join(guilty)} ({text})" if guilty else text,
        {name: value for finding in parts.values() for name, value in finding.numbers.items()}
        | {f"bottleneck/{name}": 1.0 for name in guilty},
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
        return None  # a system that does not tell
    most = limits["max_io_wait"]
    return _over_half(waits > most, evidence, f"over {most:.0%}", "io_wait_time")


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
    """Steps over three robust sigmas of log time: failed where they are significantly more than ``max_outliers``.

    Exact binomial tests both ways: passed where a quarter of the steps can be excluded.
    """
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
    # Of the faster half only: where many steps are slow, they must not widen what counts as slow.
    faster = -excess[excess <= 0]
    sigma = max(SIGMA_FLOOR, MAD_TO_SIGMA * float(np.median(faster)) * (1 + SMALL_SAMPLE / excess.size))
    found: Flags = excess > OUTLIER_SIGMAS * sigma
    return found


def _over_half(flags: Flags, evidence: Evidence, what: str, name: str) -> Finding:
    """Failed where the flags are up for over half the time."""
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
        {"max_share": Limit(MEMORY_MARGIN, "share of the memory; a fifth is kept for what the samples did not see")},
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
