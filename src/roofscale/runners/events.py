"""Reads the events that a training process appends to ``events.jsonl``, while it writes them and afterwards."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from roofscale.measurement import StepRecord, Validation, read_validation

Event = dict[str, Any]


class EventTail:
    """Reads what was appended since the last look.

    A killed process leaves a torn last line, and its successor may have written on behind it: a line that is no JSON
    object counts from the last place in it where one begins, else not at all.
    """

    def __init__(self, file: Path, *, from_end: bool = False) -> None:
        self._file = file
        self._offset = file.stat().st_size if from_end and file.exists() else 0

    def read(self) -> list[Event]:
        """The new whole lines, in order."""
        if not self._file.exists():
            return []
        with self._file.open("rb") as stream:
            stream.seek(self._offset)
            whole, newline, _ = stream.read().rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        events = (_parse(line) for line in whole.split(b"\n"))
        return [event for event in events if event is not None]


def in_force(events: Iterable[Event]) -> list[Event]:
    """Leave out steps and validations that a resumed process took back and did again."""
    kept: list[Event] = []
    for event in events:
        if event["event"] == "resumed":
            kept = [earlier for earlier in kept if _step_of(earlier) <= event["step"]]
        kept.append(event)
    return kept


def steps(events: Iterable[Event]) -> list[StepRecord]:
    """The step events as records, without memory."""
    return [StepRecord(**{k: v for k, v in e.items() if k != "event"}) for e in events if e["event"] == "step"]


def validations(events: Iterable[Event]) -> list[Validation]:
    """The validation events as records."""
    return [read_validation(event["validation"]) for event in events if event["event"] == "validation"]


def _step_of(event: Event) -> int:
    if event["event"] == "validation":
        return int(event["validation"]["step"])
    return int(event["step"]) if event["event"] == "step" else 0


def _parse(line: bytes) -> Event | None:
    for start in (0, max(0, line.rfind(b'{"event"'))):
        try:
            event = json.loads(line[start:])
        except ValueError:  # not JSON, or not UTF-8
            continue
        if isinstance(event, dict) and "event" in event:
            return event
    return None
