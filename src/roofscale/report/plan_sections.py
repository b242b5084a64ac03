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
    "nothing: the step is repeated under other seeds, as often as the phase file allows. A finding, such as a batch "
    "that is no faster, fails its step and not its phase. What was expected is reported beside the verdict, and "
    "decides nothing."
)
_DOWN = (
    "A step that fails is nobody's base: the last good configuration stays what it was. The failure is put down to a "
    "cause, and the cause decides which remedy is tried, as often as the phase file's `max_retreats` allows; what is "
    "too large is halved between what held and what failed. After a remedy that helped the phase goes on from it. "
    "Nothing is run that is at least as large, in every dimension, as "
    "a configuration that ran out of memory."
)
_LESS = "less of what the step has raised (batch, image or samples), else a smaller batch"
_REMEDIES = {  # in words, what ``phases.retreat`` does
    Cause.HOST_OOM: _LESS,
    Cause.CUDA_OOM: _LESS,
    Cause.OVER_MARGIN: _LESS,
    Cause.WORKERS_MEMORY: "fewer loader processes or less that they prepare ahead, before a smaller batch",
    Cause.SHM_FULL: "less that the loader prepares ahead, then fewer processes, then a smaller batch",
    Cause.DIVERGED: "a third of the learning rate, at the same batch",
    Cause.FORGETTING: "the data sets mixed in every pass: `schedule=mixed`",
    Cause.NOT_LEARNING: "twice the passes, once",
    Cause.LOADER_BOUND: "more loader processes, then more that each prepares ahead",
    Cause.FEW_STEPS: "twice the passes",
    Cause.FEW_VALIDATION_SAMPLES: "twice the validation samples",
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
    rows = [(cause_words(cause), _REMEDIES.get(cause, "none"), ADVICE.get(cause, "")) for cause in Cause]
    return f"{_DOWN}\n\n" + markdown(("cause", "remedy", "left to a person"), rows)


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
    remedies = f"up to {step.max_retreats} remedies, then " if step.max_retreats else ""
    repeats = f"up to {step.max_repeats} x another seed" if step.max_repeats else "go on"
    return (
        ", ".join(map(code, step.changes())),
        "; ".join(f"{expected.metric} {expectation_words(expected)}" for expected in step.expect),
        ", ".join(spec.name for spec in step.criteria),
        remedies + step.on_failure,
        repeats if step.on_insufficient == "repeat" else step.on_insufficient,
    )
