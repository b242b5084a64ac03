"""Files that appear when they are whole, also to whoever copies their folder at any moment."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_DESCRIPTORS = "/proc/self/fd"


@contextlib.contextmanager
def appearing(file: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes its name, or replaces the one before, at the end; an error leaves the one before.

    Until then it has no name: whoever copies the folder meanwhile, as SageMaker does with a job's checkpoints, sees no
    half of it come and go. Only where a file system knows no files without a name does it have another one until then.
    It is not flushed to the disk: who needs it there after a loss of power calls ``os.fsync``.
    """
    partial = file.with_name(f".{file.name}.partial")
    descriptor = _unnamed(file.parent)
    try:
        with partial.open("wb") if descriptor is None else os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            if descriptor is not None:
                if _named(descriptor, file):
                    return
                partial.unlink(missing_ok=True)
                _named(descriptor, partial)  # a link cannot replace, a rename can
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def _named(descriptor: int, file: Path) -> bool:
    """Give a name to a file without one; False where the name is taken."""
    try:
        # src_dir_fd counts for nothing here, but has Python follow /proc.
        os.link(f"{_DESCRIPTORS}/{descriptor}", file, src_dir_fd=descriptor)
    except FileExistsError:
        return False
    return True


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
