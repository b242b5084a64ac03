"""Click group that turns errors into messages and exit codes."""

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
    """Return an error as a Click exception, without secrets, with its exit code."""
    shown = click.ClickException(without_secrets(str(error)))
    setattr(shown, "exit_code", int(error.exit_code))  # noqa: B010  # click types it as a class variable
    return shown


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Turn every exception into one message and an exit code; an unknown one leaves its traceback in a file."""
    try:
        yield
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except KeyboardInterrupt:
        click.echo("Interrupted.", err=True)
        sys.exit(ExitCode.INTERRUPTED)
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.EPIPE:
            raise  # the reader of the output has closed it; click exits quietly
        if known := to_user_error(error):
            raise _click_error(known) from error
        file = _keep_traceback(error)
        click.echo(
            f"Error: a fault of Roofscale's own ({type(error).__name__}), not of your input. "
            f"{f'The traceback is in {file}' if file else 'The traceback could not be written'}; please report it.",
            err=True,
        )
        sys.exit(ExitCode.CRASHED)


def _keep_traceback(error: Exception) -> Path | None:
    """Write version, command line and traceback into a file and return it; None if no folder can be written."""
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


class ErrorGroup(click.Group):
    """A group whose commands report errors as messages, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # file names that are not UTF-8 are printed as escapes
                stream.reconfigure(errors="backslashreplace")
        with _plain_errors():
            return super().invoke(ctx)
