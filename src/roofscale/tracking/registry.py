"""The registered model ``roofscale``: a version for each run that was promoted, found again by an alias."""

from collections.abc import Iterable

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

REGISTERED_MODEL = "roofscale"


def promote(client: MlflowClient, run_id: str, aliases: Iterable[str]) -> None:
    """Register a run's model, unless it is, and point aliases to it; a run without a model is passed over."""
    outputs = client.get_run(run_id).outputs
    models = outputs.model_outputs if outputs else []
    if not models:
        return
    version = _version_of(client, run_id, models[-1].model_id)
    for alias in aliases:
        client.set_registered_model_alias(REGISTERED_MODEL, alias, version)


def _version_of(client: MlflowClient, run_id: str, model_id: str) -> str:
    try:
        client.create_registered_model(REGISTERED_MODEL)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    known = client.search_model_versions(f"name = '{REGISTERED_MODEL}' and run_id = '{run_id}'")
    if known:
        return str(known[0].version)
    source = f"models:/{model_id}"
    return str(client.create_model_version(REGISTERED_MODEL, source, run_id, model_id=model_id).version)
