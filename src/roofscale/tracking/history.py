"""Recorded runs of phases, single trainings and searches, read from the tracking server."""

from collections.abc import Iterator

from roofscale.config import FIELDS, RunConfig
from roofscale.invocation import PHASES, SEARCHING
from roofscale.measurement import Outcome
from roofscale.tracking.records import RunRecord
from roofscale.tracking.tracker import Tracker

SEARCH_EXPERIMENT = "roofscale-search"  # of ``roofscale search``
TRAIN_EXPERIMENT = "roofscale-train"  # of ``roofscale train``


def experiment_name(phase: int) -> str:
    """Return the MLflow experiment of a phase."""
    return f"roofscale-phase{phase}"


def judged_runs(*phases: int) -> list[RunRecord]:
    """Return the judged runs of all attempts at these phases, those of the newest attempt of a phase first."""
    trackers = (tracker for phase in phases if (tracker := Tracker.find(experiment_name(phase))))
    return [run for tracker in trackers for run in judged_runs_of(tracker)]


def judged_runs_of(tracker: Tracker) -> list[RunRecord]:
    """Return the judged runs of an experiment, those of the newest attempt first."""
    return [run for run in _children(tracker) if "verdict" in run.tags]


def trials_of(tracker: Tracker) -> list[RunRecord]:
    """Return the trials of all searches in an experiment, those of the newest attempt first."""
    return [trial for run in _children(tracker) if "search" in run.tags for trial in tracker.children(run.run_id)]


def _children(tracker: Tracker) -> Iterator[RunRecord]:
    """Yield the runs of all attempts, those of the newest first."""
    return (run for attempt in tracker.attempts() for run in tracker.children(attempt.run_id))


def read_config(run: RunRecord) -> RunConfig:
    """Read the run config from a run's parameters; skip knobs that this version no longer has."""
    return RunConfig().with_overrides({key: value for key, value in run.params.items() if key in FIELDS})


def recorded_runs() -> list[RunRecord]:
    """Return the judged runs of all phases, then the single trainings."""
    single = Tracker.find(TRAIN_EXPERIMENT)
    return [*judged_runs(*PHASES), *(single.attempts() if single else ())]


def recorded_trials() -> list[RunRecord]:
    """Return the trials of all searches."""
    names = (experiment_name(SEARCHING), SEARCH_EXPERIMENT)
    return [trial for name in names if (tracker := Tracker.find(name)) for trial in trials_of(tracker)]


def succeeded(run: RunRecord) -> bool:
    """Return whether a run was really made, and ended well."""
    return run.tags.get("outcome") == Outcome.OK and "ruled_out_by" not in run.tags
