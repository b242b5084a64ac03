"""Where the whole ladder stands, as far as the tracking server tells: pure functions over climbs."""

from collections.abc import Mapping, Sequence

from roofscale.config import RunConfig
from roofscale.phases.phase_file import Phase
from roofscale.phases.results import PhaseResult, StepResult, find_knee

Climbs = Mapping[int, PhaseResult]  # the newest climb of each phase that the server has one of


def current_best(climbs: Climbs) -> tuple[PhaseResult, StepResult] | None:
    """The last good of the highest phase that has one: the configuration to go on with."""
    found = ((climb, climb.last_good) for _, climb in sorted(climbs.items(), reverse=True))
    return next(((climb, good) for climb, good in found if good), None)


def next_phase(phases: Sequence[Phase], climbs: Climbs) -> Phase | None:
    """The first phase that no other can stand on yet; None where there is none."""
    return next((p for p in phases if p.number not in climbs or not is_complete_base(climbs[p.number])), None)


def is_complete_base(climb: PhaseResult) -> bool:
    """Whether the next phase can stand on a climb: every step was judged, and there is a last good."""
    return climb.complete and climb.last_good is not None


def following(number: int, phases: Sequence[Phase]) -> Phase | None:
    """The phase after the one with this number; None after the last."""
    return next((phase for phase in phases if phase.number > number), None)


def superseded_by(number: int, climbs: Climbs) -> int | None:
    """An earlier phase that was climbed again after this one, so that this one stands on an older base."""
    return max((n for n in climbs if n < number and climbs[n].created > climbs[number].created), default=None)


def config_words(config: RunConfig) -> str:
    """What a config changes on the defaults, as overrides; where the files of a machine lie is left out."""
    changed = config.diff(RunConfig())
    return " ".join(f"{key}={value}" for key, value in changed.items() if key != "data_root") or "the defaults"


def format_changes(result: StepResult) -> str:
    """What a run changed on its phase's base: the step's own overrides, and the remedy that it took."""
    written = result.config.to_strings()
    searched = result.step.search.space if result.step.search else ()
    knobs = [*result.step.set, *searched, *([result.fallback.changed.partition("=")[0]] if result.fallback else [])]
    return " ".join(f"{key}={written[key]}" for key in dict.fromkeys(knobs))


def step_words(result: StepResult) -> str:
    """The name of a step, with the remedy that a run of it took."""
    return result.step.name + (f" at {result.fallback.changed}" if result.fallback else "")


def batch_words(climb: PhaseResult) -> str:
    """Which batch a phase hands on, and which this hardware likes best; empty where the phase does not ask for one."""
    if not climb.phase.least_batch or climb.last_good is None:
        return ""
    knees = [found for run in climb.all_runs() for found in run.verdict.criteria if found.name == "knee"]
    told = find_knee(climb.results)
    likes = f"this hardware likes {told.numbers['batch_size']:g} best" if told else "which one is best here is not told"
    why = f": {knees[-1].evidence.removeprefix('(shown only) ')}" if knees else ""
    return f"Batch {climb.last_good.config.batch_size} is handed on; {likes}{why}."


def watched(climb: PhaseResult) -> list[str]:
    """The metrics that the phase watches; ``val/*/iou`` stands for that of each data set trained on."""
    names = dict.fromkeys(name for result in climb.results for name in result.config.datasets)
    return [metric.replace("*", name) for metric in climb.phase.watch for name in (names if "*" in metric else ("",))]
