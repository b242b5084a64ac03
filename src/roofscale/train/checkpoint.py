"""Checkpoints that a kill at any moment leaves whole, and that hold no code (``weights_only=True``)."""

import os
from pathlib import Path
from typing import Any

import torch

from roofscale.errors import ConfigError

CHECKPOINT = "checkpoint.pt"
BEST = "best.pt"


def save(content: dict[str, Any], file: Path) -> None:
    """Write atomically: to a neighbour, flushed to the disk, then renamed over the old one.

    Raises:
        OSError: the disk is full or gone; the previous checkpoint is still the good one.
    """
    partial = file.with_name(f".{file.name}.partial")
    try:
        with partial.open("wb") as stream:
            torch.save(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    except (OSError, RuntimeError) as error:
        # torch's archive writer complains of a position, and only in passing of the disk
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise OSError(cause.errno, cause.strerror, str(file)) from error
    finally:
        partial.unlink(missing_ok=True)


def load(file: Path, fingerprint: str) -> dict[str, Any]:
    """Read a checkpoint of the run config with this fingerprint.

    Raises:
        ConfigError: the checkpoint belongs to another run config.
    """
    content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    if content["fingerprint"] != fingerprint:
        raise ConfigError(
            f"{file}: written by run config {content['fingerprint']}, and this one is {fingerprint}; a run can only "
            "be resumed unchanged. Use another run folder, or remove this one."
        )
    return content
