"""How each kind of operation is told to the tracking server. Telling it twice changes nothing."""

import json
from collections.abc import Callable

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModel, LoggedModelOutput, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from roofscale.errors import RecordError
from roofscale.tracking.outbox import Operation
from roofscale.tracking.server import lacks_endpoint

REGISTERED_MODEL = "roofscale"
MODEL = "model"  # the name of a run's model
_MLMODEL = "MLmodel"  # the file in which MLflow describes a model


def apply_operation(client: MlflowClient, operation: Operation) -> None:
    """Tell the server.

    Raises:
        RecordError: the operation was kept by another version of Roofscale.
        Exception: whatever MLflow, or the store of its artifacts, raises; see ``server.may_pass``.
    """
    if operation.kind not in _HOW:
        raise RecordError(f"{operation.kind!r}: no kind of record that this version of Roofscale knows")
    _HOW[operation.kind](client, operation)


def _batch(client: MlflowClient, operation: Operation) -> None:
    """Metrics, parameters and tags; a point that the server has already is left as it is."""
    said = operation.content
    client.log_batch(
        operation.run_id,
        metrics=[Metric(name, value, stamp, step) for name, value, stamp, step in said.get("metrics", ())],
        params=[Param(name, value) for name, value in said.get("params", {}).items()],
        tags=[RunTag(name, value) for name, value in said.get("tags", {}).items()],
    )


def _dataset(client: MlflowClient, operation: Operation) -> None:
    said = operation.content
    entity = Dataset(
        name=said["name"],
        digest=said["digest"][:36],
        source_type="local",
        source=json.dumps({"uri": said["source"]}),
        profile=json.dumps(said["samples"]),
    )
    tags = [InputTag("mlflow.data.context", "training")]
    client.log_inputs(operation.run_id, datasets=[DatasetInput(entity, tags)])


def _artifact(client: MlflowClient, operation: Operation) -> None:
    client.log_artifact(operation.run_id, str(operation.path), operation.content.get("folder"))


def _status(client: MlflowClient, operation: Operation) -> None:
    client.set_terminated(operation.run_id, operation.content["status"], operation.content["ended"])


def _model(client: MlflowClient, operation: Operation) -> None:
    """What ``mlflow.pytorch.log_model`` does, in steps that can be taken up again."""
    assert operation.path
    run = client.get_run(operation.run_id)
    if not keeps_models(client, run.info.experiment_id):
        client.log_artifacts(operation.run_id, str(operation.path), MODEL)
        return
    model = model_of(client, operation.run_id)
    if model is None:
        model = client.create_logged_model(
            run.info.experiment_id, name=MODEL, source_run_id=operation.run_id, params=dict(run.data.params)
        )
    description = Model.load(str(operation.path))
    description.model_id = description.model_uuid = model.model_id
    description.run_id = operation.run_id
    description.save(str(operation.path / _MLMODEL))
    client.log_model_artifacts(model.model_id, str(operation.path))
    known = run.outputs.model_outputs if run.outputs else []
    if all(output.model_id != model.model_id for output in known):
        client.log_outputs(operation.run_id, [LoggedModelOutput(model.model_id, step=0)])
    client.finalize_logged_model(model.model_id, "READY")


def _promote(client: MlflowClient, operation: Operation) -> None:
    """Register a run's model, unless it is, and point aliases to it; a run without a model is passed over."""
    uri = model_uri(client, operation.run_id)
    if uri is None:
        return
    version = version_of(client, operation.run_id, uri)
    for alias in operation.content["aliases"]:
        client.set_registered_model_alias(REGISTERED_MODEL, alias, version)


def keeps_models(client: MlflowClient, experiment_id: str) -> bool:
    """Whether the server keeps models of their own, as MLflow does since 3.0; elsewhere they are a run's artifacts."""
    try:
        client.search_logged_models([experiment_id], max_results=1)
    except MlflowException as error:
        if not lacks_endpoint(error):
            raise
        return False
    return True


def model_uri(client: MlflowClient, run_id: str) -> str | None:
    """Where a run's model is, for MLflow; None where it has none."""
    run = client.get_run(run_id).info
    if keeps_models(client, run.experiment_id):
        model = model_of(client, run_id)
        return f"models:/{model.model_id}" if model else None
    return f"{run.artifact_uri}/{MODEL}" if artifacts_of(client, run_id).list_artifacts(MODEL) else None


def artifacts_of(client: MlflowClient, run_id: str) -> ArtifactRepository:
    """The artifacts of a run; the client's own functions would look among models of their own too."""
    return get_artifact_repository(client.get_run(run_id).info.artifact_uri)


def model_of(client: MlflowClient, run_id: str) -> LoggedModel | None:
    """The model that a run has logged; None where it has none."""
    experiment = client.get_run(run_id).info.experiment_id
    found = client.search_logged_models([experiment], f"source_run_id = '{run_id}' AND name = '{MODEL}'")
    return found[0] if found else None


def version_of(client: MlflowClient, run_id: str, uri: str, name: str = REGISTERED_MODEL) -> str:
    """The version of a registered model that a run's model is; it is registered where it is not yet."""
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    known = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    if known:
        return str(known[0].version)
    model_id = uri.removeprefix("models:/") if uri.startswith("models:/") else None
    return str(client.create_model_version(name, uri, run_id, model_id=model_id).version)


_HOW: dict[str, Callable[[MlflowClient, Operation], None]] = {
    "batch": _batch,
    "dataset": _dataset,
    "artifact": _artifact,
    "status": _status,
    "model": _model,
    "promote": _promote,
}
