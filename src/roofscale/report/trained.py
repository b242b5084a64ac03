"""The best model of a run, rebuilt from its weights and written as MLflow keeps it."""

from pathlib import Path
from typing import TYPE_CHECKING

from roofscale.config import RunConfig
from roofscale.runners.beside import beside
from roofscale.tracking import save_model
from roofscale.train import checkpoint

if TYPE_CHECKING:
    from roofscale.model import RoofNet


@beside
def get_ready(config: RunConfig) -> None:
    """Spend the seconds of imports that writing a model of this config takes, before it is there."""
    _untrained(config)


@beside
def write_model(config: RunConfig, weights: Path, folder: Path) -> None:
    """Write the model of a config, with the weights of a run of it, into a folder that is not there yet."""
    model = _untrained(config)
    model.load_state_dict(checkpoint.load(weights, config.fingerprint)["model"])
    save_model(model, config.image_size, folder)


def _untrained(config: RunConfig) -> "RoofNet":
    from roofscale import model as models  # imports torch, which a launcher of jobs does without

    return models.build(config.with_overrides({"pretrained": False}))
