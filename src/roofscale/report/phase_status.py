"""State of all phases according to the tracking server: pure functions of the newest climbs and the gate."""

from collections.abc import Mapping, Sequence

from roofscale.config import RunConfig
from roofscale.phases.gate import GateReport
from roofscale.phases.judge import Verdict
from roofscale.phases.phase_file import Phase
from roofscale.phases.results import PhaseResult, StepResult, newest_knee
from roofscale.report.format import code

_FACTS = ("data", "data_fingerprint", "leaks", "compute", "compute_note", "device", "precision", "memory_limit",
          "memory_source")  # fmt: skip
Climbs = Mapping[int, PhaseResult]  # the newest climb of each phase that the server has one of


def current_best(climbs: Climbs) -> tuple[PhaseResult, StepResult] | None:
    """Return the last good run of the highest phase that has one, the base of the next phase; None without one."""
    candidates = ((climb, climb.last_good) for _, climb in sorted(climbs.items(), reverse=True))
    return next(((climb, good) for climb, good in candidates if good), None)


def next_phase(phases: Sequence[Phase], climbs: Climbs) -> Phase | None:
    """Return the first phase that is not complete yet; None if all are."""
    return next((p for p in phases if p.number not in climbs or not is_complete_base(climbs[p.number])), None)


def is_complete_base(climb: PhaseResult) -> bool:
    """Return whether the next phase can start from a climb: every step was judged, and one is the last good."""
    return climb.complete and climb.last_good is not None


def following(number: int, phases: Sequence[Phase]) -> Phase | None:
    """Return the phase after the one with this number; None after the last."""
    return next((phase for phase in phases if phase.number > number), None)


def superseded_by(number: int, climbs: Climbs) -> int | None:
    """Return an earlier phase climbed again after this one, whose base is outdated by it; None if there is none."""
    return max((n for n in climbs if n < number and climbs[n].created > climbs[number].created), default=None)


def outcome_words(climb: PhaseResult) -> str:
    """Return the outcome of a climb: its verdict, or 'interrupted'."""
    return "interrupted" if climb.interrupted else climb.verdict.label


def unpassed_words(climb: PhaseResult) -> str:
    """Return the steps that did not pass, each with its verdict; empty if all passed."""
    unpassed = (result for result in climb.results if result.verdict.verdict is not Verdict.PASSED)
    return "; ".join(f"{result.step.name} {result.verdict.verdict.label}" for result in unpassed)


def gate_words(gate: GateReport | None) -> str:
    """Return whether the gate is open; if not, each missing condition with the command that supplies it."""
    if gate is None:
        return "not asked yet (`roofscale gate`)."
    missing = "; ".join(f"{c.name} ({code(c.remedy)})" for c in gate.conditions if not c.met)
    return "open." if gate.open else f"closed. Missing: {missing}."


def facts(climb: PhaseResult) -> dict[str, str]:
    """Return what is known of the data and the machine that the runs of a climb were made on."""
    values = {name: dict.fromkeys(run.measurement.facts.get(name, "") for run in climb.all_runs()) for name in _FACTS}
    return {name: text for name, distinct in values.items() if (text := "; ".join(filter(None, distinct)))}


def changed_knobs(config: RunConfig) -> dict[str, str]:
    """Return the overrides of the defaults, without ``data_root``, which only this machine knows."""
    return {knob: value for knob, value in config.diff(RunConfig()).items() if knob != "data_root"}


def config_words(config: RunConfig) -> str:
    """Return the overrides of the defaults as a user writes them, without ``data_root``."""
    return " ".join(f"{knob}={value}" for knob, value in changed_knobs(config).items()) or "the defaults"


def format_changes(result: StepResult) -> str:
    """Return what a run changed from the base of its phase: the overrides of its step, and of its fallback."""
    values = result.config.to_strings()
    searched = result.step.search.space if result.step.search else ()
    knobs = [*result.step.set, *searched, *([result.fallback.changed.partition("=")[0]] if result.fallback else [])]
    return " ".join(f"{key}={values[key]}" for key in dict.fromkeys(knobs))


def step_words(result: StepResult) -> str:
    """Return the name of a step, with the change of the fallback if the run has one."""
    return result.step.name + (f" at {result.fallback.changed}" if result.fallback else "")


def batch_words(climb: PhaseResult) -> str:
    """Return the batch size handed on and the fastest one here; empty if the phase file has no ``least_batch``."""
    if not climb.phase.least_batch or climb.last_good is None:
        return ""
    knees = [criterion for run in climb.all_runs() for criterion in run.verdict.criteria if criterion.name == "knee"]
    knee = newest_knee(climb.results)
    likes = (
        f"this hardware likes {knee.numbers['batch_size']:g} best" if knee else "which one is best here is not known"
    )
    why = f": {knees[-1].evidence.removeprefix('(shown only) ')}" if knees else ""
    return f"Batch {climb.last_good.config.batch_size} is handed on; {likes}{why}."


def watched(climb: PhaseResult) -> list[str]:
    """Return the metrics that the phase watches; the '*' of ``val/*/iou`` is replaced by each data set trained on."""
    names = dict.fromkeys(name for result in climb.results for name in result.config.datasets)
    return [metric.replace("*", name) for metric in climb.phase.watch for name in (names if "*" in metric else ("",))]
