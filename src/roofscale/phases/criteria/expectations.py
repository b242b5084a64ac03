"""Expectations of a step compared with its measurements: reported with a likely reason, without effect on the verdict.

A ratio of times has the noise of its steps, so it is an interval (see ``stats.intervals.interval``): if it lies wholly
within the tolerance the expectation is borne out, if wholly outside it is not, else it is undecided.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from roofscale.measurement import Measurement
from roofscale.phases.criteria import resources
from roofscale.phases.criteria.evidence import Evidence, disturbed, insufficient, log_seconds_per_sample
from roofscale.stats.curves import Finding, Verdict
from roofscale.stats.intervals import CONFIDENCE, MIN_WINDOWS, Estimate, compare_to_band, difference, interval

REFERENCES = ("previous", "base", "absolute")

# Computed from step times, which other work on the machine lengthens.
_TIMED = ("speed/seconds_per_epoch", "speed/seconds_per_sample", "speed/samples_per_s")

COMPARED = {
    Verdict.PASSED: "borne out",
    Verdict.FAILED: "not borne out",
    Verdict.INSUFFICIENT_EVIDENCE: "undecided",
}
_EXACT = Estimate(0.0, 0.0, math.inf)  # reference of an absolute value
_WAITING = resources.CRITERIA["data_stall"].limits["max_share"].default  # share of the steps' time
_BUSY_CPU = 0.85  # share of the cores above which a larger batch finds no idle time to use


@dataclass(frozen=True)
class Expectation:
    """Expected value of a metric, absolute or as a ratio to another step's value."""

    metric: str
    of: str  # of REFERENCES: ratio to the previous or the base step, or absolute
    value: float
    tolerance: float  # share of the value, above and below

    @property
    def band(self) -> tuple[float, float]:
        """Smallest and largest value within the tolerance."""
        return self.value * (1 - self.tolerance), self.value * (1 + self.tolerance)


@dataclass(frozen=True)
class Comparison:
    """One expectation of a step, with the measured value."""

    step: str  # its name
    expectation: Expectation
    measured: float  # a ratio or absolute, like the expectation; NaN if it was not measured
    low: float  # ends of the interval; both equal to ``measured`` for a metric without step noise
    high: float
    verdict: Verdict
    evidence: str  # one line with numbers, for people
    reason: str = ""  # the likely one if not borne out; empty if the measurements show none

    @property
    def words(self) -> str:
        """Verdict in words: borne out, not borne out, or undecided."""
        return COMPARED[self.verdict]


def compare(step: str, expected: Expectation, evidence: Evidence) -> Comparison:
    """Compare the runs of a step with one expectation; the seeds of the step and of its reference are pooled."""
    reference = {"previous": evidence.previous, "base": evidence.base, "absolute": ()}[expected.of]
    finding = _find(expected, evidence.runs, reference)
    reason = _likely_reason(expected, evidence, reference) if finding.verdict is not Verdict.PASSED else ""
    verdict = finding.verdict
    if expected.metric in _TIMED and disturbed(evidence, reference) and verdict is Verdict.FAILED:
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
    """Return the ends of the interval over its centre; None if too few steps were timed.

    They are (1, 1) for a metric without step noise.
    """
    if name not in _TIMED:
        return 1.0, 1.0
    ours, theirs = log_seconds_per_sample(runs), log_seconds_per_sample(reference) if reference else _EXACT
    if ours is None or theirs is None:
        return None
    log_ratio = interval(difference(ours, theirs))
    return math.exp(log_ratio.low - log_ratio.centre), math.exp(log_ratio.high - log_ratio.centre)


def _likely_reason(expected: Expectation, evidence: Evidence, reference: Sequence[Measurement]) -> str:
    """Return the first reason in the measurements that may explain a miss; empty if there is none."""
    run, config = evidence.measurement, evidence.config
    peak, each = (run.metric(f"memory/{name}") for name in ("peak_mib", "mib_per_sample"))
    if expected.metric in _TIMED:
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
        return f"{fixed:,.0f} of {peak:,.0f} MiB were held before the first step, for any batch"
    return ""
