"""Documents that a person edits as well: read to the byte, and never left half written."""

from pathlib import Path

from roofscale.appear import appearing
from roofscale.errors import ConfigError


def read_text(file: Path) -> str:
    """The text of a file with its line ends as they are; empty where there is no file.

    Raises:
        ConfigError: it is not UTF-8.
    """
    try:
        return file.read_bytes().decode("utf-8") if file.exists() else ""
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{file}: expected UTF-8, found other bytes ({error}). Save it as UTF-8. It was left as it is."
        ) from error


def replace_text(file: Path, text: str) -> None:
    """Write a text with its line ends as they are; a kill leaves the one before."""
    with appearing(file) as stream:
        stream.write(text.encode("utf-8"))
