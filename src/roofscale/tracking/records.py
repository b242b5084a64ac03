"""Read-only records of the runs on the tracking server."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from roofscale.tracking.apply import REGISTERED_MODEL
from roofscale.tracking.server import store_exists, translate_errors

_T = TypeVar("_T")
_PAGE = 1000  # runs per request; MLflow's limit is 50000


@dataclass(frozen=True)
class RunRecord:
    """Record of one MLflow run, as stored on the server."""

    run_id: str
    name: str
    parent_id: str | None
    status: str  # RUNNING, FINISHED, FAILED or KILLED
    started: float  # epoch seconds
    ended: float | None  # epoch seconds
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]  # the last point of each series


def from_mlflow(run: Run) -> RunRecord:
    """Convert a run of MLflow's client to a record."""
    info, data = run.info, run.data
    return RunRecord(
        run_id=info.run_id,
        name=info.run_name or "",
        parent_id=data.tags.get("mlflow.parentRunId"),
        status=info.status,
        started=info.start_time / 1000,
        ended=info.end_time / 1000 if info.end_time else None,
        tags=dict(data.tags),
        params=dict(data.params),
        metrics=dict(data.metrics),
    )


def search(client: MlflowClient, experiment_id: str, condition: str, order: str) -> list[RunRecord]:
    """Return all runs of an experiment that meet a condition and are not deleted.

    Args:
        condition, order: MLflow's ``filter_string`` and ``order_by``.
    """
    records: list[RunRecord] = []
    token = None
    while True:
        page = client.search_runs([experiment_id], condition, max_results=_PAGE, order_by=[order], page_token=token)
        records += map(from_mlflow, page)
        token = page.token
        if not token:
            return records


def get_run(run_id: str) -> RunRecord | None:
    """Return the run with this id; None if the server does not have it or it is deleted."""
    run = _none_if_not_found(lambda client: client.get_run(run_id))
    return from_mlflow(run) if run and run.info.lifecycle_stage != "deleted" else None


def run_by_alias(alias: str) -> RunRecord | None:
    """Return the run whose model an alias of the registered model ``roofscale`` points to; None if there is none."""
    version = _none_if_not_found(lambda client: client.get_model_version_by_alias(REGISTERED_MODEL, alias))
    return get_run(version.run_id) if version and version.run_id else None


def _none_if_not_found(query: Callable[[MlflowClient], _T]) -> _T | None:
    if not store_exists():
        return None
    with translate_errors():
        try:
            return query(MlflowClient())
        except MlflowException as error:
            if is_not_found(error):
                return None
            raise


def is_not_found(error: MlflowException) -> bool:
    """Whether the error means that something does not exist; for an alias that is INVALID_PARAMETER_VALUE in MLflow."""
    return error.error_code in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "INVALID_PARAMETER_VALUE")
