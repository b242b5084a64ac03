"""The strategy document: one section a phase, rewritten from what was measured; the rest of it is a person's."""

from pathlib import Path

from roofscale.config import RunConfig
from roofscale.phases.judge import Verdict
from roofscale.phases.ladder import ClimbResult, StepResult
from roofscale.report.table import markdown, measured_markdown, verdict_markdown

_TITLE = """# Scaling strategy

What each phase expected, what was measured, and what follows. The sections between markers are rewritten by
`roofscale phase N`; what stands outside them is kept.
"""


def phase_section(climbed: ClimbResult, experiment: str, commit: str) -> str:
    """One phase's results in Markdown: the verdicts with their evidence, the measurements, issues, and what is next.

    Args:
        climbed: the attempt.
        experiment: its MLflow experiment.
        commit: what code ran; empty where that is not known.
    """
    phase = climbed.phase
    outcome = "interrupted" if climbed.interrupted else climbed.verdict.words
    parts = [
        f"## Phase {phase.number}: {phase.name}: {outcome}",
        phase.question,
        f"MLflow experiment `{experiment}`, run `{climbed.run_id}`"
        + (f", commit `{commit}`." if commit else ".")
        + _provenance(climbed.results),
        "### Verdicts",
        verdict_markdown(climbed.results),
        "### Measured",
        measured_markdown(climbed.results, _watched(climbed)),
        "### Issues",
        _issues(climbed.results),
        "### Next",
        _next(climbed),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def update_strategy(file: Path, number: int, section: str) -> None:
    """Put a phase's section in its place, and leave everything outside its markers alone."""
    begin, end = f"<!-- phase {number}: begin -->", f"<!-- phase {number}: end -->"
    text = file.read_text(encoding="utf-8") if file.exists() else _TITLE
    block = f"{begin}\n{section}{end}\n"
    if begin in text and end in text:
        before, _, rest = text.partition(begin)
        text = before + block + rest.partition(end)[2].removeprefix("\n")
    else:
        text = f"{text.rstrip()}\n\n{block}"
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


def _provenance(results: tuple[StepResult, ...]) -> str:
    if not results:
        return ""
    facts = results[-1].measurement.facts
    known = [(word, facts.get(word)) for word in ("data", "compute", "device", "precision", "memory_source")]
    return "\n\n" + "\n".join(f"- {word.replace('_', ' ')}: {value}" for word, value in known if value)


def _watched(climbed: ClimbResult) -> list[str]:
    """The metrics to show; ``val/*/iou`` stands for that of each data set trained on."""
    names = dict.fromkeys(name for result in climbed.results for name in result.config.datasets)
    return [metric.replace("*", name) for metric in climbed.phase.watch for name in (names if "*" in metric else ("",))]


def _issues(results: tuple[StepResult, ...]) -> str:
    rows = [
        (result.step.name, criterion.name, criterion.verdict.words, criterion.evidence)
        for result in results
        for criterion in result.verdict.criteria
        if criterion.verdict is not Verdict.PASSED
    ]
    rows += [
        (result.step.name, "outcome", result.measurement.outcome, result.measurement.detail)
        for result in results
        if result.measurement.outcome != "ok"
    ]
    return markdown(("step", "what", "verdict", "evidence"), rows) if rows else "None."


def _next(climbed: ClimbResult) -> str:
    good = [result for result in climbed.results if result.verdict.verdict is Verdict.PASSED]
    if not good:
        return "No step passed: mend what the issues name, then run the phase again."
    newest = good[-1]
    changed = newest.config.changed_from(RunConfig())
    changed.pop("data_root", None)
    config = " ".join(f"{key}={value}" for key, value in changed.items()) or "the defaults"
    last_good = f"Last good configuration: `{config}` (step {newest.step.name}, MLflow run `{newest.run_id}`)."
    if climbed.verdict is Verdict.PASSED:
        return f"{last_good} Phase {climbed.phase.number + 1} can stand on it."
    return f"{last_good} The phase goes on from there once the issues are mended."
