"""What outlives a rewriting of the strategy document: blocks that a person wrote, and sections about phases.

A block stands between ``<!-- yours: begin NAME -->`` and ``<!-- yours: end NAME -->``, a section between
``<!-- phase N: begin -->`` and ``<!-- phase N: end -->``. Markers that do not pair are refused: to guess what was meant
could lose what somebody wrote.
"""

import re
from dataclasses import dataclass

from roofscale.errors import ConfigError

_YOURS = re.compile(r"<!--\s*yours:\s*(?P<side>begin|end)\s+(?P<name>.+?)\s*-->")
_PHASE = re.compile(r"<!--\s*phase\s+(?P<name>\d+):\s*(?P<side>begin|end)\s*-->")
_LOOKS_LIKE = {_YOURS: re.compile(r"<!--\s*yours:.*"), _PHASE: re.compile(r"<!--\s*phase\s+\d+:.*")}
EMPTY = "\n"  # what stands in a block that nobody has written in


@dataclass(frozen=True)
class ParsedDocument:
    """A document taken apart."""

    yours: dict[str, str]  # block name: all that stands between its markers, byte for byte
    phases: dict[int, str]  # phase number: its section, blocks taken out
    outside: str  # the rest


def read_regions(text: str) -> ParsedDocument:
    """Take a document apart.

    Raises:
        ConfigError: a marker without its partner, inside another pair, used twice or misspelt.
    """
    yours, without = _cut(text, _YOURS)
    phases, outside = _cut(without, _PHASE)
    return ParsedDocument(yours, {int(number): section.strip("\r\n") for number, section in phases.items()}, outside)


def user_block(name: str, content: str = EMPTY) -> str:
    """A block for a person to write in."""
    return f"<!-- yours: begin {name} -->{content}<!-- yours: end {name} -->"


def phase_block(number: int, content: str) -> str:
    """A section about a phase, between its markers."""
    return f"<!-- phase {number}: begin -->\n{content.strip()}\n<!-- phase {number}: end -->"


def _cut(text: str, marker: re.Pattern[str]) -> tuple[dict[str, str], str]:
    """Cut out what stands between pairs of markers; return it by name, and what is left."""
    for alike in _LOOKS_LIKE[marker].finditer(text):
        if not marker.match(text, alike.start()):
            raise _torn(alike.group(), "it is none of 'yours: begin NAME', 'yours: end NAME', 'phase N: begin|end'")
    found: dict[str, str] = {}
    left: list[str] = []
    begun: re.Match[str] | None = None
    at = 0
    for mark in marker.finditer(text):
        if mark["side"] == "begin":
            if begun:
                raise _torn(mark.group(), f"it stands inside {begun.group()!r}")
            if mark["name"] in found:
                raise _torn(mark.group(), "it stands there twice; give each block a name of its own")
            left.append(text[at : mark.start()])
            begun = mark
        elif begun is None or begun["name"] != mark["name"]:
            raise _torn(mark.group(), "no such block begins before it")
        else:
            found[mark["name"]] = text[at : mark.start()]
            begun = None
        at = mark.end()
    if begun:
        raise _torn(begun.group(), "its end is missing")
    return found, "".join([*left, text[at:]])


def _torn(marker: str, what: str) -> ConfigError:
    return ConfigError(
        f"the marker {marker!r} cannot be used: {what}. Expected pairs of 'begin' and 'end', one after the other; "
        "mend them by hand. The file was left as it is."
    )
