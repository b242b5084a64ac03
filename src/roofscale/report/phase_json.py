"""Compact JSON record of a climb: its plan, the outcome of each run, and the ids of the MLflow runs."""

from typing import Any

from roofscale.phases.results import PhaseResult, StepResult
from roofscale.report.phase_status import changed_knobs


def climb_record(climb: PhaseResult) -> dict[str, Any]:
    """Return the JSON record of a climb; NaN stands for what was not measured."""
    good = climb.last_good
    return {
        "phase": climb.phase.number,
        "name": climb.phase.name,
        "plan": climb.phase.as_json(),
        "plan_fingerprint": climb.phase.fingerprint,
        "verdict": climb.verdict,
        "interrupted": climb.interrupted,
        "created": climb.created,
        "commit": climb.commit,
        "experiment": climb.experiment,
        "run_id": climb.run_id,
        "notes": climb.notes,
        "skipped": dict(climb.skipped),
        "last_good": good and {"step": good.step.name, "config": changed_knobs(good.config), "run_id": good.run_id},
        "expectations": [
            {
                "step": comparison.step,
                "metric": comparison.expectation.metric,
                "of": comparison.expectation.of,
                "expected": comparison.expectation.value,
                "tolerance": comparison.expectation.tolerance,
                "measured": comparison.measured,
                "low": comparison.low,
                "high": comparison.high,
                "verdict": comparison.verdict,
                "reason": comparison.reason,
            }
            for comparison in climb.comparisons
        ],
        "runs": [_run(run, run is result) for result in climb.results for run in result.runs],
    }


def _run(run: StepResult, decides: bool) -> dict[str, Any]:
    return {
        "step": run.step.name,
        "decides": decides,
        "run_id": run.run_id,
        "config": changed_knobs(run.config),
        "retry_of": run.fallback.retry_of if run.fallback else None,
        "changed": run.fallback.changed if run.fallback else None,
        "outcome": run.measurement.outcome,
        "detail": run.measurement.detail,
        "cause": run.cause,
        **run.verdict.as_dict(),
        "metrics": dict(run.measurement.metrics),
        "facts": dict(run.measurement.facts),
        "repeats": [{"outcome": repeat.outcome, "metrics": dict(repeat.metrics)} for repeat in run.repeats],
    }
