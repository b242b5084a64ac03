"""The errors that a user can solve, and how those of the system and of libraries become one of them.

Each message says the value, what was expected and the remedy.
"""

import difflib
import enum
import errno
from collections.abc import Iterable
from pathlib import Path

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)  # of an OSError: no room, or none left of a quota
# Of an OSError: the path that the user named is not what was expected.
_WRONG_PATH = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.ENOTEMPTY,
)
_NO_RIGHT = (errno.EACCES, errno.EPERM, errno.EROFS)
# Packages whose errors tell of a server, and of a file that cannot be read.
_OF_SERVERS = ("mlflow", "requests", "urllib3", "http", "socket", "ssl", "sqlalchemy", "botocore", "boto3", "docker")
_OF_FILES = ("rasterio", "PIL", "h5py", "yaml")


class ExitCode(enum.IntEnum):
    """What a command ends with, so that a script can tell the reasons apart."""

    DONE = 0
    FAILED = 1  # what was asked for was done, and the answer is no
    USER_ERROR = 2  # an argument, a file or data set of the user's; click's own code for usage
    NOT_ENOUGH_EVIDENCE = 3
    ENVIRONMENT = 4  # server, disk, memory, permission
    CRASHED = 70  # a fault of Roofscale's own (EX_SOFTWARE of sysexits.h)
    INTERRUPTED = 130  # what a shell reports of a program that Ctrl-C ended


class RoofscaleError(Exception):
    """Base of every error that the command line prints as one clear message instead of a traceback."""

    exit_code = ExitCode.USER_ERROR


class ConfigError(RoofscaleError, ValueError):
    """A run config, phase file or command-line value that cannot be used."""


class DataError(RoofscaleError):
    """A data set, or one file of it, that is missing, broken or inconsistent; the message names the path."""


class RecordError(RoofscaleError):
    """A file that Roofscale has written and that is damaged by now; the message names the path."""


class EnvironmentFault(RoofscaleError):
    """The machine or a server that the command needs refuses: nothing that the user has said is wrong."""

    exit_code = ExitCode.ENVIRONMENT


def to_user_error(error: Exception) -> RoofscaleError | None:
    """Turn an error of the system or of a library into value, expectation and remedy.

    Returns:
        None where it tells of nothing that a user has done or could mend, so of a fault of Roofscale's own.
    """
    if isinstance(error, RoofscaleError):
        return error
    package, words = type(error).__module__.partition(".")[0], one_line(error)
    if package in _OF_FILES:
        return DataError(f"a file cannot be read ({words}); expected one that is whole. Download or save it again.")
    if package in _OF_SERVERS or isinstance(error, ConnectionError | TimeoutError):
        return EnvironmentFault(f"a server did not do what was asked of it ({words}). Try the same command again.")
    if isinstance(error, OSError):
        return _of_system(error)
    if isinstance(error, MemoryError):
        return EnvironmentFault(f"this machine's memory is used up ({words}). Free some, or ask for less at a time.")
    if isinstance(error, UnicodeEncodeError) and error.reason.startswith("surrogates"):
        name = error.object.encode("utf-8", "backslashreplace").decode()
        return ConfigError(f"{name}: a name that is no UTF-8. Rename it (convmv does it for whole folders).")
    return None


def _of_system(error: OSError) -> RoofscaleError | None:
    where, why = shown(error.filename or Path.cwd()), error.strerror or one_line(error)
    if error.errno in DISK_FULL:
        return EnvironmentFault(
            f"{where}: the disk is full ({why}); make room, and the same command goes on where it stopped."
        )
    if error.errno in _NO_RIGHT:
        return EnvironmentFault(
            f"{where}: this user may not do that ({why}); expected a place that can be read and written. Change its "
            "rights, or work in another folder."
        )
    if error.errno in _WRONG_PATH:
        return ConfigError(f"{where}: {why}. Correct the path.")
    if error.errno is None:
        return None  # raised by a library, in words of its own
    return EnvironmentFault(f"{where}: {why} (error {error.errno} of the system).")


def one_line(error: BaseException) -> str:
    """An error's own words, or its name where it has none."""
    return " ".join(str(error).split())[:500] or type(error).__name__


def shown(path: object) -> str:
    """A path to be printed: bytes that are no UTF-8 as escapes."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the nearest known name, or the sorted list of all where none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(names)}."
