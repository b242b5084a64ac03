"""The best model of a run, rebuilt from its weights: ``python -m roofscale.report.trained CONFIG WEIGHTS FOLDER``.

As a command it writes the model as MLflow keeps it, so that whoever wants that need not hold PyTorch and the trace.
"""

import json
import sys
from pathlib import Path

from torch import nn

from roofscale import model as models
from roofscale.config import RunConfig
from roofscale.tracking import save_model
from roofscale.train import checkpoint


def trained_model(config: RunConfig, weights: Path) -> nn.Module:
    """The model of a config with the weights of a run of it."""
    model = models.build(config.with_overrides({"pretrained": False}))
    model.load_state_dict(checkpoint.load(weights, config.fingerprint)["model"])
    return model


def main(config_file: str, weights: str, folder: str) -> None:
    """Write the model into a folder that is not there yet."""
    config = RunConfig().with_overrides(json.loads(Path(config_file).read_text(encoding="utf-8")))
    save_model(trained_model(config, Path(weights)), config.image_size, Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
