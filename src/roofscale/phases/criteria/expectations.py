"""How far a step bears out what was expected of it: reported with a likely reason, never a ground for its verdict.

A ratio of times carries the noise of its steps, so it is told by an interval (see ``interval``): wholly within the
tolerance is borne out, wholly outside is not, and anything between cannot be told.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from roofscale.measurement import Measurement
from roofscale.phases.criteria.evidence import Evidence, disturbed, insufficient
from roofscale.phases.expectation import Expectation, is_timed, log_seconds_per_sample
from roofscale.stats.curves import Finding, Verdict
from roofscale.stats.intervals import CONFIDENCE, MIN_WINDOWS, Estimate, compare_to_band, difference, interval

COMPARED = {
    Verdict.PASSED: "borne out",
    Verdict.FAILED: "not borne out",
    Verdict.INSUFFICIENT_EVIDENCE: "not to be told",
}
_EXACT = Estimate(0.0, 0.0, math.inf)  # what an absolute value is compared with
_WAITING = 0.20  # share of the steps' time; what the criterion data_stall allows
_BUSY_CPU = 0.85  # share of the cores, over which a larger batch has no idle time left to fill


@dataclass(frozen=True)
class Comparison:
    """One expectation of a step, with what was measured of it."""

    step: str  # its name
    expectation: Expectation
    measured: float  # a ratio, or absolute, as the expectation is; NaN where it was not measured
    low: float  # ends of the interval
    high: float
    verdict: Verdict
    evidence: str  # one line with numbers, for a person
    reason: str = ""  # likely, of what is not borne out; empty where the measurements name none

    @property
    def words(self) -> str:
        """Borne out, not borne out, or not to be told."""
        return COMPARED[self.verdict]


def compare(step: str, expected: Expectation, evidence: Evidence) -> Comparison:
    """Hold the runs of a step against one expectation; several seeds are pooled, of the step compared with, too."""
    reference = {"previous": evidence.previous, "base": evidence.base, "absolute": ()}[expected.of]
    finding = _find(expected, evidence.runs, reference)
    reason = _likely_reason(expected, evidence, reference) if finding.verdict is not Verdict.PASSED else ""
    verdict = finding.verdict
    if is_timed(expected.metric) and disturbed(evidence, reference) and verdict is Verdict.FAILED:
        verdict = Verdict.INSUFFICIENT_EVIDENCE
    measured, low, high = (finding.numbers.get(key, math.nan) for key in ("measured", "low", "high"))
    return Comparison(step, expected, measured, low, high, verdict, finding.evidence, reason)


def _find(expected: Expectation, runs: Sequence[Measurement], reference: Sequence[Measurement]) -> Finding:
    name, of = expected.metric, expected.of
    measured = _mean(runs, name)
    if of != "absolute":
        measured /= _mean(reference, name) or math.nan
    if not math.isfinite(measured):
        return insufficient("no measurement" if reference or of == "absolute" else f"no {of} step to compare with")
    spread = _relative_spread(name, runs, reference)
    if spread is None:
        return insufficient(f"fewer than {MIN_WINDOWS} timed steps")
    low, high = (measured * factor for factor in spread)
    shown = f"{measured:.3g}" if of == "absolute" else f"{measured:.2f} x {of}"
    between = "" if low == high else f", {CONFIDENCE:.0%} interval {low:.2f} to {high:.2f}"
    return Finding(
        compare_to_band(low, high, *expected.band),
        f"{shown}{between} (expected {expected.value:g} +-{expected.tolerance:.0%})",
        {"measured": measured, "low": low, "high": high},
    )


def _mean(runs: Sequence[Measurement], name: str) -> float:
    values = [run.metric(name) for run in runs]
    return math.fsum(values) / len(values) if values and all(map(math.isfinite, values)) else math.nan


def _relative_spread(
    name: str, runs: Sequence[Measurement], reference: Sequence[Measurement]
) -> tuple[float, float] | None:
    """The interval over its centre: (1, 1) for a metric without step noise, None where too few steps were timed."""
    if not is_timed(name):
        return 1.0, 1.0
    ours, theirs = log_seconds_per_sample(runs), log_seconds_per_sample(reference) if reference else _EXACT
    if ours is None or theirs is None:
        return None
    found = interval(difference(ours, theirs))
    return math.exp(found.low - found.centre), math.exp(found.high - found.centre)


def _likely_reason(expected: Expectation, evidence: Evidence, reference: Sequence[Measurement]) -> str:
    """What in the measurements may explain a miss; the first of these that holds."""
    run, config = evidence.measurement, evidence.config
    peak, each = (run.metric(f"memory/{name}") for name in ("peak_mib", "mib_per_sample"))
    if is_timed(expected.metric):
        wait, busy = run.metric("speed/loader_wait"), run.metric("cpu/utilisation")
        before = evidence.config_of(reference[0]) if reference else None
        if why := disturbed(evidence, reference):
            return why
        if wait > _WAITING:
            return f"{wait:.0%} of the steps' time went to waiting for the loader"
        if config and before and config.batch_size > before.batch_size and busy > _BUSY_CPU:
            return f"the CPU was {busy:.0%} busy: a larger batch adds work, and finds no idle time to fill"
    elif expected.metric.startswith("memory/") and config and math.isfinite(peak - each):
        fixed = peak - each * config.batch_size
        return f"{fixed:,.0f} of {peak:,.0f} MiB were held before the first step, whatever the batch"
    return ""
