"""The best model of a run, rebuilt from its weights and written as MLflow keeps it."""

from pathlib import Path

from roofscale.config import RunConfig
from roofscale.tracking import save_model
from roofscale.train import checkpoint


def write_model(config: RunConfig, weights: Path, folder: Path) -> None:
    """Write the model of a config, with the weights of a run of it, into a folder that is not there yet."""
    from roofscale import model as models  # imports PyTorch
    from roofscale.torch_compat import TRACING

    with TRACING:
        model = models.build(config.with_overrides({"pretrained": False}))
        model.load_state_dict(checkpoint.load(weights, config.fingerprint)["model"])
        save_model(model, config.image_size, folder)
