"""How fast a step trained, against the phase's base step and against the other batch sizes.

Times of sharing a machine are noisy, so a gain is an interval: over windows of steps, each epoch's first step left out,
with the spread that runs of one config have among themselves (see ``interval``).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
    pace_drift,
    unless_disturbed,
)
from roofscale.phases.expectation import log_seconds_per_sample
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
    """Samples a second above the base step's by at least ``min_gain``.

    The interval of the ratio lies wholly above 1 + min_gain: passed; wholly below: failed; else the evidence is
    insufficient, as it is with fewer than MIN_WINDOWS timed steps on either side. A gain over a base that ran while
    the machine was busier, or slower, is none.
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
        return as_insufficient(finding, _flattered(evidence, evidence.base))
    return unless_disturbed(finding, evidence, evidence.base)


def _flattered(evidence: Evidence, base: Sequence[Measurement]) -> str:
    """Why the base looks slower than it is, empty where nothing says so."""
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
    """What one batch size came to."""

    batch_size: int
    samples_per_s: float
    memory_share: float  # peak over the compute's memory, the larger of host and GPU


def knee(points: Sequence[BatchPoint], tolerance: float = 0.05, max_share: float = MEMORY_MARGIN) -> BatchPoint | None:
    """The smallest batch within ``tolerance`` of the best throughput, among those under ``max_share`` of the memory.

    None where no batch is under it, or none was measured.
    """
    able = [p for p in points if p.memory_share < max_share and math.isfinite(p.samples_per_s)]
    best = max((p.samples_per_s for p in able), default=math.nan)
    return min((p for p in able if p.samples_per_s >= (1 - tolerance) * best), key=_batch_size, default=None)


def _batch_size(point: BatchPoint) -> int:
    return point.batch_size


def find_knee(evidence: Evidence, limits: Mapping[str, float]) -> Finding:
    """The knee among this step and the earlier ones that did the same work with another batch.

    Told where noise leaves no doubt that matters: the knee is certainly within twice the tolerance of the best, and no
    smaller batch may be within the tolerance. Failed where no batch stays under the memory limit.
    """
    paces = _paces_by_batch(evidence)
    points = [BatchPoint(size, math.exp(-seconds.value), share) for size, (seconds, share) in paces.items()]
    if len(points) < 2:
        return insufficient(
            f"{len(points)} batch sizes with {MIN_WINDOWS} timed steps and known memory; a knee needs 2"
        )
    tolerance, most = limits["tolerance"], limits["max_share"]
    found = knee(points, tolerance, most)
    if found is None:
        return Finding(Verdict.FAILED, f"no batch stays under {most:.0%} of the memory")
    best = max((p for p in points if p.memory_share < most), key=lambda p: p.samples_per_s)
    against = {p.batch_size: _relative(paces, p, best) for p in points if p is not best and p.memory_share < most}
    smaller = [size for size, ratio in against.items() if size < found.batch_size and ratio.high >= 1 - tolerance]
    at_least = against[found.batch_size].low if found is not best else 1.0
    unsure = smaller or at_least < 1 - 2 * tolerance
    listed = ", ".join(f"{p.batch_size}: {p.samples_per_s:.3g}" for p in sorted(points, key=_batch_size))
    return Finding(
        Verdict.INSUFFICIENT_EVIDENCE if unsure else Verdict.PASSED,
        f"batch {found.batch_size} is the smallest within {tolerance:.0%} of the best (samples/s by batch {listed})"
        + (", but noise may hide a smaller or a better one" if unsure else "")
        + f"; its memory {found.memory_share:.0%} of the compute's (limit {most:.0%})",
        {
            "batch_size": found.batch_size,
            "samples_per_s": found.samples_per_s,
            "best_batch_size": best.batch_size,
            "best_samples_per_s": best.samples_per_s,
        },
    )


def _paces_by_batch(evidence: Evidence) -> dict[int, tuple[Estimate, float]]:
    """Pace and memory share by batch size, all runs of one pooled; smallest first."""
    if evidence.config is None:
        return {}
    here = _work(evidence.config)
    runs: dict[int, list[Measurement]] = {}
    for rung in (*evidence.history, EarlierStep(evidence.config, evidence.runs)):
        if _work(rung.config) == here:
            runs.setdefault(rung.config.batch_size, []).extend(rung.runs)
    known = {
        batch: (log_seconds_per_sample(of_batch), largest(map(_memory_share, of_batch)))
        for batch, of_batch in sorted(runs.items())
    }
    return {batch: (seconds, share) for batch, (seconds, share) in known.items() if seconds and math.isfinite(share)}


def _work(config: RunConfig) -> tuple[object, ...]:
    return tuple(getattr(config, knob) for knob in SAME_WORK)


def _memory_share(run: Measurement) -> float:
    return largest(run.metric(name) for name in ("memory/share", "gpu/memory_share") if name in run.metrics)


def _relative(paces: Mapping[int, tuple[Estimate, float]], point: BatchPoint, best: BatchPoint) -> Interval:
    return interval(difference(paces[best.batch_size][0], paces[point.batch_size][0])).exp()


CRITERIA = {
    "faster": Criterion(
        "samples a second are above the base step's by a stated gain, noise of the steps allowed for",
        faster,
        {"min_gain": Limit(0.05, "share of the base step's samples a second; what the knee's tolerance calls equal")},
        finding=True,
    ),
    "knee": Criterion(
        "the smallest batch within a tolerance of the best throughput, under the memory limit, can be told",
        find_knee,
        {
            "tolerance": Limit(0.05, "share of the best throughput that a smaller batch may lack"),
            "max_share": Limit(MEMORY_MARGIN, "share of the compute's memory at the peak", is_memory_margin=True),
        },
        finding=True,
    ),
}
