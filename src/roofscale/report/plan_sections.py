"""What is planned, in Markdown: the rules for going up and coming down, and the steps of each phase."""

from collections.abc import Mapping, Sequence
from typing import Any

from roofscale.config import RunConfig
from roofscale.phases.climb import Cause
from roofscale.phases.criteria import CRITERIA
from roofscale.phases.plan import Phase, Step
from roofscale.phases.retreat import ADVICE
from roofscale.report.table import cause_words, code, expectation_words, limits_words, markdown, plain

_UP = (
    "A step passes when all of its criteria hold; then the next one is climbed. Evidence that is too thin passes "
    "nothing: the step is repeated under other seeds, as often as the phase file allows."
)
_DOWN = (
    "A step that fails is nobody's base: the last good configuration stays what it was. The failure is put down to a "
    "cause, and the cause decides what is made smaller. The increment is halved between what held and what failed, as "
    "often as the phase file's `max_retreats` allows. Nothing is run that is at least as large, in every dimension, as "
    "a configuration that ran out of memory."
)
_LESS = "what the step has raised (batch, image or samples), else the batch"
_SMALLER = {  # in words, what ``phases.retreat`` does
    Cause.HOST_OOM: _LESS,
    Cause.CUDA_OOM: _LESS,
    Cause.OVER_MARGIN: _LESS,
    Cause.WORKERS_MEMORY: "loader processes or what they prepare ahead, before the batch",
    Cause.SHM_FULL: "what the loader prepares ahead, then its processes, then the batch",
    Cause.DIVERGED: "the learning rate, at the same batch",
}


def going_up(phases: Sequence[Phase]) -> str:
    """The scaling criteria: each one that some phase asks for, with its limits and where they hold."""
    asked: dict[str, dict[str, list[int]]] = {}
    for phase in phases:
        for spec in (spec for step in phase.steps for spec in step.criteria):
            where = asked.setdefault(spec.name, {}).setdefault(limits_words(spec.limits), [])
            where += [] if phase.number in where else [phase.number]
    rows = [
        (*((name, CRITERIA[name].meaning) if place == 0 else ("", "")), limits, ", ".join(map(str, where)))
        for name, by_limits in asked.items()
        for place, (limits, where) in enumerate(by_limits.items())
    ]
    return f"{_UP}\n\n" + markdown(("criterion", "holds when", "limits", "phases"), rows)


def coming_down() -> str:
    """The rollback rule, cause by cause."""
    rows = [(cause_words(cause), _SMALLER.get(cause, "nothing"), ADVICE.get(cause, "")) for cause in Cause]
    return f"{_DOWN}\n\n" + markdown(("cause", "made smaller", "left to a person"), rows)


def phase_plan(phase: Phase) -> str:
    """What a phase file says: what it stands on, and its steps."""
    stands = f"the last good configuration of phase {phase.needs}" if phase.needs else "the defaults"
    base = f", with {code(overrides_words(phase.base))}" if phase.base else ""
    requires = f"; requires: {', '.join(phase.requires)}" if phase.requires else ""
    table = markdown(
        ("step", "changes", "expects", "criteria", "on failure", "on insufficient evidence"),
        [(step.name, *_planned(step)) for step in phase.steps],
    )
    title = f"### Plan of phase {phase.number}: {phase.name}"
    return f"{title}\n\n{plain(phase.question)}\n\nStands on {stands}{base}{requires}.\n\n{table}"


def overrides_words(overrides: Mapping[str, Any]) -> str:
    """Overrides as they would be written on the command line."""
    written = RunConfig().with_overrides(overrides).written()
    return " ".join(f"{key}={written[key]}" for key in overrides)


def _planned(step: Step) -> tuple[str, str, str, str, str]:
    smaller = f"up to {step.max_retreats} x a smaller increment, then " if step.max_retreats else ""
    repeats = f"up to {step.max_repeats} x another seed" if step.max_repeats else "go on"
    return (
        ", ".join(map(code, step.changes())),
        "; ".join(f"{expected.metric} {expectation_words(expected)}" for expected in step.expect),
        ", ".join(spec.name for spec in step.criteria),
        smaller + step.on_failure,
        repeats if step.on_insufficient == "repeat" else step.on_insufficient,
    )
