"""Checkpoints: written atomically, so that a kill leaves the last one intact, and free of code (``weights_only``)."""

import os
from pathlib import Path
from typing import Any

from roofscale.errors import ConfigError, RecordError
from roofscale.files import atomic_write

CHECKPOINT = "checkpoint.pt"
BEST = "best.pt"


def save(content: dict[str, Any], file: Path) -> None:
    """Write a checkpoint atomically: the previous one stays until the new one is complete and on disk.

    Raises:
        OSError: the disk is full or gone; the previous checkpoint is still there.
    """
    import torch  # late: the launcher imports this module for the file names alone

    try:
        with atomic_write(file) as stream:
            torch.save(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
    except (OSError, RuntimeError) as error:
        # torch's archive writer raises a RuntimeError about a file position; the OSError is its context
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise OSError(cause.errno, cause.strerror, str(file)) from error


def load(file: Path, fingerprint: str) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Args:
        file: the checkpoint.
        fingerprint: of the run config that resumes from it.

    Raises:
        ConfigError: the checkpoint belongs to another run config.
        RecordError: it is damaged, such as one that was truncated on its way through S3.
        FileNotFoundError, PermissionError: it cannot be opened.
    """
    import torch

    try:
        content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        written_by = content["fingerprint"]
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # a flipped bit makes torch's reader and unpickler raise nearly any type
        raise RecordError(
            f"{file}: damaged ({type(error).__name__}); expected a checkpoint of Roofscale's. Remove it to train anew."
        ) from error
    if written_by != fingerprint:
        raise ConfigError(
            f"{file}: written by run config {written_by}, and this one is {fingerprint}; a run can only "
            "be resumed unchanged. Use another run folder, or remove this one."
        )
    return content
