"""Tracking with MLflow: experiments, attempts and steps, and how a command finds them again after a kill.

A phase is an MLflow experiment, an attempt a parent run, a step a child run. Only this package calls MLflow's client,
in the launcher and in process 1 of a job, never in the training process, which writes events.
"""

from roofscale.tracking.mlflow_project import MlflowProjectRun
from roofscale.tracking.models import CHAMPION, StoredModel, find_model, read_weights, register
from roofscale.tracking.records import RunRecord, get_run, run_by_alias
from roofscale.tracking.run import TrackedRun, save_model
from roofscale.tracking.server import TrackingError, tracking_uri
from roofscale.tracking.sync import OUTBOX, SyncResult, active_outboxes, pending, send_abandoned
from roofscale.tracking.tracker import Tracker, check_server

__all__ = [
    "CHAMPION",
    "OUTBOX",
    "MlflowProjectRun",
    "RunRecord",
    "StoredModel",
    "SyncResult",
    "TrackedRun",
    "Tracker",
    "TrackingError",
    "active_outboxes",
    "check_server",
    "find_model",
    "get_run",
    "pending",
    "read_weights",
    "register",
    "run_by_alias",
    "save_model",
    "send_abandoned",
    "tracking_uri",
]
