"""Results of phases, read back from the tracking server as the same plain data that the phase runner made."""

import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from roofscale.errors import ConfigError
from roofscale.measurement import FORECAST, Measurement, Outcome
from roofscale.phases.fallback import OUT_OF_MEMORY, KnownOutOfMemory
from roofscale.phases.judge import StepVerdict, Verdict
from roofscale.phases.phase_file import Phase, Step, load_phase
from roofscale.phases.results import Cause, Fallback, PhaseResult, StepResult
from roofscale.tracking import RunRecord, Tracker
from roofscale.tracking.history import experiment_name, judged_runs, read_config

_NOT_MEASURED = ("system/", "knob/", FORECAST)  # metrics of a run that are MLflow's own, of its config, or forecasts


def latest_result(phase: int) -> PhaseResult | None:
    """Return the newest attempt at a phase that judged at least one step; None if the server has none."""
    tracker = Tracker.find(experiment_name(phase))
    if tracker is None:
        return None
    results = (read_climb(tracker, attempt) for attempt in tracker.attempts())
    return next((result for result in results if result and result.results), None)


def read_climb(tracker: Tracker, attempt: RunRecord) -> PhaseResult | None:
    """Rebuild an attempt from its MLflow run and those of its steps; None if its phase file cannot be read."""
    phase = _read_phase(tracker, attempt.run_id)
    if phase is None:
        return None
    judged = [run for run in tracker.children(attempt.run_id) if "verdict" in run.tags]
    results = []
    for number, step in enumerate(phase.steps, 1):
        runs = [run for run in judged if run.tags.get("step_number") == str(number)]
        if result := _read_step(tracker, step, runs):
            results.append(result)
    notes = json.loads(attempt.tags.get("notes", "[]"))
    return PhaseResult(
        phase=phase,
        attempt=Path(attempt.tags.get("attempt", "")),
        run_id=attempt.run_id,
        results=tuple(results),
        interrupted="verdict" not in attempt.tags,
        experiment=tracker.experiment,
        created=attempt.tags.get("created", ""),
        commit=attempt.tags.get("git_commit", ""),
        notes=tuple(notes),
        skipped=json.loads(attempt.tags.get("skipped", "{}")),
    )


def out_of_memory(phases: Iterable[int]) -> list[KnownOutOfMemory]:
    """Return the configs that ran out of memory in any attempt at these phases; without those that were not run."""
    outcomes = set(map(str, OUT_OF_MEMORY))
    return [
        KnownOutOfMemory(read_config(run), Outcome(run.tags["outcome"]), run.run_id, run.parent_id or "")
        for phase in phases
        for run in judged_runs(phase)
        if run.tags.get("outcome") in outcomes and "ruled_out_by" not in run.tags
    ]


def _read_phase(tracker: Tracker, run_id: str) -> Phase | None:
    with tempfile.TemporaryDirectory() as folder:
        file = tracker.download(run_id, "phase.yaml", Path(folder))
        overlay = tracker.download(run_id, "overlay.yaml", Path(folder))
        try:
            return load_phase(file, overlay) if file else None
        except ConfigError:  # written by a version with other keys or criteria
            return None


def _read_step(tracker: Tracker, step: Step, runs: Sequence[RunRecord]) -> StepResult | None:
    """Return the deciding run of a step with the others as its tries; None if the step is not decided yet."""
    firsts = [run for run in runs if "repeat" not in run.tags]
    results = {}
    for run in firsts:
        others = [other for other in runs if "repeat" in other.tags and _fallbacks(other) == _fallbacks(run)]
        results[run.run_id] = _read_run(tracker, step, run, others)
    deciding = next((run for run in firsts if run.tags.get("decides") == "true"), None)
    if deciding is None:
        return None
    tries = tuple(result for run_id, result in results.items() if run_id != deciding.run_id)
    decided = results[deciding.run_id]
    return StepResult(**{**vars(decided), "tries": tries})


def _fallbacks(run: RunRecord) -> int:
    return int(run.tags.get("fallback", "0"))


def _read_run(tracker: Tracker, step: Step, run: RunRecord, repeats: Sequence[RunRecord]) -> StepResult:
    newest = repeats[-1] if repeats else run  # its verdict was judged over all seeds
    fallback = None
    if "retry_of" in run.tags:
        fallback = Fallback(run.tags["retry_of"], Cause(run.tags["cause"]), run.tags["changed"])
    return StepResult(
        step=step,
        config=read_config(run),
        measurement=read_measurement(tracker, run),
        verdict=_read_verdict(tracker, newest),
        run_id=run.run_id,
        folder=Path(run.tags.get("folder", "")),
        repeats=tuple(read_measurement(tracker, repeat) for repeat in repeats),
        fallback=fallback,
        cause=Cause(run.tags["failure"]) if "failure" in run.tags else None,
    )


def read_measurement(tracker: Tracker, run: RunRecord) -> Measurement:
    """Return the measurement in a run's artifacts; if it is missing, one made from the run's metrics and tags."""
    with tempfile.TemporaryDirectory() as folder:
        file = tracker.download(run.run_id, "measurement.json", Path(folder))
        if file:
            return Measurement.load(file)
    outcome = Outcome(run.tags.get("outcome", Outcome.CRASHED))
    ours = {name: value for name, value in run.metrics.items() if not name.startswith(_NOT_MEASURED)}
    return Measurement(outcome, run.tags.get("outcome_detail", ""), run.tags["fingerprint"], metrics=ours)


def _read_verdict(tracker: Tracker, run: RunRecord) -> StepVerdict:
    text = tracker.read_text(run.run_id, "verdict.json")
    return StepVerdict.from_dict(json.loads(text)) if text else StepVerdict(Verdict(run.tags["verdict"]), ())
