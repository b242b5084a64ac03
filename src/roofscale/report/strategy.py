"""The strategy document in Markdown: state, criteria, fallbacks, plan and results of all phases."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from roofscale import invocation
from roofscale.config import FIELDS, RunConfig
from roofscale.phases.criteria import CRITERIA
from roofscale.phases.fallback import ADVICE
from roofscale.phases.gate import GateReport
from roofscale.phases.phase_file import Phase, Step
from roofscale.phases.results import Cause
from roofscale.report import user_blocks
from roofscale.report.calibration import Calibration, calibration_table
from roofscale.report.format import cause_words, code, expectation_words, limits_words, markdown, one_line
from roofscale.report.phase_section import phase_section
from roofscale.report.phase_status import (
    Climbs,
    config_words,
    current_best,
    following,
    gate_words,
    next_phase,
    outcome_words,
    step_words,
    superseded_by,
    unpassed_words,
)
from roofscale.report.recommendations import recommend

_UP = (
    "A step passes when all of its criteria hold; then the next one is climbed. Evidence that is too thin passes "
    "nothing: the step is repeated under other seeds, as often as the phase file allows. A finding, such as a batch "
    "that is no faster, fails its step and not its phase. What was expected is reported beside the verdict, and "
    "decides nothing."
)
_DOWN = (
    "No later step starts from a failed one: the last good configuration stays what it was. The failure has a "
    "cause, and the cause decides which remedy is tried, as often as the phase file's `max_fallbacks` allows; what is "
    "too large is halved between what held and what failed. After a remedy that helped the phase goes on from it. "
    "Nothing is run that is at least as large, in every dimension, as "
    "a configuration that ran out of memory."
)
_LESS = "less of what the step has raised (batch, image or samples), else a smaller batch"
_REMEDIES = {  # what ``phases.fallback`` tries, in words
    Cause.HOST_OOM: _LESS,
    Cause.CUDA_OOM: _LESS,
    Cause.OVER_MARGIN: _LESS,
    Cause.WORKERS_MEMORY: "fewer loader processes or less that they prepare ahead, before a smaller batch",
    Cause.SHM_FULL: "less that the loader prepares ahead, then fewer processes, then a smaller batch",
    Cause.DIVERGED: "a third of the learning rate, at the same batch",
    Cause.FORGETTING: "the data sets mixed in every pass: `schedule=mixed`",
    Cause.NOT_LEARNING: "twice the passes, once",
    Cause.LOADER_BOUND: "more loader processes, then more that each prepares ahead",
    Cause.UNEVEN_STEPS: "half the loader processes",
    Cause.FEW_STEPS: "twice the passes",
    Cause.FEW_VALIDATION_SAMPLES: "twice the validation samples",
}


def criteria_table(phases: Sequence[Phase]) -> str:
    """Return the table of the criteria that the phases use, with their limits and the phases of each limit."""
    asked: dict[str, dict[str, list[int]]] = {}
    for phase in phases:
        for spec in (spec for step in phase.steps for spec in step.criteria):
            numbers = asked.setdefault(spec.name, {}).setdefault(limits_words(spec.limits), [])
            numbers += [] if phase.number in numbers else [phase.number]
    rows = [
        (*((name, CRITERIA[name].meaning) if index == 0 else ("", "")), limits, ", ".join(map(str, numbers)))
        for name, by_limits in asked.items()
        for index, (limits, numbers) in enumerate(by_limits.items())
    ]
    return f"{_UP}\n\n" + markdown(("criterion", "holds when", "limits", "phases"), rows)


def fallback_table() -> str:
    """Return the table of causes of failure with the remedy that the phase runner tries for each."""
    rows = [(cause_words(cause), _REMEDIES.get(cause, "none"), ADVICE.get(cause, "")) for cause in Cause]
    return f"{_DOWN}\n\n" + markdown(("cause", "remedy", "left to a person"), rows)


def phase_plan(phase: Phase) -> str:
    """Return the plan of a phase: the configuration it starts from, and its steps."""
    stands = f"the last good configuration of phase {phase.needs}" if phase.needs else "the defaults"
    overrides = " ".join(f"{knob}={value}" for knob, value in _as_written(phase.base).items())
    base = f", with {code(overrides)}" if overrides else ""
    requires = f"; requires: {', '.join(phase.requires)}" if phase.requires else ""
    table = markdown(
        ("step", "changes", "expects", "criteria", "on failure", "on insufficient evidence"),
        [(step.name, *_planned(step)) for step in phase.steps],
    )
    title = f"### Plan of phase {phase.number}: {phase.name}"
    return f"{title}\n\n{one_line(phase.question)}\n\nStands on {stands}{base}{requires}.\n\n{table}"


def _as_written(overrides: Mapping[str, Any]) -> dict[str, str]:
    """Return overrides with their values as a user writes them."""
    written = RunConfig().with_overrides(overrides).to_strings()
    return {knob: written[knob] for knob in overrides}


def _planned(step: Step) -> tuple[str, str, str, str, str]:
    remedies = f"up to {step.max_fallbacks} remedies, then " if step.max_fallbacks else ""
    repeats = f"up to {step.max_repeats} x another seed" if step.max_repeats else "go on"
    return (
        ", ".join(map(code, step.changes())),
        "; ".join(f"{expected.metric} {expectation_words(expected)}" for expected in step.expect),
        ", ".join(spec.name for spec in step.criteria),
        remedies + step.on_failure,
        repeats if step.on_insufficient == "repeat" else step.on_insufficient,
    )


_SIGNATURE = "<!-- written by roofscale report -->"
_ABOUT = """\
`roofscale report` writes this page from the tracking server and the phase files, and so does every climb. What stands
between lines marked *yours* is yours to write, and is kept as it is; the rest is written anew."""
_NOTES = "notes"
_INVITATION = "<!-- Write between the next two lines: it is yours, and it is kept. -->"


def strategy_document(
    phases: Sequence[Phase], climbs: Climbs, gate: GateReport | None, old: str, forecasts: Sequence[Calibration] = ()
) -> str:
    """Return the strategy document.

    Args:
        phases: the phase files, in order.
        climbs: the newest climb of each phase that the server has one of.
        gate: the gate before the GPU; None if it was not evaluated.
        old: the current page, empty if there is none; a text that is no strategy document is kept among the notes.
        forecasts: the calibration of each quantity.

    Raises:
        ConfigError: the markers of the old page do not pair.
    """
    kept = user_blocks.read_regions(old)
    yours = dict(kept.yours)
    if kept.outside.strip() and _SIGNATURE not in kept.outside:
        yours[_NOTES] = f"\n{kept.outside.strip()}\n{yours.get(_NOTES, '')}"
    parts = [
        f"{_SIGNATURE}\n# Scaling strategy",
        f"## Where it stands\n\n{_standing(phases, climbs, kept.phases, gate)}",
        _ABOUT,
        _offer(_NOTES, yours),
        f"## Configuration and target\n\n{_configuration(phases, climbs)}",
        f"## Going up\n\n{criteria_table(phases)}",
        f"## Coming down\n\n{fallback_table()}",
        "## Plan\n\n" + "\n\n".join(phase_plan(phase) for phase in phases),
        *_sections(phases, climbs, kept.phases, yours),
        f"## Gate before the GPU\n\n{_gate(gate)}",
        *([f"## Forecast and measured\n\n{calibration_table(forecasts)}"] if forecasts else []),
    ]
    if yours:
        orphans = (user_blocks.user_block(name, written) for name, written in yours.items())
        parts.append("\n\n".join(["## Kept", "Blocks whose place on this page is gone.", *orphans]))
    return "\n\n".join(parts) + "\n"


def _offer(name: str, yours: dict[str, str]) -> str:
    """Return a user block with the text that it had; that text is removed from ``yours``."""
    return f"{_INVITATION}\n{user_blocks.user_block(name, yours.pop(name, user_blocks.EMPTY))}"


def _sections(phases: Sequence[Phase], climbs: Climbs, kept: Mapping[int, str], yours: dict[str, str]) -> Iterator[str]:
    """Yield the section of each phase, new or kept from the old page, each followed by a user block."""
    for number in sorted({*(phase.number for phase in phases), *climbs, *kept}):
        if number in climbs:
            yield user_blocks.phase_block(number, phase_section(climbs[number], following(number, phases)))
        elif number in kept:
            yield user_blocks.phase_block(number, kept[number])
        else:
            yield f"## Phase {number}: not climbed yet"
        yield _offer(f"phase-{number}", yours)


def _standing(phases: Sequence[Phase], climbs: Climbs, kept: Mapping[int, str], gate: GateReport | None) -> str:
    """Return the opening list: the state of each phase, the last good config, the gate, and the next command."""
    lines = [f"Phase {phase.number}, {phase.name}: {_state(phase.number, climbs, kept)}." for phase in phases]
    good = "none yet; the defaults are the start"
    if best := current_best(climbs):
        climb, step = best
        origin = f"phase {climb.phase.number}, {step_words(step)}, run {code(step.run_id)}"
        good = f"{code(config_words(step.config))} ({origin})"
    lines += [f"Last good config: {good}.", f"Gate before the GPU: {gate_words(gate)}"]
    lines += [f"Next: {_next_command(phases, climbs, gate)}"]
    return "\n".join(f"- {one_line(line)}" for line in lines)


def _state(number: int, climbs: Climbs, kept: Mapping[int, str]) -> str:
    if number not in climbs:
        return "not on this server; its section is kept" if number in kept else "not climbed yet"
    climb = climbs[number]
    state = f"{outcome_words(climb)}, {len(climb.results)} of {len(climb.phase.steps)} steps"
    if unpassed := unpassed_words(climb):
        state += f" ({unpassed})"
    older = superseded_by(number, climbs)
    return f"{state}, run {code(climb.run_id)}" + (f"; phase {older} was climbed again since" if older else "")


def _next_command(phases: Sequence[Phase], climbs: Climbs, gate: GateReport | None) -> str:
    """Return the command to run next with its reason: for the gate if that bars the next phase, else that phase's."""
    upcoming = next_phase(phases, climbs)
    if upcoming is None:
        return "nothing is left to climb."
    command = code(invocation.command("phase", upcoming.number))
    missing = [c for c in gate.conditions if not c.met] if gate and "gate" in upcoming.requires else []
    if missing:
        return f"{code(missing[0].remedy)}, as the gate requires: {missing[0].name}. Once it is open: {command}."
    return recommend(climbs[upcoming.number])[0].say if upcoming.number in climbs else f"{command}. {upcoming.question}"


def _configuration(phases: Sequence[Phase], climbs: Climbs) -> str:
    """Return the table of the last good config, the defaults and the target, the last phase's last step."""
    best = current_best(climbs)
    now = best[1].config if best else RunConfig()
    origin = f"Now: {'the last good config' if best else 'the defaults, as no step has passed yet'}."
    target: dict[str, str] = {}
    for last in phases[-1:]:
        target = _as_written({**last.base, **last.steps[-1].set})
        origin += f" Target: what phase {last.number} asks for in its last step, {last.steps[-1].name}."
    defaults, current = RunConfig().to_strings(), now.to_strings()
    reached = {knob: "yes" if current[knob] == value else "no" for knob, value in target.items()}
    rows = [
        (knob, defaults[knob], value, target.get(knob, ""), reached.get(knob, ""), FIELDS[knob].metadata["meaning"])
        for knob, value in current.items()
        if knob != "data_root" and (knob in target or value != defaults[knob])
    ]
    return f"{origin}\n\n" + markdown(("knob", "default", "now", "target", "reached", "meaning"), rows)


def _gate(gate: GateReport | None) -> str:
    if gate is None:
        return "Not asked yet: `roofscale gate`."
    rows = [
        (c.name, "yes" if c.met else "no", c.evidence, code(c.run_id if c.met else c.remedy)) for c in gate.conditions
    ]
    state = "Open: every condition is met." if gate.open else "Closed: the GPU phase does not begin."
    return f"{state}\n\n" + markdown(("condition", "met", "evidence", "proved or supplied by"), rows)
