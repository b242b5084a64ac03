"""The errors that a user can solve, and the conversion of system and library errors into them.

Each message gives the value, what was expected and the remedy.
"""

import difflib
import enum
import errno
from collections.abc import Iterable
from pathlib import Path

# Codes of an OSError: the disk or a quota is full; the user's path is wrong; a permission is missing.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
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
# Packages whose exceptions report a failing server, and an unreadable file.
_OF_SERVERS = ("mlflow", "requests", "urllib3", "http", "socket", "ssl", "sqlalchemy", "botocore", "boto3", "docker")
_OF_FILES = ("rasterio", "PIL", "h5py", "yaml")


class ExitCode(enum.IntEnum):
    """The exit code of a command, by which a script can distinguish the reasons."""

    DONE = 0
    FAILED = 1  # the command did its work, and the verdict is failed
    USER_ERROR = 2  # an argument, file or data set of the user's is wrong; also click's code for wrong usage
    NOT_ENOUGH_EVIDENCE = 3
    ENVIRONMENT = 4  # server, disk, memory or permission
    CRASHED = 70  # a bug in Roofscale (EX_SOFTWARE of sysexits.h)
    INTERRUPTED = 130  # a shell's code for a program that SIGINT ended (128 + 2)


class RoofscaleError(Exception):
    """Base class of the errors that the command line prints as one message instead of a traceback."""

    exit_code = ExitCode.USER_ERROR


class ConfigError(RoofscaleError, ValueError):
    """A run config, phase file or command-line value that cannot be used."""


class DataError(RoofscaleError):
    """A data set, or one file of it, that is missing, broken or inconsistent; the message names the path."""


class RecordError(RoofscaleError):
    """A file written by Roofscale that is damaged; the message names the path."""


class EnvironmentFault(RoofscaleError):
    """A failure of the machine or of a server that the command needs; the user's input is not at fault."""

    exit_code = ExitCode.ENVIRONMENT


def to_user_error(error: Exception) -> RoofscaleError | None:
    """Convert an error of the system or of a library into one with value, expectation and remedy.

    Returns:
        None if the user can neither have caused nor solve it: a bug in Roofscale.
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
            f"{where}: this user may not do that ({why}); expected a path that can be read and written. Change its "
            "rights, or work in another folder."
        )
    if error.errno in _WRONG_PATH:
        return ConfigError(f"{where}: {why}. Correct the path.")
    if error.errno is None:
        return None  # raised by a library, not by the system
    return EnvironmentFault(f"{where}: {why} (error {error.errno} of the system).")


def one_line(error: BaseException) -> str:
    """Return an error's message on one line of at most 500 characters; its type's name if the message is empty."""
    return " ".join(str(error).split())[:500] or type(error).__name__


def shown(path: object) -> str:
    """Return a path for printing, with bytes that are no UTF-8 as escapes."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` with the nearest known name, or a sorted list of all if none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(names)}."
