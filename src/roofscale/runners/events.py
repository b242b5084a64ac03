"""Events of a training process: reading of ``events.jsonl``, also while the process still writes it."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from roofscale.errors import RecordError, one_line
from roofscale.measurement import StepRecord, Validation, read_validation

Event = dict[str, Any]


class EventTail:
    """Incremental reader of an events file.

    A killed process may leave an incomplete last line, to which the process that resumes the run appends: a line that
    is not a JSON object is read from the last start of an event in it, or skipped if there is none.

    Args:
        from_end: whether to skip what the file has already.
    """

    def __init__(self, file: Path, *, from_end: bool = False) -> None:
        self._file = file
        self._offset = file.stat().st_size if from_end and file.exists() else 0

    def read(self) -> list[Event]:
        """Return the events of the complete lines appended since the last call, in order.

        Raises:
            RecordError: an event misses a field that its kind requires.
        """
        if not self._file.exists():
            return []
        with self._file.open("rb") as stream:
            stream.seek(self._offset)
            complete, newline, _ = stream.read().rpartition(b"\n")
        self._offset += len(complete) + len(newline)
        events = [event for line in complete.split(b"\n") if (event := _parse(line)) is not None]
        for event in events:
            self._check(event)
        return events

    def _check(self, event: Event) -> None:
        try:
            if check := _CHECKS.get(event["event"]):
                check(event)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise RecordError(
                f"{self._file}: damaged, or of another version of Roofscale (an event {str(event['event'])[:40]!r}: "
                f"{one_line(error)}). Move its folder away, and the same command makes that run anew."
            ) from error


def drop_superseded(events: Iterable[Event]) -> list[Event]:
    """Return the events without the steps and validations that a resumed process repeated.

    A checkpoint may lie between a step and its validation, which then occurs twice: only the last one is kept.
    """
    kept: list[Event] = []
    for event in events:
        if event["event"] == "resumed":
            kept = [earlier for earlier in kept if _step_of(earlier) <= event["step"]]
        kept.append(event)
    newest = {_validated(event): index for index, event in enumerate(kept) if event["event"] == "validation"}
    return [
        event
        for index, event in enumerate(kept)
        if event["event"] != "validation" or newest[_validated(event)] == index
    ]


def _validated(event: Event) -> tuple[int, str]:
    """Return the step and the data set of a validation event."""
    return _step_of(event), event["validation"].get("dataset", "")


def steps(events: Iterable[Event]) -> list[StepRecord]:
    """Return the records of the step events, without memory."""
    return [_step(event) for event in events if event["event"] == "step"]


def validations(events: Iterable[Event]) -> list[Validation]:
    """Return the records of the validation events."""
    return [read_validation(event["validation"]) for event in events if event["event"] == "validation"]


def _step(event: Event) -> StepRecord:
    return StepRecord(**{name: value for name, value in event.items() if name != "event"})


# By kind of event: a check that raises an error if a field is missing or of the wrong type.
_CHECKS: Mapping[str, Callable[[Event], object]] = {
    "step": lambda event: (int(event["step"]), float(event["loss"]), float(event["seconds"]), _step(event)),
    "validation": lambda event: (hash(_validated(event)), read_validation(event["validation"])),
    "resumed": lambda event: int(event["step"]),
}


def _step_of(event: Event) -> int:
    if event["event"] == "validation":
        return int(event["validation"]["step"])
    return int(event["step"]) if event["event"] == "step" else 0


def _parse(line: bytes) -> Event | None:
    """Return the event of a line, or of its last part that is one; None if there is none."""
    for start in (0, max(0, line.rfind(b'{"event"'))):
        try:
            event = json.loads(line[start:])
        except ValueError:  # not JSON, or not UTF-8
            continue
        if isinstance(event, dict) and "event" in event:
            return event
    return None
