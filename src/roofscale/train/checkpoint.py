"""Checkpoints that a kill at any moment leaves whole, and that hold no code (``weights_only=True``)."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from roofscale.errors import ConfigError

CHECKPOINT = "checkpoint.pt"
BEST = "best.pt"
_DESCRIPTORS = "/proc/self/fd"


def save(content: dict[str, Any], file: Path) -> None:
    """Write atomically: the old one is there until the new one is, whole.

    Raises:
        OSError: the disk is full or gone; the previous checkpoint is still the good one.
    """
    import torch  # a launcher of jobs only asks for the names of these files

    try:
        with _appearing(file) as stream:
            torch.save(content, stream)
    except (OSError, RuntimeError) as error:
        # torch's archive writer complains of a position, and only in passing of the disk
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise OSError(cause.errno, cause.strerror, str(file)) from error


@contextlib.contextmanager
def _appearing(file: Path) -> Iterator[IO[bytes]]:
    """A file that takes its name only once it is written and flushed to the disk; until then, it has none.

    Whoever copies the folder meanwhile, as SageMaker does with a job's checkpoints, sees no half of it come and go.
    Only where a file system knows no files without a name does it have another one until then.
    """
    partial = file.with_name(f".{file.name}.partial")
    descriptor = _unnamed(file.parent)
    try:
        with partial.open("wb") if descriptor is None else os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            if descriptor is not None:
                partial.unlink(missing_ok=True)
                # A link cannot replace, a rename can. src_dir_fd counts for nothing here, but has Python follow /proc.
                os.link(f"{_DESCRIPTORS}/{descriptor}", partial, src_dir_fd=descriptor)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def _unnamed(folder: Path) -> int | None:
    """Open a file without a name that may be given one in this folder; None where that is not possible."""
    if not hasattr(os, "O_TMPFILE") or not os.path.exists(_DESCRIPTORS):
        return None
    try:
        return os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o666)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT):  # open(2): no support for it
            return None
        raise


def load(file: Path, fingerprint: str) -> dict[str, Any]:
    """Read a checkpoint of the run config with this fingerprint.

    Raises:
        ConfigError: the checkpoint belongs to another run config.
    """
    import torch

    content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    if content["fingerprint"] != fingerprint:
        raise ConfigError(
            f"{file}: written by run config {content['fingerprint']}, and this one is {fingerprint}; a run can only "
            "be resumed unchanged. Use another run folder, or remove this one."
        )
    return content
