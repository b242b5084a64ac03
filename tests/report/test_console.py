"""The bar of a run, on the events that a run of two passes wrote."""

from typing import Any

import pytest

from roofscale.cli import console
from roofscale.cli.console import ProgressBar


def step(number: int, epoch: int, seconds: float) -> dict[str, Any]:
    return {"event": "step", "step": number, "epoch": epoch, "seconds": seconds, "loss": 1.5}


def stage(name: str) -> dict[str, Any]:
    return {"event": "stage", "name": name}


START = {"event": "start", "steps_planned": 6}


class Screen:
    """What a bar last drew, and all that was written."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.all = ""

    def last(self) -> str:
        self.all += self._capsys.readouterr().err.replace("\r", "\n")
        return next(line for line in reversed(self.all.splitlines()) if line.strip())


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Screen:
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
    return Screen(capsys)


def test_a_label_stays_only_as_long_as_its_stage(screen: Screen) -> None:
    bar = ProgressBar("base-10")
    for event in (START, stage("validating before training"), stage("training, pass 1 of 2"), step(1, 0, 1.0)):
        bar.event(event)
    assert "base-10: training, pass 1 of 2" in screen.last()
    for event in (stage("checkpoint at step 1"), stage("training, pass 1 of 2"), step(2, 0, 1.0)):
        bar.event(event)
    assert "training, pass 1 of 2" in screen.last()
    assert "checkpoint" not in screen.last()
    for event in (stage("validating after pass 1 of 2"), stage("training, pass 2 of 2"), step(3, 1, 1.0)):
        bar.event(event)
    assert "base-10: training, pass 2 of 2" in screen.last()
    bar.event({"event": "end", "outcome": "ok"})
    assert "base-10: ok" in screen.last()


def test_the_pace_is_that_of_steps_and_of_no_first_one(screen: Screen) -> None:
    bar = ProgressBar("base-10")
    for event in (START, stage("training"), step(1, 0, 90.0)):
        bar.event(event)
    assert "s/step" not in screen.last()
    for event in (step(2, 0, 1.0), step(3, 0, 2.0), step(4, 1, 90.0), step(5, 1, 3.0)):
        bar.event(event)
    assert "pace=2 s/step" in screen.last()
    assert "steps_left=00:02" in screen.last()
    assert "5/6 steps" in screen.last()


def test_a_note_is_a_line_of_its_own_and_no_label(screen: Screen) -> None:
    bar = ProgressBar("base-10")
    for event in (START, stage("training"), {"event": "note", "text": "1.0 of 2 cores free"}, step(1, 0, 1.0)):
        bar.event(event)
    assert "base-10: training" in screen.last()
    assert "base-10: 1.0 of 2 cores free\n" in screen.all
