"""Criteria on the speed of a step, against the phase's base step and against other batch sizes.

Times on a shared machine are noisy, so a gain is an interval over windows of steps, without each epoch's first step;
it includes the spread between runs of one config (see ``stats.intervals.interval``).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

from roofscale.config import RunConfig
from roofscale.measurement import Measurement
from roofscale.memory_margin import MEMORY_MARGIN
from roofscale.phases.criteria.evidence import (
    SAME_WORK,
    Criterion,
    EarlierStep,
    Evidence,
    Limit,
    as_insufficient,
    insufficient,
    largest,
    log_seconds_per_sample,
    pace_drift,
    unless_disturbed,
)
from roofscale.stats.curves import Finding, Verdict
from roofscale.stats.intervals import (
    MAX_OTHER_LOAD,
    MIN_WINDOWS,
    Estimate,
    Interval,
    compare_to_band,
    difference,
    interval,
)


def faster(evidence: Evidence, limits: Mapping[str, float]) -> Finding:
    """Judge whether samples per second are above the base step's by at least ``min_gain``.

    Passed if the interval of the ratio lies wholly above 1 + min_gain, failed if wholly below; else the evidence is
    insufficient, as it is with fewer than MIN_WINDOWS timed steps of either step. A gain proves nothing if the machine
    was busier or slower while the base step ran.
    """
    if not evidence.base:
        return insufficient("no base step to compare with")
    ours, theirs = log_seconds_per_sample(evidence.runs), log_seconds_per_sample(evidence.base)
    if ours is None or theirs is None:
        return insufficient(f"fewer than {MIN_WINDOWS} timed steps")
    ratio = interval(difference(theirs, ours)).exp()
    finding = Finding(
        compare_to_band(ratio.low, ratio.high, 1 + limits["min_gain"], math.inf),
        f"{math.exp(-ours.value):.3g} samples/s, {ratio:.2f} x base (more than {1 + limits['min_gain']:g} wanted)",
        {"gain": ratio.centre - 1, "gain_low": ratio.low - 1, "gain_high": ratio.high - 1},
    )
    if finding.verdict is Verdict.PASSED:
        return as_insufficient(finding, _base_disturbed(evidence, evidence.base))
    return unless_disturbed(finding, evidence, evidence.base)


def _base_disturbed(evidence: Evidence, base: Sequence[Measurement]) -> str:
    """Return why the base step may have been measured too slow; empty if nothing shows it."""
    theirs, ours = (max(run.metric("cpu/others") for run in runs) for runs in (base, evidence.runs))
    more = theirs - ours
    if more > MAX_OTHER_LOAD:
        return (
            f"the machine had {more:.0%} more other work while the base step ran (over "
            f"{MAX_OTHER_LOAD:.0%} proves nothing)"
        )
    return pace_drift(evidence, [*evidence.runs, *base])


@dataclass(frozen=True)
class BatchPoint:
    """Throughput and memory of one batch size."""

    batch_size: int
    samples_per_s: float
    memory_share: float  # peak over the compute's memory, the larger of host and GPU


def knee(points: Sequence[BatchPoint], tolerance: float = 0.05, max_share: float = MEMORY_MARGIN) -> BatchPoint | None:
    """Return the smallest batch within ``tolerance`` of the best throughput, among those under ``max_share`` of memory.

    None if no measured batch is under ``max_share``.
    """
    fitting = [p for p in points if p.memory_share < max_share and math.isfinite(p.samples_per_s)]
    best = max((p.samples_per_s for p in fitting), default=math.nan)
    return min(
        (p for p in fitting if p.samples_per_s >= (1 - tolerance) * best), key=attrgetter("batch_size"), default=None
    )


def find_knee(evidence: Evidence, limits: Mapping[str, float]) -> Finding:
    """Find the knee among this step and the earlier steps that did the same work with other batch sizes.

    Passed if the knee is certainly within twice the tolerance of the best, and every smaller batch is certainly outside
    the tolerance; certain means at the end of the interval. Failed if no batch stays under the memory limit. Else, and
    with fewer than two batch sizes, the evidence is insufficient.
    """
    paces = _paces_by_batch(evidence)
    points = [BatchPoint(size, math.exp(-seconds.value), share) for size, (seconds, share) in paces.items()]
    if len(points) < 2:
        return insufficient(
            f"{len(points)} batch sizes with {MIN_WINDOWS} timed steps and known memory; a knee needs 2"
        )
    tolerance, max_share = limits["tolerance"], limits["max_share"]
    chosen = knee(points, tolerance, max_share)
    if chosen is None:
        return Finding(Verdict.FAILED, f"no batch stays under {max_share:.0%} of the memory")
    fitting = [p for p in points if p.memory_share < max_share]
    best = max(fitting, key=lambda p: p.samples_per_s)
    to_best = {p.batch_size: _ratio(paces, p, best) for p in fitting if p is not best}
    smaller = [size for size, ratio in to_best.items() if size < chosen.batch_size and ratio.high >= 1 - tolerance]
    at_least = to_best[chosen.batch_size].low if chosen is not best else 1.0
    unsure = smaller or at_least < 1 - 2 * tolerance
    listed = ", ".join(f"{p.batch_size}: {p.samples_per_s:.3g}" for p in sorted(points, key=attrgetter("batch_size")))
    return Finding(
        Verdict.INSUFFICIENT_EVIDENCE if unsure else Verdict.PASSED,
        f"batch {chosen.batch_size} is the smallest within {tolerance:.0%} of the best (samples/s by batch {listed})"
        + (", but noise may hide a smaller or a better one" if unsure else "")
        + f"; its memory {chosen.memory_share:.0%} of the compute's (limit {max_share:.0%})",
        {
            "batch_size": chosen.batch_size,
            "samples_per_s": chosen.samples_per_s,
            "best_batch_size": best.batch_size,
            "best_samples_per_s": best.samples_per_s,
        },
    )


def _paces_by_batch(evidence: Evidence) -> dict[int, tuple[Estimate, float]]:
    """Return batch size -> (pace, memory share), smallest batch first; the runs of each batch size are pooled."""
    if evidence.config is None:
        return {}
    work = _work(evidence.config)
    runs: dict[int, list[Measurement]] = {}
    for step in (*evidence.history, EarlierStep(evidence.config, evidence.runs)):
        if _work(step.config) == work:
            runs.setdefault(step.config.batch_size, []).extend(step.runs)
    pooled = {
        batch: (log_seconds_per_sample(of_batch), largest(map(_memory_share, of_batch)))
        for batch, of_batch in sorted(runs.items())
    }
    return {batch: (seconds, share) for batch, (seconds, share) in pooled.items() if seconds and math.isfinite(share)}


def _work(config: RunConfig) -> tuple[object, ...]:
    return tuple(getattr(config, knob) for knob in SAME_WORK)


def _memory_share(run: Measurement) -> float:
    return largest(run.metric(name) for name in ("memory/share", "gpu/memory_share") if name in run.metrics)


def _ratio(paces: Mapping[int, tuple[Estimate, float]], point: BatchPoint, best: BatchPoint) -> Interval:
    return interval(difference(paces[best.batch_size][0], paces[point.batch_size][0])).exp()


CRITERIA = {
    "faster": Criterion(
        "samples a second are above the base step's by a stated gain, noise of the steps allowed for",
        faster,
        {"min_gain": Limit(0.05, "share of the base step's samples a second; what the knee's tolerance calls equal")},
        finding=True,
    ),
    "knee": Criterion(
        "the smallest batch within a tolerance of the best throughput, under the memory limit, is certain",
        find_knee,
        {
            "tolerance": Limit(0.05, "share of the best throughput by which a smaller batch may fall short"),
            "max_share": Limit(MEMORY_MARGIN, "share of the compute's memory at the peak", is_memory_margin=True),
        },
        finding=True,
    ),
}
