"""The kind of group that all commands belong to."""

import datetime
import errno
import io
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from roofscale import __version__
from roofscale.addresses import without_secrets
from roofscale.errors import ExitCode, RoofscaleError, to_user_error


def _click_error(error: RoofscaleError) -> click.ClickException:
    """An error in words, with the exit code of its kind."""
    told = click.ClickException(without_secrets(str(error)))
    setattr(told, "exit_code", int(error.exit_code))  # noqa: B010  # which click types as a variable of the class
    return told


@contextmanager
def _plain_errors() -> Iterator[None]:
    """One clear message and an exit code that tells who can mend it, never a traceback."""
    try:
        yield
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except KeyboardInterrupt:
        click.echo("Interrupted.", err=True)
        sys.exit(ExitCode.INTERRUPTED)
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.EPIPE:
            raise  # the reader of our output has gone; click ends quietly
        if known := to_user_error(error):
            raise _click_error(known) from error
        kept = _keep_traceback(error)
        click.echo(
            f"Error: a fault of Roofscale's own ({type(error).__name__}); nothing that you asked for is wrong by that. "
            f"{f'What happened stands in {kept}' if kept else 'It could not be written down'}; please report it.",
            err=True,
        )
        sys.exit(ExitCode.CRASHED)


def _keep_traceback(error: Exception) -> Path | None:
    """Write down what a report of a crash needs; None where there is no place that can be written."""
    lines = without_secrets("".join(traceback.format_exception(error)))
    words = without_secrets(" ".join(sys.argv))
    name = f"roofscale-crash-{datetime.datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}.txt"
    for folder in (Path("runs"), Path(tempfile.gettempdir())):
        try:
            file = folder / name
            file.write_text(f"roofscale {__version__}: {words}\n{lines}", encoding="utf-8", errors="backslashreplace")
            return file
        except OSError:
            continue
    return None


class Group(click.Group):
    """Commands whose errors are told plainly."""

    def invoke(self, ctx: click.Context) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # names that are no UTF-8 are shown as escapes
                stream.reconfigure(errors="backslashreplace")
        with _plain_errors():
            return super().invoke(ctx)
