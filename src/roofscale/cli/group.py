"""The kind of group that all commands belong to."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from roofscale.errors import DISK_FULL, RoofscaleError


@contextmanager
def _plain_errors() -> Iterator[None]:
    """A user's error is one clear message and exit 2, not a traceback."""
    try:
        yield
    except RoofscaleError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        where = f"{error.filename or Path.cwd()}: the disk is full ({error.strerror})"
        raise click.ClickException(f"{where}; make room, and the same command goes on where it stopped.") from error


class Group(click.Group):
    """Commands whose user errors are printed plainly."""

    def invoke(self, ctx: click.Context) -> Any:
        with _plain_errors():
            return super().invoke(ctx)
