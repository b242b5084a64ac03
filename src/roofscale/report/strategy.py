"""The strategy document: the whole ladder on one page, made anew from the tracking server and the phase files.

What a person wrote between marked lines is carried over byte for byte, and so is the section about a phase that the
server has no record of.
"""

from collections.abc import Iterator, Mapping, Sequence

from roofscale.config import FIELDS, RunConfig
from roofscale.phases.climb import ClimbResult
from roofscale.phases.gate import GateReport
from roofscale.phases.plan import Phase
from roofscale.report import regions
from roofscale.report.calibration import Calibration, calibration_table
from roofscale.report.plan_sections import coming_down, going_up, phase_plan
from roofscale.report.sections import outcome_words, phase_section
from roofscale.report.standing import Climbs, config_words, current, following, next_phase, stale, step_words
from roofscale.report.table import code, markdown

_SIGNATURE = "<!-- written by roofscale report -->"
_TITLE = f"""{_SIGNATURE}
# Scaling strategy

`roofscale report` writes this page from the tracking server and the phase files, and so does every climb. What stands
between lines marked *yours* is yours to write, and is kept as it is; the rest is written anew."""
_NOTES = "notes"
_INVITATION = "<!-- Write between the next two lines: it is yours, and it is kept. -->"


def strategy_document(
    phases: Sequence[Phase], climbs: Climbs, gate: GateReport | None, old: str, forecasts: Sequence[Calibration] = ()
) -> str:
    """The whole page.

    Args:
        phases: the phase files, in order.
        climbs: the newest climb of each phase that the server has one of.
        gate: the gate before the GPU; None where it was not asked.
        old: the page as it stands, empty where there is none; a text that is no such page is kept among the notes.
        forecasts: how those of each quantity have done.

    Raises:
        ConfigError: the markers of the old page do not pair.
    """
    kept = regions.read_regions(old)
    yours = dict(kept.yours)
    if kept.outside.strip() and _SIGNATURE not in kept.outside:
        yours[_NOTES] = f"\n{kept.outside.strip()}\n{yours.get(_NOTES, '')}"
    parts = [
        _TITLE,
        _offer(_NOTES, yours),
        f"## Where it stands\n\n{_standing(phases, climbs, kept.phases)}",
        f"## Configuration and target\n\n{_configuration(phases, climbs)}",
        f"## Going up\n\n{going_up(phases)}",
        f"## Coming down\n\n{coming_down()}",
        "## Plan\n\n" + "\n\n".join(phase_plan(phase) for phase in phases),
        *_sections(phases, climbs, kept.phases, yours),
        f"## Gate before the GPU\n\n{_gate(gate)}",
        *([f"## Foreseen and measured\n\n{calibration_table(forecasts)}"] if forecasts else []),
    ]
    if yours:
        left = (regions.block(name, written) for name, written in yours.items())
        parts.append("\n\n".join(["## Kept", "Blocks whose place on this page is gone.", *left]))
    return "\n\n".join(parts) + "\n"


def _offer(name: str, yours: dict[str, str]) -> str:
    """A place to write in, with what was written there, which is taken out of ``yours``."""
    return f"{_INVITATION}\n{regions.block(name, yours.pop(name, regions.EMPTY))}"


def _sections(phases: Sequence[Phase], climbs: Climbs, kept: Mapping[int, str], yours: dict[str, str]) -> Iterator[str]:
    """The section of each phase, as climbed or as it was kept, and a place to write beneath it."""
    for number in sorted({*(phase.number for phase in phases), *climbs, *kept}):
        if number in climbs:
            yield regions.section(number, phase_section(climbs[number], following(number, phases)))
        elif number in kept:
            yield regions.section(number, kept[number])
        else:
            yield f"## Phase {number}: not climbed yet"
        yield _offer(f"phase-{number}", yours)


def _standing(phases: Sequence[Phase], climbs: Climbs, kept: Mapping[int, str]) -> str:
    rows = []
    for phase in phases:
        climb = climbs.get(phase.number)
        if climb:
            good = step_words(climb.last_good) if climb.last_good else "none"
            rows.append((str(phase.number), phase.name, _state(climb, climbs), good, code(climb.run_id)))
        else:
            state = "not on this server; its section is kept" if phase.number in kept else "not climbed yet"
            rows.append((str(phase.number), phase.name, state, "", ""))
    coming = next_phase(phases, climbs)
    command = f"\n\nNext: {code(f'roofscale phase {coming.number}')}. {coming.question}" if coming else ""
    return markdown(("phase", "name", "stands at", "last good step", "MLflow run"), rows) + command


def _state(climb: ClimbResult, climbs: Climbs) -> str:
    state = f"{outcome_words(climb)}, {len(climb.results)} of {len(climb.phase.steps)} steps"
    older = stale(climb.phase.number, climbs)
    return f"{state}; phase {older} was climbed again since" if older else state


def _configuration(phases: Sequence[Phase], climbs: Climbs) -> str:
    """The configuration to go on with, beside the defaults and what the last step of the last phase asks for."""
    found = current(climbs)
    now = found[1].config if found else RunConfig()
    said = "No step has passed yet: these are the defaults."
    if found:
        climb, good = found
        said = f"{code(config_words(now))}: phase {climb.phase.number}, {step_words(good)}, run {code(good.run_id)}."
    aim: dict[str, str] = {}
    for last in phases[-1:]:
        asked = {**last.base, **last.steps[-1].set}
        written = RunConfig().with_overrides(asked).written()
        aim = {knob: written[knob] for knob in asked}
        said += f" The target is what phase {last.number} asks for in its last step, {last.steps[-1].name}."
    defaults = RunConfig().written()
    rows = [
        (
            knob,
            defaults[knob],
            value,
            aim.get(knob, ""),
            _reached(value, aim.get(knob)),
            FIELDS[knob].metadata["meaning"],
        )
        for knob, value in now.written().items()
        if knob != "data_root" and (knob in aim or value != defaults[knob])
    ]
    return f"{said}\n\n" + markdown(("knob", "default", "now", "target", "reached", "meaning"), rows)


def _reached(now: str, target: str | None) -> str:
    return "" if target is None else "yes" if now == target else "no"


def _meaning(knob: str) -> str:
    return str(FIELDS[knob].metadata["meaning"])


def _gate(gate: GateReport | None) -> str:
    if gate is None:
        return "Not asked yet: `roofscale gate`."
    rows = [
        (c.name, "yes" if c.met else "no", c.evidence, code(c.run_id if c.met else c.remedy)) for c in gate.conditions
    ]
    state = "Open: every condition is met." if gate.open else "Closed: the GPU phase does not begin."
    return f"{state}\n\n" + markdown(("condition", "met", "evidence", "proved or supplied by"), rows)
