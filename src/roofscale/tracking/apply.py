"""Application of operations to the tracking server, by kind; every one is idempotent."""

import json
from collections.abc import Callable

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModel, LoggedModelOutput, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from roofscale.addresses import S3
from roofscale.errors import RecordError
from roofscale.tracking.outbox import Operation
from roofscale.tracking.server import lacks_endpoint

REGISTERED_MODEL = "roofscale"
MODEL = "model"  # the name of a run's model
_MLMODEL = "MLmodel"  # the file in which MLflow describes a model


def apply_operation(client: MlflowClient, operation: Operation) -> None:
    """Send an operation to the server.

    Raises:
        RecordError: the operation is of an unknown kind; another version of Roofscale has kept it.
        Exception: any error of MLflow or of the artifact store; see ``server.is_transient``.
    """
    if operation.kind not in _APPLY_BY_KIND:
        raise RecordError(f"{operation.kind!r}: not a kind of operation that this version of Roofscale knows")
    _APPLY_BY_KIND[operation.kind](client, operation)


def _batch(client: MlflowClient, operation: Operation) -> None:
    """Log metrics, parameters and tags; the server ignores a point that it already has."""
    content = operation.content
    client.log_batch(
        operation.run_id,
        metrics=[Metric(name, value, stamp, step) for name, value, stamp, step in content.get("metrics", ())],
        params=[Param(name, value) for name, value in content.get("params", {}).items()],
        tags=[RunTag(name, value) for name, value in content.get("tags", {}).items()],
    )


def _dataset(client: MlflowClient, operation: Operation) -> None:
    content = operation.content
    entity = Dataset(
        name=content["name"],
        digest=content["digest"][:36],  # MLflow's limit of characters
        source_type="s3" if content["source"].startswith(S3) else "local",
        source=json.dumps({"uri": content["source"]}),
        profile=json.dumps(content["samples"]),
    )
    tags = [InputTag("mlflow.data.context", "training")]
    client.log_inputs(operation.run_id, datasets=[DatasetInput(entity, tags)])


def _artifact(client: MlflowClient, operation: Operation) -> None:
    client.log_artifact(operation.run_id, str(operation.path), operation.content.get("folder"))


def _status(client: MlflowClient, operation: Operation) -> None:
    client.set_terminated(operation.run_id, operation.content["status"], operation.content["ended"])


def _model(client: MlflowClient, operation: Operation) -> None:
    """Log a model like ``mlflow.pytorch.log_model``, but in steps that are safe to repeat after an interruption."""
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
    outputs = run.outputs.model_outputs if run.outputs else []
    if all(output.model_id != model.model_id for output in outputs):
        client.log_outputs(operation.run_id, [LoggedModelOutput(model.model_id, step=0)])
    client.finalize_logged_model(model.model_id, "READY")


def _promote(client: MlflowClient, operation: Operation) -> None:
    """Register a run's model if it is not yet, and point the aliases to it; does nothing for a run without a model."""
    uri = model_uri(client, operation.run_id)
    if uri is None:
        return
    version = version_of(client, operation.run_id, uri)
    for alias in operation.content["aliases"]:
        client.set_registered_model_alias(REGISTERED_MODEL, alias, version)


def keeps_models(client: MlflowClient, experiment_id: str) -> bool:
    """Whether the server supports logged models (MLflow 3.0 or later); else a model is one of its run's artifacts."""
    try:
        client.search_logged_models([experiment_id], max_results=1)
    except MlflowException as error:
        if not lacks_endpoint(error):
            raise
        return False
    return True


def model_uri(client: MlflowClient, run_id: str) -> str | None:
    """Return the MLflow URI of a run's model; None if it has none."""
    run = client.get_run(run_id).info
    if keeps_models(client, run.experiment_id):
        model = model_of(client, run_id)
        return f"models:/{model.model_id}" if model else None
    return f"{run.artifact_uri}/{MODEL}" if artifacts_of(client, run_id).list_artifacts(MODEL) else None


def artifacts_of(client: MlflowClient, run_id: str) -> ArtifactRepository:
    """Return the artifact repository of a run; the client's own functions would search its logged models too."""
    return get_artifact_repository(client.get_run(run_id).info.artifact_uri)


def model_of(client: MlflowClient, run_id: str) -> LoggedModel | None:
    """Return the logged model of a run; None if it has none."""
    experiment = client.get_run(run_id).info.experiment_id
    models = client.search_logged_models([experiment], f"source_run_id = '{run_id}' AND name = '{MODEL}'")
    return models[0] if models else None


def version_of(client: MlflowClient, run_id: str, uri: str, name: str = REGISTERED_MODEL) -> str:
    """Return the version of the registered model that is this run's model, after registering it if it is not yet."""
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    if versions:
        return str(versions[0].version)
    model_id = uri.removeprefix("models:/") if uri.startswith("models:/") else None
    return str(client.create_model_version(name, uri, run_id, model_id=model_id).version)


_APPLY_BY_KIND: dict[str, Callable[[MlflowClient, Operation], None]] = {
    "batch": _batch,
    "dataset": _dataset,
    "artifact": _artifact,
    "status": _status,
    "model": _model,
    "promote": _promote,
}
