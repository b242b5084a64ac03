"""Stored models of runs: lookup by run, alias or URI, registration under a name, and loading."""

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from roofscale.errors import ConfigError
from roofscale.tracking.apply import REGISTERED_MODEL, model_uri, version_of
from roofscale.tracking.records import RunRecord, from_mlflow, is_not_found
from roofscale.tracking.server import store_exists, tracking_uri, translate_errors

if TYPE_CHECKING:
    import torch

CHAMPION = "champion"  # alias of the model that predictions use by default
_DEFAULTS = (f"{REGISTERED_MODEL}@{CHAMPION}", f"{REGISTERED_MODEL}@last-good")
_RUN = re.compile(r"(?:runs:/)?([0-9a-f]{32})(?:/model)?")
_VERSION = re.compile(r"(?:models:/)?([^@/:]+)(?:@([^@/:]+)|/(\d+))")

# Others may write to the registry, and loading a pickle executes its code. Roofscale's models are traced graphs.
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")


@dataclass(frozen=True)
class StoredModel:
    """A model in MLflow, and the run that trained it, whose parameters are its run config."""

    run: RunRecord
    uri: str  # for mlflow.pytorch.load_model
    named: str  # as users name it: run id, name@alias or name/version


def find_model(named: str = "") -> StoredModel:
    """Find a model by run id, ``name@alias``, ``name/version``, or one of these as an MLflow URI.

    Without a name: the champion, else the model with the alias ``last-good``, which the latest phase has set.

    Raises:
        ConfigError: the name has none of these forms, or the server has no such model.
        TrackingError: the server does not answer.
    """
    if not named:
        model = next(filter(None, map(_find, _DEFAULTS)), None)
    elif _RUN.fullmatch(named) or _VERSION.fullmatch(named):
        model = _find(named)
    else:
        raise ConfigError(
            f"model {named!r}: expected the id of a run, a registered model as name@alias or name/version, or one of "
            f"MLflow's addresses (runs:/..., models:/...); for example {_DEFAULTS[0]}."
        )
    if model is None:
        raise ConfigError(
            f"no model {named or ' or '.join(_DEFAULTS)} at {tracking_uri()}: expected a run that ended well, or an "
            "alias that was given. Train one with `roofscale train`, and name it with `roofscale register RUN`; or set "
            "MLFLOW_TRACKING_URI to the server that has it."
        )
    return model


def register(run_id: str, alias: str, name: str = REGISTERED_MODEL) -> StoredModel:
    """Register the model of a run if it is not yet, and point an alias to it; idempotent.

    Raises:
        ConfigError: there is no such run, or it has no model.
        TrackingError: the server does not answer, or refuses the name.
    """
    model = find_model(run_id)
    with translate_errors():
        client = MlflowClient()
        version = version_of(client, model.run.run_id, model.uri, name)
        client.set_registered_model_alias(name, alias, version)
    return StoredModel(model.run, model.uri, f"{name}/{version}")


def read_weights(model: StoredModel) -> "dict[str, torch.Tensor]":
    """Load the state dict of a model that ``TrackedRun.model`` has logged, without executing code of the model.

    Raises:
        ConfigError: the model is a pickle, so another program has logged it.
        TrackingError: the server does not answer.
    """
    import mlflow.pytorch

    with translate_errors():
        try:
            state: dict[str, torch.Tensor] = mlflow.pytorch.load_model(model.uri).state_dict()
        except MlflowException as error:
            if "pickle" not in str(error):
                raise
            raise ConfigError(
                f"model {model.named}: it is a pickle, which may execute any code when it is loaded; expected one that "
                "Roofscale has logged (pt2)."
            ) from None
    return state


def _find(named: str) -> StoredModel | None:
    if not store_exists():
        return None
    with translate_errors():
        client = MlflowClient()
        try:
            if by_run := _RUN.fullmatch(named):
                record, uri = from_mlflow(client.get_run(by_run[1])), model_uri(client, by_run[1])
                return StoredModel(record, uri, by_run[1]) if uri else None
            version = _version(client, named)
            run = from_mlflow(client.get_run(version.run_id)) if version.run_id else None
        except MlflowException as error:
            if is_not_found(error):
                return None
            raise
    return StoredModel(run, f"models:/{version.name}/{version.version}", named) if run else None


def _version(client: MlflowClient, named: str) -> ModelVersion:
    parts = _VERSION.fullmatch(named)
    assert parts, "find_model has checked the name"
    name, alias, version = parts.groups()
    return client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, version)
