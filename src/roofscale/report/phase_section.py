"""One phase in Markdown: expected, measured, what went wrong, what was done about it, and what follows.

The evidence, which is longest, comes last, because MLflow cuts long descriptions off.
"""

import json
import math
from collections.abc import Iterator, Sequence

from roofscale.measurement import Outcome
from roofscale.phases.criteria import Comparison
from roofscale.phases.judge import Verdict
from roofscale.phases.phase_file import Phase
from roofscale.phases.results import PhaseResult, StepResult
from roofscale.report.format import (
    FACTS,
    cause_words,
    code,
    expectation_words,
    format_number,
    markdown,
    metric_heading,
    one_line,
)
from roofscale.report.phase_status import config_words, format_changes, step_words, watched
from roofscale.report.recommendations import recommend

DESCRIPTION_LENGTH = 8000  # most characters of a tag, and so of a run's description, that MLflow takes


def phase_section(climb: PhaseResult, following: Phase | None) -> str:
    """What became of a phase, as a page that stands alone.

    Args:
        climb: the attempt.
        following: the phase after it; None after the last.
    """
    phase = climb.phase
    parts = {
        "": _head(climb),
        "Runs": _runs(climb),
        "Expected and measured": _expected(climb),
        "Issues met": _issues(climb),
        "Solutions applied": _solutions(climb),
        "Recommendation": _recommendation(climb, following),
        "Measured": _measured(climb.results, watched(climb)),
        "Evidence": _evidence(climb),
    }
    title = f"## Phase {phase.number}, {phase.name}: {outcome_words(climb)}"
    body = [f"### {heading}\n\n{text}" if heading else text for heading, text in parts.items() if text]
    return "\n\n".join([title, *body]) + "\n"


def description(section: str, whole: str) -> str:
    """A section as the description of an MLflow run: cut off at a line, with a word on where the ``whole`` is."""
    if len(section) <= DESCRIPTION_LENGTH:
        return section
    pointer = f"\n\n... The whole of it is this run's artifact `{whole}`.\n"
    return section[: section.rindex("\n", 0, DESCRIPTION_LENGTH - len(pointer))] + pointer


def outcome_words(climb: PhaseResult) -> str:
    """What a climb came to, in words."""
    return "interrupted" if climb.interrupted else climb.verdict.label


def _head(climb: PhaseResult) -> str:
    where = [f"Attempt of {climb.created}" if climb.created else "", f"MLflow experiment {code(climb.experiment)}"]
    where += [f"run {code(climb.run_id)}", f"commit {code(climb.commit)}" if climb.commit else "commit not known"]
    facts = {name: _fact(climb, name) for name in FACTS}
    lines = [f"- {name.replace('_', ' ')}: {one_line(value)}" for name, value in facts.items() if value]
    overlay = climb.phase.as_json().get("overlay")
    changed = [f"the phase file was climbed with an overlay: {json.dumps(overlay)}"] if overlay else []
    notes = [f"> {one_line(note)}" for note in (*changed, *climb.notes)]
    return "\n\n".join(
        part
        for part in (one_line(climb.phase.question), ", ".join(filter(None, where)) + ".", "\n".join(lines), *notes)
        if part
    )


def _fact(climb: PhaseResult, name: str) -> str:
    found = (run.measurement.facts.get(name, "") for run in climb.all_runs())
    return "; ".join(dict.fromkeys(value for value in found if value))


def _runs(climb: PhaseResult) -> str:
    """Every run in the order in which it was made; the step's name stands bold at the one that decides."""
    rows = []
    for result in climb.results:
        for run in result.runs:
            seeds = f", {len(run.measurements)} seeds" if run.repeats else ""
            rows.append(
                (
                    f"**{run.step.name}**" if run is result else run.step.name,
                    code(format_changes(run)) + (f" (for {cause_words(run.fallback.cause)})" if run.fallback else ""),
                    run.measurement.outcome.value,
                    run.verdict.verdict.label + seeds,
                    code(run.run_id),
                )
            )
    rows += [(name, "", "not run", "", "") for name in (*climb.skipped, *(step.name for step in climb.left_out))]
    return markdown(("step", "changes", "outcome", "verdict", "MLflow run"), rows)


def _expected(climb: PhaseResult) -> str:
    rows = [
        (
            c.step,
            metric_heading(c.expectation.metric),
            expectation_words(c.expectation),
            _found(c),
            _borne_out(c),
            c.reason,
        )
        for c in climb.comparisons
    ]
    return markdown(("step", "metric", "expected", "measured", "borne out", "likely reason"), rows) if rows else ""


def _found(compared: Comparison) -> str:
    """The measured value with its interval, as the ratio that the expectation is about."""
    if math.isnan(compared.measured):
        return "-"
    of = "" if compared.expectation.of == "absolute" else f" x {compared.expectation.of}"
    interval = "" if compared.low == compared.high else f" ({compared.low:.2f} to {compared.high:.2f})"
    return f"{compared.measured:.3g}{of}{interval}"


def _borne_out(compared: Comparison) -> str:
    if compared.verdict is Verdict.FAILED:
        return "no, below" if compared.high < compared.expectation.value else "no, above"
    if math.isnan(compared.measured):
        return "not measured"
    return "yes" if compared.verdict is Verdict.PASSED else compared.words


def _measured(results: Sequence[StepResult], metrics: Sequence[str]) -> str:
    """A row a metric, a column a step; over several seeds the smallest to the largest."""
    rows = [[metric_heading(name), *(_over_seeds(r, name) for r in results)] for name in metrics]
    shown = [row for row in rows if any(cell != "-" for cell in row[1:])]
    return markdown(["metric", *map(step_words, results)], shown) if shown else ""


def _over_seeds(result: StepResult, name: str) -> str:
    values = [run.metric(name) for run in result.measurements]
    known = sorted(value for value in values if math.isfinite(value))
    return " to ".join(dict.fromkeys(format_number(value) for value in (known[0], known[-1]))) if known else "-"


def _issues(climb: PhaseResult) -> str:
    rows = [row for run in climb.all_runs() for row in _issues_of(run)]
    rows += [(name, "", "not run", why) for name, why in climb.skipped.items()]
    if left := ", ".join(step.name for step in climb.left_out):
        why = "the climb was interrupted" if climb.interrupted else "the phase stopped before"
        rows.append((left, "", "not run", why))
    return markdown(("step", "at", "cause", "what was seen"), rows) if rows else "None."


def _issues_of(run: StepResult) -> Iterator[tuple[str, str, str, str]]:
    where, cause = (run.step.name, code(format_changes(run))), cause_words(run.cause) if run.cause else ""
    if run.measurement.outcome is not Outcome.OK:  # what the criteria lack then follows from it
        yield *where, cause or run.measurement.outcome.value, run.measurement.detail
        return
    for criterion in run.verdict.criteria:
        if criterion.verdict is not Verdict.PASSED:
            words = criterion.verdict.label
            yield *where, cause or words, f"{criterion.name} {words}: {criterion.evidence}"
    if skipped := run.measurement.metrics.get("train/skipped_samples"):
        yield *where, "broken samples", f"{skipped:.0f} were left out (on_bad_sample=skip)"


def _solutions(climb: PhaseResult) -> str:
    lines: list[str] = []
    good = "what the phase stands on"
    for result in climb.results:
        lines += _solutions_of(result, good)
        if result.verdict.verdict is Verdict.PASSED:
            good = f"step {result.step.name}"
    return "\n".join(f"- {line}" for line in lines) or "None was needed."


def _solutions_of(result: StepResult, good: str) -> Iterator[str]:
    """What was done in a step when something went wrong; ``good`` names what a rollback returns to."""
    name = result.step.name
    for run in result.runs:
        came_to = run.verdict.verdict.label
        if run.fallback:
            yield f"{name}: for {cause_words(run.fallback.cause)}, {code(run.fallback.changed)} was tried: {came_to}."
        if run.repeats:
            seeds = len(run.measurements)
            yield (
                f"{name}: for want of evidence, {code(format_changes(run)) or 'it'} was "
                f"run under {seeds} seeds: {came_to}."
            )
    if result.verdict.sound is Verdict.FAILED:
        yield f"{name}: rolled back to {good}."
    elif result.fallback:
        yield f"{name}: kept {code(result.fallback.changed)}, and the phase went on from it."


def _recommendation(climb: PhaseResult, following: Phase | None) -> str:
    good = climb.last_good
    kept = (
        [f"Last good: {code(config_words(good.config))} ({step_words(good)}, run {code(good.run_id)})."] if good else []
    )
    lines = [f"{advice.say} Because: {one_line(advice.because)}." for advice in recommend(climb, following)]
    return "\n".join(f"- {line}" for line in [*kept, *lines])


def _evidence(climb: PhaseResult) -> str:
    rows = [
        (
            step_words(run) if place == 0 else "",
            criterion.name,
            criterion.verdict.label,
            criterion.evidence,
        )
        for run in climb.all_runs()
        for place, criterion in enumerate(run.verdict.criteria)
    ]
    return markdown(("step", "criterion", "verdict", "evidence"), rows) if rows else ""
