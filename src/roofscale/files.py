"""Files read and written: texts of any editor, records of our own, and outputs that appear whole or not at all."""

import codecs
import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from roofscale.errors import ConfigError, EnvironmentFault, RecordError, RoofscaleError, one_line, shown

_T = TypeVar("_T")
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
# What a wrong shape of a JSON value raises where it is taken apart.
_MISSHAPEN = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


@contextlib.contextmanager
def atomic_write(file: Path) -> Iterator[IO[bytes]]:
    """Write a file that takes its name, or replaces the one before, at the end; an error leaves the one before.

    It is not flushed to the disk: a caller who needs it there after a loss of power calls ``os.fsync``.
    """
    partial = file.with_name(f".{file.name}.partial")
    try:
        with partial.open("wb") as stream:
            yield stream
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_dir(folder: Path) -> Iterator[Path]:
    """Yield the name under which ``folder`` is to be built, beside it; the caller renames it to ``folder``.

    What is not renamed is removed afterwards, and what killed processes left unfinished is removed before.
    """
    import psutil  # only where data is made; training reads this module too

    for left in folder.parent.glob(f".{folder.name}.partial-*"):
        owner = left.name.rpartition("-")[2]
        if owner.isdecimal() and (int(owner) == os.getpid() or not psutil.pid_exists(int(owner))):
            shutil.rmtree(left, ignore_errors=True)
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def naming(file: Path | None) -> Iterator[None]:
    """Put a file's name before the message of a ConfigError about its content; nothing where there is no file."""
    try:
        yield
    except ConfigError as error:
        if file is None:
            raise
        raise ConfigError(f"{shown(file)}: {error}") from error


def read_text(file: Path) -> str:
    """Read a text of the user's with its line ends: UTF-8, with a byte order mark or without, or UTF-16 with one.

    Raises:
        ConfigError: it is in another encoding.
        OSError: it is not there, or may not be read.
    """
    raw = file.read_bytes()
    encoding = next((name for mark, name in _MARKS.items() if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{shown(file)}, line {line}: expected UTF-8, found the byte 0x{raw[error.start]:02x}, as in a file that "
            "was saved as ANSI. Save it as UTF-8."
        ) from error
    if "\0" in text:
        what = "bytes of 0, as in UTF-16 without a byte order mark"
        raise ConfigError(f"{shown(file)}: expected UTF-8, found {what}. Save it as UTF-8.")
    return text


def write_text(file: Path, text: str) -> None:
    """Write a text with its line ends as they are; a kill leaves the one before."""
    with atomic_write(file) as stream:
        stream.write(text.encode("utf-8"))


def read_yaml(file: Path, example: str) -> dict[str, Any]:
    """Read a YAML mapping of the user's.

    Args:
        example: a line of such a file, for messages.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    import yaml  # only runs that name a file pay for it

    expected = f"expected lines like {example!r}"
    try:
        content = yaml.safe_load(read_text(file))
    except ConfigError:
        raise
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:  # PyYAML passes on that a date is impossible
        raise ConfigError(f"{shown(file)}: cannot be read ({one_line(error)}); {expected}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{shown(file)}: {expected}, found {type(content).__name__}.")
    return content


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object that Roofscale has written; raises like ``read_record``."""
    return read_record(file, lambda content: content)


def read_record(file: Path, build: Callable[[dict[str, Any]], _T]) -> _T:
    """Read a JSON object that Roofscale has written, and build what it describes.

    Raises:
        RecordError: the file is damaged, or was written by another version.
        OSError: it is not there, or may not be read.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError(f"a {type(content).__name__} in place of an object")
        return build(content)
    except RoofscaleError as error:
        raise RecordError(f"{shown(file)}: {error}") from error
    except _MISSHAPEN as error:
        raise RecordError(
            f"{shown(file)}: damaged, or of another version of Roofscale ({type(error).__name__}: {one_line(error)}). "
            "Move it away, and the same command makes that part anew."
        ) from error


def write_json(file: Path, content: Any) -> None:
    """Write JSON atomically: a reader finds the old file or the whole new one."""
    write_text(file, json.dumps(content, indent=1))


def require_output(
    option: str,
    file: Path,
    endings: Sequence[str],
    taken: Mapping[Path, str],
    is_ours: Callable[[Path], bool] = lambda _: True,
) -> None:
    """Refuse, before any work, an output that could not be written or would replace what is not ours.

    Args:
        option: how the user has named it, such as ``-o``.
        file: where it is to be written.
        endings: that its name may have.
        taken: files that are used otherwise, each with a word for what it is.
        is_ours: whether a file that is there already was written by Roofscale, so that it may be replaced.

    Raises:
        ConfigError: it must not be written there.
        EnvironmentFault: this user may not write there.
    """
    where, folder = f"{option} {shown(file)}", file.resolve().parent
    if file.suffix.lower() not in endings:
        raise ConfigError(f"{where}: expected a name that ends in {' or '.join(endings)}.")
    if file.is_dir():
        raise ConfigError(f"{where}: that is a folder; expected the name of a file.")
    if not folder.is_dir():
        raise ConfigError(f"{where}: there is no folder {file.parent}; expected one that exists.")
    for other, what in taken.items():
        if file.resolve() == other.resolve() or (file.exists() and other.exists() and file.samefile(other)):
            raise ConfigError(f"{where}: that is {what}; expected another name.")
    if not os.access(folder, os.W_OK):
        raise EnvironmentFault(f"{where}: this user may not write in {file.parent}; name another folder.")
    if file.exists() and not is_ours(file):
        raise ConfigError(f"{where}: there is a file that Roofscale has not written; name another, or move it away.")
