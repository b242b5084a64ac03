"""Reads the events that a training process appends to ``events.jsonl``, while it writes them and afterwards."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from roofscale.errors import RecordError, one_line
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
        """The new whole lines, in order.

        Raises:
            RecordError: one of them is an event, and lacks what an event of its kind has.
        """
        if not self._file.exists():
            return []
        with self._file.open("rb") as stream:
            stream.seek(self._offset)
            whole, newline, _ = stream.read().rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        events = [event for line in whole.split(b"\n") if (event := _parse(line)) is not None]
        for event in events:
            self._require_whole(event)
        return events

    def _require_whole(self, event: Event) -> None:
        check = _CHECKS.get(event["event"])
        try:
            if check:
                check(event)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise RecordError(
                f"{self._file}: damaged, or of another version of Roofscale (an event {str(event['event'])[:40]!r}: "
                f"{one_line(error)}). Move its folder away, and the same command makes that run anew."
            ) from error


def drop_superseded(events: Iterable[Event]) -> list[Event]:
    """Leave out steps and validations that a resumed process took back and did again.

    A validation follows the step that it belongs to, and a checkpoint may lie between the two: it counts once.
    """
    kept: list[Event] = []
    for event in events:
        if event["event"] == "resumed":
            kept = [earlier for earlier in kept if _step_of(earlier) <= event["step"]]
        kept.append(event)
    newest = {_validated(event): place for place, event in enumerate(kept) if event["event"] == "validation"}
    return [
        event
        for place, event in enumerate(kept)
        if event["event"] != "validation" or newest[_validated(event)] == place
    ]


def _validated(event: Event) -> tuple[int, str]:
    return _step_of(event), event["validation"].get("dataset", "")


def steps(events: Iterable[Event]) -> list[StepRecord]:
    """The step events as records, without memory."""
    return [_step(event) for event in events if event["event"] == "step"]


def validations(events: Iterable[Event]) -> list[Validation]:
    """The validation events as records."""
    return [read_validation(event["validation"]) for event in events if event["event"] == "validation"]


def _step(event: Event) -> StepRecord:
    return StepRecord(**{name: value for name, value in event.items() if name != "event"})


# What an event of a kind must have for it to be used.
_CHECKS: Mapping[str, Callable[[Event], object]] = {
    "step": lambda event: (int(event["step"]), float(event["loss"]), float(event["seconds"]), _step(event)),
    "validation": lambda event: (int(event["validation"]["step"]), read_validation(event["validation"])),
    "resumed": lambda event: int(event["step"]),
}


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
