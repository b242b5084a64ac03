"""The one package that knows MLflow: experiments, attempts, steps, and the way back to them after a kill.

One MLflow experiment a phase, one parent run an attempt, one child run a step. Only the supervising process talks to
MLflow; the training process writes events, which arrive here.
"""

from roofscale.tracking.project import ProjectRun
from roofscale.tracking.records import RunRecord, aliased, get_run
from roofscale.tracking.run import TrackedRun
from roofscale.tracking.server import tracking_uri
from roofscale.tracking.tracker import Tracker

__all__ = ["ProjectRun", "RunRecord", "TrackedRun", "Tracker", "aliased", "get_run", "tracking_uri"]
