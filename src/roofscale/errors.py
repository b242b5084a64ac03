"""The errors that are a user's to solve: each message says the value, what was expected and the remedy."""

import difflib
import errno
from collections.abc import Iterable

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)  # of an OSError: no room, or none left of a quota


class RoofscaleError(Exception):
    """Base of every error that the command line prints as one clear message instead of a traceback."""


class ConfigError(RoofscaleError, ValueError):
    """A run config, phase file or command-line value that cannot be used."""


class DataError(RoofscaleError):
    """A data set, or one file of it, that is missing, broken or inconsistent; the message names the path."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the nearest known name, or the sorted list of all where none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(names)}."
