"""Folders that appear when they are whole: built under another name, and renamed at the end."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def under_construction(folder: Path) -> Iterator[Path]:
    """Yield the name under which ``folder`` is to be built, beside it; whoever built it renames it to ``folder``.

    What is not renamed is removed afterwards, and what killed processes left unfinished is removed before.
    """
    _sweep(folder)
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove what processes that are no more left unfinished."""
    import psutil  # only where data is made; training reads this package too

    for partial in folder.parent.glob(f".{folder.name}.partial-*"):
        owner = int(partial.name.rpartition("-")[2])
        if owner == os.getpid() or not psutil.pid_exists(owner):
            shutil.rmtree(partial, ignore_errors=True)
