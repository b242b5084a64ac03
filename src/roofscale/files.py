"""Reading and writing of files: texts in any common encoding, JSON records, and atomic outputs."""

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
# Exceptions while a JSON value is parsed and its fields are read, if it has another structure than expected.
_MISSHAPEN = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


@contextlib.contextmanager
def atomic_write(file: Path) -> Iterator[IO[bytes]]:
    """Open a stream whose content becomes ``file`` when the block ends; after an error the old file stays.

    The content is not synced: a caller that needs it to survive a loss of power calls ``os.fsync``.
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
    """Yield a path next to ``folder`` at which the caller builds it, and which the caller then renames to ``folder``.

    What was not renamed is removed at the end. Leftovers of killed processes are removed first; the suffix of their
    names is the process id.
    """
    import psutil  # late: only preparing data needs it, and training imports this module too

    for leftover in folder.parent.glob(f".{folder.name}.partial-*"):
        owner = leftover.name.rpartition("-")[2]
        if owner.isdecimal() and (int(owner) == os.getpid() or not psutil.pid_exists(int(owner))):
            shutil.rmtree(leftover, ignore_errors=True)
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def naming(file: Path | None) -> Iterator[None]:
    """Prefix the message of a ConfigError raised inside with the file's name; do nothing if ``file`` is None."""
    try:
        yield
    except ConfigError as error:
        if file is None:
            raise
        raise ConfigError(f"{shown(file)}: {error}") from error


def read_text(file: Path) -> str:
    """Read a user's text file without changing its line ends: UTF-8, or UTF-16 with a byte order mark.

    Raises:
        ConfigError: the file has another encoding.
        OSError: the file does not exist, or may not be read.
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
    """Write a text as UTF-8, atomically and without changing its line ends."""
    with atomic_write(file) as stream:
        stream.write(text.encode("utf-8"))


def read_yaml(file: Path, example: str) -> dict[str, Any]:
    """Read a user's YAML file that holds a mapping.

    Args:
        file: to read.
        example: a line of such a file, for messages.

    Raises:
        ConfigError: the file cannot be read, or holds no mapping.
    """
    import yaml  # late: most commands read no YAML file of the user's

    expected = f"expected lines like {example!r}"
    try:
        content = yaml.safe_load(read_text(file))
    except ConfigError:
        raise
    except (
        OSError,
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ) as error:  # PyYAML lets the ValueError of an impossible date through
        raise ConfigError(f"{shown(file)}: cannot be read ({one_line(error)}); {expected}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{shown(file)}: {expected}, found {type(content).__name__}.")
    return content


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object that Roofscale has written.

    Raises:
        RecordError, OSError: as in ``read_record``.
    """
    return read_record(file, lambda content: content)


def read_record(file: Path, build: Callable[[dict[str, Any]], _T]) -> _T:
    """Read a JSON object that Roofscale has written, and build a value from it.

    Args:
        file: to read.
        build: builds the value; errors that it raises on a wrong structure count as damage.

    Raises:
        RecordError: the file is damaged, or was written by another version.
        OSError: the file does not exist, or may not be read.
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
    """Write JSON atomically: a reader finds the old file or the complete new one."""
    write_text(file, json.dumps(content, indent=1))


def require_output(
    option: str,
    file: Path,
    endings: Sequence[str],
    taken: Mapping[Path, str],
    is_ours: Callable[[Path], bool] = lambda _: True,
) -> None:
    """Check, before any work, that an output can be written and replaces no file of the user's.

    Args:
        option: the option that names the output, such as ``-o``.
        file: the output.
        endings: the allowed suffixes of its name, in lower case.
        taken: files in other use, each with a word for what it is.
        is_ours: whether an existing file was written by Roofscale, so that it may be replaced.

    Raises:
        ConfigError: the name is wrong, in use, or that of a file that Roofscale has not written.
        EnvironmentFault: this user may not write in the folder.
    """
    output, folder = f"{option} {shown(file)}", file.resolve().parent
    if file.suffix.lower() not in endings:
        raise ConfigError(f"{output}: expected a name that ends in {' or '.join(endings)}.")
    if file.is_dir():
        raise ConfigError(f"{output}: that is a folder; expected the name of a file.")
    if not folder.is_dir():
        raise ConfigError(f"{output}: there is no folder {file.parent}; expected one that exists.")
    for other, what in taken.items():
        if file.resolve() == other.resolve() or (file.exists() and other.exists() and file.samefile(other)):
            raise ConfigError(f"{output}: that is {what}; expected another name.")
    if not os.access(folder, os.W_OK):
        raise EnvironmentFault(f"{output}: this user may not write in {file.parent}; name another folder.")
    if file.exists() and not is_ours(file):
        raise ConfigError(f"{output}: there is a file that Roofscale has not written; name another, or move it away.")
