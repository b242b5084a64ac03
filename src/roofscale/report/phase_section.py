"""Markdown report of one attempt at a phase: runs, expectations, issues, remedies, recommendations, evidence.

The evidence, the longest part, comes last, because MLflow truncates long descriptions.
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
    cause_words,
    code,
    expectation_words,
    markdown,
    metric_heading,
    one_line,
    over_seeds,
)
from roofscale.report.phase_status import config_words, facts, format_changes, outcome_words, step_words, watched
from roofscale.report.recommendations import recommend

DESCRIPTION_LENGTH = 8000  # characters; MLflow keeps a run's description as a tag, and accepts no longer tag


def phase_section(climb: PhaseResult, following: Phase | None) -> str:
    """Return the report of a climb as a self-contained Markdown section.

    Args:
        climb: the attempt to report.
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


def truncate_description(section: str, artifact: str) -> str:
    """Truncate a section to ``DESCRIPTION_LENGTH`` at a line end, and name the artifact that has the rest."""
    if len(section) <= DESCRIPTION_LENGTH:
        return section
    pointer = f"\n\n... The rest is in this run's artifact `{artifact}`.\n"
    return section[: section.rindex("\n", 0, DESCRIPTION_LENGTH - len(pointer))] + pointer


def _head(climb: PhaseResult) -> str:
    origin = [f"Attempt of {climb.created}" if climb.created else "", f"MLflow experiment {code(climb.experiment)}"]
    origin += [f"run {code(climb.run_id)}", f"commit {code(climb.commit)}" if climb.commit else "commit not known"]
    lines = [f"- {name.replace('_', ' ')}: {one_line(value)}" for name, value in facts(climb).items()]
    overlay = climb.phase.as_json().get("overlay")
    overlaid = [f"the phase file was climbed with an overlay: {json.dumps(overlay)}"] if overlay else []
    notes = map(_note, (*overlaid, *climb.notes))
    return "\n\n".join(
        part
        for part in (one_line(climb.phase.question), ", ".join(filter(None, origin)) + ".", "\n".join(lines), *notes)
        if part
    )


def _note(note: str) -> str:
    """Return a note as a quotation; what follows its first line is the diff of a plan that was changed."""
    sentence, _, diff = note.partition("\n")
    fenced = ["", "```diff", *diff.replace("<", "&lt;").splitlines(), "```"] if diff else []
    return "\n".join(f"> {line}".rstrip() for line in (one_line(sentence), *fenced))


def _runs(climb: PhaseResult) -> str:
    """Return the table of all runs in the order they were made; the run that decides its step is in bold."""
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
            _measured_ratio(c),
            _borne_out(c),
            c.reason,
        )
        for c in climb.comparisons
    ]
    return markdown(("step", "metric", "expected", "measured", "borne out", "likely reason"), rows) if rows else ""


def _measured_ratio(compared: Comparison) -> str:
    """Return the measured value and its interval, in the unit of the expectation: absolute, or a ratio to a step."""
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
    """Return a table of one row per metric and one column per step; of several seeds, the range of values."""
    rows = [[metric_heading(name), *(over_seeds(r, name) for r in results)] for name in metrics]
    measured = [row for row in rows if any(cell != "-" for cell in row[1:])]
    return markdown(["metric", *map(step_words, results)], measured) if measured else ""


def _issues(climb: PhaseResult) -> str:
    rows = [row for run in climb.all_runs() for row in _issues_of(run)]
    rows += [(name, "", "not run", why) for name, why in climb.skipped.items()]
    if not_reached := ", ".join(step.name for step in climb.left_out):
        why = "the climb was interrupted" if climb.interrupted else "the phase stopped before"
        rows.append((not_reached, "", "not run", why))
    return markdown(("step", "changes", "cause", "observation"), rows) if rows else "None."


def _issues_of(run: StepResult) -> Iterator[tuple[str, str, str, str]]:
    run_cells, cause = (run.step.name, code(format_changes(run))), cause_words(run.cause) if run.cause else ""
    if run.measurement.outcome is not Outcome.OK:  # then the criteria are unmet only because of it
        yield *run_cells, cause or run.measurement.outcome.value, run.measurement.detail
        return
    for criterion in run.verdict.criteria:
        if criterion.verdict is not Verdict.PASSED:
            words = criterion.verdict.label
            yield *run_cells, cause or words, f"{criterion.name} {words}: {criterion.evidence}"
    if skipped := run.measurement.metrics.get("train/skipped_samples"):
        yield *run_cells, "broken samples", f"{skipped:.0f} were left out (on_bad_sample=skip)"


def _solutions(climb: PhaseResult) -> str:
    lines: list[str] = []
    base = "the config that the phase started from"
    for result in climb.results:
        lines += _solutions_of(result, base)
        if result.verdict.verdict is Verdict.PASSED:
            base = f"step {result.step.name}"
    return "\n".join(f"- {line}" for line in lines) or "None was needed."


def _solutions_of(result: StepResult, base: str) -> Iterator[str]:
    """Yield what the phase runner did after a failure in a step; ``base`` names what a rollback returns to."""
    name = result.step.name
    for run in result.runs:
        verdict = run.verdict.verdict.label
        if run.fallback:
            yield f"{name}: for {cause_words(run.fallback.cause)}, {code(run.fallback.changed)} was tried: {verdict}."
        if run.repeats:
            seeds = len(run.measurements)
            yield (
                f"{name}: as the evidence was insufficient, {code(format_changes(run)) or 'it'} was "
                f"run under {seeds} seeds: {verdict}."
            )
    if result.verdict.without_findings is Verdict.FAILED:
        yield f"{name}: rolled back to {base}."
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
        (step_words(run) if index == 0 else "", criterion.name, criterion.verdict.label, criterion.evidence)
        for run in climb.all_runs()
        for index, criterion in enumerate(run.verdict.criteria)
    ]
    return markdown(("step", "criterion", "verdict", "evidence"), rows) if rows else ""
