"""The event file: read while it grows, torn lines, and what a resumed run takes back."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofscale.errors import RecordError
from roofscale.runners.events import EventTail, drop_superseded


def line(event: str, **fields: object) -> bytes:
    if event == "step":
        lacking = ("epoch", "samples", "loss", "grad_norm", "lr", "seconds", "wait_seconds", "time")
        fields = {**dict.fromkeys(lacking, 0), "dataset": "rid", **fields}
    return json.dumps({"event": event, **fields}).encode() + b"\n"


def names(tail: EventTail) -> list[str]:
    return [event["event"] for event in tail.read()]


def test_reads_what_is_new_and_waits_for_whole_lines(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    tail = EventTail(file)
    assert tail.read() == []
    file.write_bytes(line("start") + line("step", step=1)[:-5])
    assert names(tail) == ["start"]
    file.write_bytes(line("start") + line("step", step=1) + line("end"))
    assert names(tail) == ["step", "end"]
    assert tail.read() == []


@pytest.mark.parametrize(
    "damaged",
    [
        {"event": ["step"]},
        {"event": {}},
        {"event": "step"},
        {"event": "validation"},
        {"event": "validation", "validation": {"step": 1, "dataset": ["rid"]}},
    ],
)
def test_a_damaged_event_is_an_error_that_names_the_file(tmp_path: Path, damaged: dict[str, object]) -> None:
    file = tmp_path / "events.jsonl"
    file.write_text(json.dumps(damaged) + "\n")
    with pytest.raises(RecordError, match=r"events\.jsonl: damaged"):
        EventTail(file).read()


def test_from_end_leaves_out_earlier_processes(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_bytes(line("start"))
    tail = EventTail(file, from_end=True)
    file.write_bytes(line("start") + line("resumed", step=1))
    assert names(tail) == ["resumed"]


def test_torn_lines_cost_only_themselves(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_bytes(line("start") + b'{"event": "st' + line("resumed", step=0) + b"\n\xff\xfe\n[1]\n7\n" + line("end"))
    # written by json.dumps, an event begins with {"event": and a space
    assert names(EventTail(file)) == ["start", "resumed", "end"]


@given(st.data())
def test_any_way_of_writing_in_pieces_yields_the_same_events(data: st.DataObject) -> None:
    import tempfile

    whole = b"".join(line("step", step=n, dataset="äöü") for n in range(5))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "events.jsonl"
        tail = EventTail(file)
        seen = []
        for cut in [*cuts, len(whole)]:
            file.write_bytes(whole[:cut])
            seen += tail.read()
    assert [event["step"] for event in seen] == list(range(5))


def test_a_resumed_run_takes_back_later_steps_and_validations_only() -> None:
    def validation(step: int) -> dict[str, object]:
        return {"event": "validation", "validation": {"step": step}}

    steps = [{"event": "step", "step": n} for n in range(1, 5)]
    events = [{"event": "start"}, validation(0), *steps, validation(4), {"event": "resumed", "step": 2}, steps[2]]
    kept = drop_superseded(events)
    assert [event["step"] for event in kept if event["event"] == "step"] == [1, 2, 3]
    assert [event["validation"]["step"] for event in kept if event["event"] == "validation"] == [0]
    assert kept[0]["event"] == "start"


def test_a_validation_that_was_made_again_counts_once() -> None:
    def validation(step: int, loss: float) -> dict[str, object]:
        return {"event": "validation", "validation": {"step": step, "dataset": "rid", "loss": loss}}

    before = [{"event": "start"}, validation(0, 1.0)]  # killed before its first checkpoint
    again = [{"event": "start"}, {"event": "resumed", "step": 0}, validation(0, 2.0), {"event": "step", "step": 1}]
    kept = drop_superseded([*before, *again, validation(1, 3.0), {"event": "resumed", "step": 1}, validation(1, 4.0)])
    assert [event["validation"]["loss"] for event in kept if event["event"] == "validation"] == [2.0, 4.0]
