"""Runs on record: those of phases, of single trainings and of searches, as the tracking server has them."""

from collections.abc import Iterator

from roofscale.config import FIELDS, RunConfig
from roofscale.measurement import Outcome
from roofscale.tracking.records import RunRecord
from roofscale.tracking.tracker import Tracker

PHASES = (1, 2, 3, 4, 5)
SEARCHING = 3  # the phase whose search stands for itself too


SEARCH_EXPERIMENT = "roofscale-search"  # of searches that stand for themselves


def experiment_name(phase: int) -> str:
    """The MLflow experiment of a phase."""
    return f"roofscale-phase{phase}"


def judged_runs(phase: int) -> list[RunRecord]:
    """Every run of every attempt at a phase that has a verdict, those of the newest attempt first."""
    tracker = Tracker.find(experiment_name(phase))
    return judged_runs_of(tracker) if tracker else []


def judged_runs_of(tracker: Tracker) -> list[RunRecord]:
    """Every run in an experiment that has a verdict, those of the newest attempt first."""
    return [run for run in _children(tracker) if "verdict" in run.tags]


def trials_of(tracker: Tracker) -> list[RunRecord]:
    """Every trial of every search in an experiment, those of the newest attempt first."""
    return [trial for run in _children(tracker) if "search" in run.tags for trial in tracker.children(run.run_id)]


def _children(tracker: Tracker) -> Iterator[RunRecord]:
    """Of all attempts, those of the newest first."""
    return (run for attempt in tracker.attempts() for run in tracker.children(attempt.run_id))


def read_config(run: RunRecord) -> RunConfig:
    """The run config from a run's parameters; knobs that this version no longer has are left out."""
    return RunConfig().with_overrides({key: value for key, value in run.params.items() if key in FIELDS})


TRAIN_EXPERIMENT = "roofscale-train"  # of single trainings


def recorded_runs() -> list[RunRecord]:
    """Every judged run of the phases on the tracking server, and every single training."""
    single = Tracker.find(TRAIN_EXPERIMENT)
    return [*(run for phase in PHASES for run in judged_runs(phase)), *(single.attempts() if single else ())]


def recorded_trials() -> list[RunRecord]:
    """Every trial of every search on the tracking server."""
    names = (experiment_name(SEARCHING), SEARCH_EXPERIMENT)
    return [trial for name in names if (tracker := Tracker.find(name)) for trial in trials_of(tracker)]


def succeeded(run: RunRecord) -> bool:
    """Whether a run was really made, and to its end."""
    return run.tags.get("outcome") == Outcome.OK and "ruled_out_by" not in run.tags
