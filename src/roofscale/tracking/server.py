"""Which tracking server is meant, and whether there is anything on it that could be read."""

import logging
from pathlib import Path

import mlflow

# What MLflow says of its own doings would drown what a run has to say.
logging.getLogger("mlflow").setLevel(logging.WARNING)

_SQLITE = "sqlite:///"


def tracking_uri() -> str:
    """The server that ``MLFLOW_TRACKING_URI`` names, or the local database ``mlflow.db``."""
    return str(mlflow.get_tracking_uri())


def was_ever_used() -> bool:
    """False for a local database that does not exist: a client that looks into it would make it."""
    uri = tracking_uri()
    return not uri.startswith(_SQLITE) or Path(uri.removeprefix(_SQLITE)).exists()
