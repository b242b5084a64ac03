"""The one package that knows MLflow: experiments, attempts, steps, and the way back to them after a kill.

One MLflow experiment a phase, one parent run an attempt, one child run a step. Only the supervising process talks to
MLflow; the training process writes events, which arrive here.
"""

from roofscale.tracking.mlflow_project import ProjectRun
from roofscale.tracking.models import CHAMPION, StoredModel, find_model, read_weights, register
from roofscale.tracking.records import RunRecord, aliased, get_run
from roofscale.tracking.run import TrackedRun, save_model
from roofscale.tracking.server import TrackingError, tracking_uri
from roofscale.tracking.sync import OUTBOX, Sent, in_use, send_left_behind, waiting
from roofscale.tracking.tracker import Tracker, require_answer

__all__ = [
    "CHAMPION",
    "OUTBOX",
    "ProjectRun",
    "RunRecord",
    "Sent",
    "StoredModel",
    "TrackedRun",
    "Tracker",
    "TrackingError",
    "aliased",
    "find_model",
    "get_run",
    "in_use",
    "read_weights",
    "register",
    "require_answer",
    "save_model",
    "send_left_behind",
    "tracking_uri",
    "waiting",
]
