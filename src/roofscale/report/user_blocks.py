"""Parts of the strategy document that survive when it is rewritten: blocks of the user, and sections of phases.

A block stands between ``<!-- yours: begin NAME -->`` and ``<!-- yours: end NAME -->``, a section between
``<!-- phase N: begin -->`` and ``<!-- phase N: end -->``. Markers that do not pair are refused: a wrong
guess could lose text of the user.
"""

import re
from dataclasses import dataclass

from roofscale.errors import ConfigError

_YOURS = re.compile(r"<!--\s*yours:\s*(?P<side>begin|end)\s+(?P<name>.+?)\s*-->")
_PHASE = re.compile(r"<!--\s*phase\s+(?P<name>\d+):\s*(?P<side>begin|end)\s*-->")
_LOOKS_LIKE = {_YOURS: re.compile(r"<!--\s*yours:.*"), _PHASE: re.compile(r"<!--\s*phase\s+\d+:.*")}
EMPTY = "\n"  # content of a block that the user has not written in


@dataclass(frozen=True)
class ParsedDocument:
    """A strategy document, parsed into its blocks, its sections of phases, and the rest."""

    yours: dict[str, str]  # block name: the text between its markers, unchanged
    phases: dict[int, str]  # phase number: its section without the blocks
    outside: str  # the rest


def read_regions(text: str) -> ParsedDocument:
    """Parse a document.

    Raises:
        ConfigError: a marker without its partner, inside another pair, used twice or misspelt.
    """
    yours, without = _cut(text, _YOURS)
    phases, outside = _cut(without, _PHASE)
    return ParsedDocument(yours, {int(number): section.strip("\r\n") for number, section in phases.items()}, outside)


def user_block(name: str, content: str = EMPTY) -> str:
    """Return a block for the user to write in."""
    return f"<!-- yours: begin {name} -->{content}<!-- yours: end {name} -->"


def phase_block(number: int, content: str) -> str:
    """Return the section of a phase between its markers."""
    return f"<!-- phase {number}: begin -->\n{content.strip()}\n<!-- phase {number}: end -->"


def _cut(text: str, marker: re.Pattern[str]) -> tuple[dict[str, str], str]:
    """Return the texts between pairs of markers, by name, and the remaining text."""
    for alike in _LOOKS_LIKE[marker].finditer(text):
        if not marker.match(text, alike.start()):
            raise _marker_error(
                alike.group(), "it is none of 'yours: begin NAME', 'yours: end NAME', 'phase N: begin|end'"
            )
    contents: dict[str, str] = {}
    rest: list[str] = []
    begun: re.Match[str] | None = None
    end = 0  # of the last marker
    for mark in marker.finditer(text):
        if mark["side"] == "begin":
            if begun:
                raise _marker_error(mark.group(), f"it stands inside {begun.group()!r}")
            if mark["name"] in contents:
                raise _marker_error(mark.group(), "it stands there twice; give each block a name of its own")
            rest.append(text[end : mark.start()])
            begun = mark
        elif begun is None or begun["name"] != mark["name"]:
            raise _marker_error(mark.group(), "no such block begins before it")
        else:
            contents[mark["name"]] = text[end : mark.start()]
            begun = None
        end = mark.end()
    if begun:
        raise _marker_error(begun.group(), "its end is missing")
    return contents, "".join([*rest, text[end:]])


def _marker_error(marker: str, problem: str) -> ConfigError:
    return ConfigError(
        f"the marker {marker!r} cannot be used: {problem}. Expected pairs of 'begin' and 'end', one after the other; "
        "mend them by hand. The file was left as it is."
    )
