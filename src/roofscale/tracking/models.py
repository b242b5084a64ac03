"""The models that runs have left: found by run, alias or address, registered under a name, and read."""

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

CHAMPION = "champion"  # the alias of the model that predictions are made with
_USUAL = (f"{REGISTERED_MODEL}@{CHAMPION}", f"{REGISTERED_MODEL}@last-good")
_RUN = re.compile(r"(?:runs:/)?([0-9a-f]{32})(?:/model)?")
_VERSION = re.compile(r"(?:models:/)?([^@/:]+)(?:@([^@/:]+)|/(\d+))")

# Others may write to the registry, and a pickle runs whatever code it likes. Ours are traced graphs, which have none.
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")


@dataclass(frozen=True)
class StoredModel:
    """A model in MLflow with the run that trained it, whose parameters are its run config."""

    run: RunRecord
    uri: str  # for MLflow
    named: str  # as a user would name it


def find_model(named: str = "") -> StoredModel:
    """Find a model: by run id, ``name@alias``, ``name/version``, or these as MLflow's addresses.

    Without a name: the champion, else the last good model of whichever phase came last.

    Raises:
        ConfigError: it is no such name, or the server has no such model.
        TrackingError: the server does not answer.
    """
    if not named:
        found = next(filter(None, map(_find, _USUAL)), None)
    elif _RUN.fullmatch(named) or _VERSION.fullmatch(named):
        found = _find(named)
    else:
        raise ConfigError(
            f"model {named!r}: expected the id of a run, a registered model as name@alias or name/version, or one of "
            f"MLflow's addresses (runs:/..., models:/...); for example {_USUAL[0]}."
        )
    if found is None:
        raise ConfigError(
            f"no model {named or ' or '.join(_USUAL)} at {tracking_uri()}: expected a run that ended well, or an alias "
            "that was given. Train one with `roofscale train`, and name it with `roofscale register RUN`; or set "
            "MLFLOW_TRACKING_URI to where it is."
        )
    return found


def register(run_id: str, alias: str, name: str = REGISTERED_MODEL) -> StoredModel:
    """Register the model of a run, unless it is, and point an alias to it; doing it again changes nothing.

    Raises:
        ConfigError: there is no such run, or it has no model.
        TrackingError: the server does not answer, or will not have the name.
    """
    model = find_model(run_id)
    with translate_errors():
        client = MlflowClient()
        version = version_of(client, model.run.run_id, model.uri, name)
        client.set_registered_model_alias(name, alias, version)
    return StoredModel(model.run, model.uri, f"{name}/{version}")


def read_weights(model: StoredModel) -> "dict[str, torch.Tensor]":
    """Read the state of a model that ``TrackedRun.model`` has logged, without running any code of it.

    Raises:
        ConfigError: it was logged by somebody else, in a form that cannot be read so.
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
                f"model {model.named}: it is a pickle, which may run any code as it is read; expected one that "
                "Roofscale has logged (pt2)."
            ) from None
    return state


def _find(named: str) -> StoredModel | None:
    if not store_exists():
        return None
    with translate_errors():
        client = MlflowClient()
        try:
            if of_run := _RUN.fullmatch(named):
                return _of_run(client, of_run[1])
            version = _version(client, named)
            run = from_mlflow(client.get_run(version.run_id)) if version.run_id else None
        except MlflowException as error:
            if is_not_found(error):
                return None
            raise
    return StoredModel(run, f"models:/{version.name}/{version.version}", named) if run else None


def _of_run(client: MlflowClient, run_id: str) -> StoredModel | None:
    run, uri = from_mlflow(client.get_run(run_id)), model_uri(client, run_id)
    return StoredModel(run, uri, run_id) if uri else None


def _version(client: MlflowClient, named: str) -> ModelVersion:
    parts = _VERSION.fullmatch(named)
    assert parts, "whoever asks has looked at the name"
    name, alias, version = parts.groups()
    return client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, version)
