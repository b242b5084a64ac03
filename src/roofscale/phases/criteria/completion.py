"""Criterion of completion: the run ended by itself, without an error."""

import math
from collections.abc import Mapping

from roofscale.measurement import Outcome
from roofscale.phases.criteria.evidence import Criterion, Evidence
from roofscale.stats.curves import Finding, Verdict


def completes(evidence: Evidence, limits: Mapping[str, float]) -> Finding:
    """Pass if every run ended as ``ok``."""
    ended_early = [run for run in evidence.runs if run.outcome is not Outcome.OK]
    # an interruption proves nothing about the config, so that any other outcome takes precedence
    for run in sorted(ended_early, key=lambda run: run.outcome is Outcome.INTERRUPTED):
        stopped = run.outcome is Outcome.INTERRUPTED
        verdict = Verdict.INSUFFICIENT_EVIDENCE if stopped else Verdict.FAILED
        return Finding(verdict, f"{run.outcome}: {run.detail}")
    seconds = evidence.measurement.metric("speed/run_seconds")
    return Finding(Verdict.PASSED, "ran to its end" + (f" in {seconds:.0f} s" if math.isfinite(seconds) else ""))


CRITERIA = {
    "completes": Criterion("the run ends by itself: no OOM, no crash, no broken data", completes),
}
