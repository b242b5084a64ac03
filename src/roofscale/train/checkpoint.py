"""Checkpoints that a kill at any moment leaves whole, and that hold no code (``weights_only=True``)."""

import os
from pathlib import Path
from typing import Any

from roofscale.errors import ConfigError, RecordError
from roofscale.files import atomic_write

CHECKPOINT = "checkpoint.pt"
BEST = "best.pt"


def save(content: dict[str, Any], file: Path) -> None:
    """Write atomically: the old one is there until the new one is, whole.

    Raises:
        OSError: the disk is full or gone; the previous checkpoint is still the good one.
    """
    import torch  # a launcher of jobs only asks for the names of these files

    try:
        with atomic_write(file) as stream:
            torch.save(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
    except (OSError, RuntimeError) as error:
        # torch's archive writer complains of a position, and only in passing of the disk
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise OSError(cause.errno, cause.strerror, str(file)) from error


def load(file: Path, fingerprint: str) -> dict[str, Any]:
    """Read a checkpoint of the run config with this fingerprint.

    Raises:
        ConfigError: the checkpoint belongs to another run config.
        RecordError: it is damaged, such as one that was cut short on its way through S3.
    """
    import torch

    try:
        content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        theirs = content["fingerprint"]
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # of torch's archive reader or unpickler, after a flipped bit of any type
        raise RecordError(
            f"{file}: damaged ({type(error).__name__}); expected a checkpoint of Roofscale's. Remove it to train anew."
        ) from error
    if theirs != fingerprint:
        raise ConfigError(
            f"{file}: written by run config {theirs}, and this one is {fingerprint}; a run can only "
            "be resumed unchanged. Use another run folder, or remove this one."
        )
    return content
