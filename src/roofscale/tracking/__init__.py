"""The one package that knows MLflow: experiments, attempts, steps, and the way back to them after a kill.

One MLflow experiment a phase, one parent run an attempt, one child run a step. Only the supervising process talks to
MLflow; the training process writes events, which arrive here.
"""

from roofscale.tracking.project import ProjectRun
from roofscale.tracking.records import RunRecord, aliased, get_run
from roofscale.tracking.run import TrackedRun
from roofscale.tracking.server import TrackingError, tracking_uri
from roofscale.tracking.sync import Sent, in_use, send_left_behind, waiting
from roofscale.tracking.tracker import Tracker, require_answer

__all__ = [
    "ProjectRun",
    "RunRecord",
    "Sent",
    "TrackedRun",
    "Tracker",
    "TrackingError",
    "aliased",
    "get_run",
    "in_use",
    "require_answer",
    "send_left_behind",
    "tracking_uri",
    "waiting",
]
