"""The phase runner after a step that did not pass: fallbacks by cause, what is never run, reading back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from roofscale.config import RunConfig
from roofscale.measurement import Measurement, Outcome
from roofscale.phases.attempt import Attempts, plan_changes
from roofscale.phases.history import latest_result, out_of_memory
from roofscale.phases.judge import Verdict
from roofscale.phases.phase_file import load_phase
from roofscale.phases.phase_runner import PhaseRunner
from roofscale.phases.results import Cause, PhaseResult
from roofscale.runners.supervise import Listener, SilentListener
from roofscale.tracking import Tracker, get_run

PHASE = """
phase: 2
name: tried
max_fallbacks: 2
on_failure: continue
steps:
  - name: base
    set: {batch_size: 8}
    criteria: {completes: , memory_margin: }
  - name: larger
    set: {batch_size: 16}
    expect: {memory/share: {value: 2.0, of: previous, tolerance: 0.1}}
    criteria: {completes: , memory_margin: }
"""


class Silent:
    def begin(self, *_: Any) -> Listener:
        return SilentListener()

    def judged(self, *_: Any) -> None:
        pass


class Machine:
    """Runs that need memory in proportion to the batch: over ``full`` they run out, as a real one would."""

    def __init__(self, full: int, outcome: Outcome = Outcome.HOST_OOM, whole: float = 25) -> None:
        self.full, self.outcome, self.whole = full, outcome, whole
        self.ran: list[RunConfig] = []

    def __call__(self, folder: Path, listener: Listener) -> Callable[[RunConfig], Measurement]:
        def run(config: RunConfig) -> Measurement:
            self.ran.append(config)
            fits = config.batch_size <= self.full
            metrics = {"memory/share": config.batch_size / self.whole, "speed/run_seconds": 1.0}
            found = Measurement(
                Outcome.OK if fits else self.outcome, "as told", config.fingerprint, metrics=metrics if fits else {}
            )
            found.save(folder / "measurement.json")
            return found

        return run

    @property
    def batches(self) -> list[int]:
        return [config.batch_size for config in self.ran]


@pytest.fixture
def climb(tmp_path: Path, tracking_store: None) -> Callable[..., PhaseResult]:
    def climbed(machine: Machine, text: str = PHASE, **options: Any) -> PhaseResult:
        file = tmp_path / "phase.yaml"
        file.write_text(text)
        phase = load_phase(file)
        tracker = Tracker("roofscale-phase2")
        fresh = options.pop("fresh", False)
        attempts = Attempts(tmp_path / "runs", "roofscale-phase2")
        tags = {"git_commit": "abc"}
        phase_runner = PhaseRunner(phase, phase.resolve(), tracker, attempts, machine, Silent(), tags, **options)
        found = phase_runner.run_phase(fresh)
        Tracker("roofscale-phase2").resume(found.run_id).set_tags({"verdict": found.verdict})
        return found

    return climbed


@pytest.mark.parametrize(
    ("full", "ran", "kept"),
    [(16, [8, 16], 16), (14, [8, 16, 12, 14], 14), (12, [8, 16, 12, 14], 12), (11, [8, 16, 12, 10], 10)],
)
def test_what_does_not_fit_is_bisected_and_the_largest_that_does_is_kept(
    climb: Callable[..., PhaseResult], tmp_path: Path, full: int, ran: list[int], kept: int
) -> None:
    machine = Machine(full)
    climbed = climb(machine)
    assert machine.batches == ran
    assert climbed.results[1].config.batch_size == kept
    assert climbed.verdict is Verdict.PASSED
    last_good = json.loads((tmp_path / "runs/roofscale-phase2/last_good.json").read_text())
    assert last_good["config"]["batch_size"] == kept


def test_nothing_smaller_holds_and_the_last_good_stays(climb: Callable[..., PhaseResult], tmp_path: Path) -> None:
    climbed = climb(Machine(8))
    larger = climbed.results[1]
    assert (larger.verdict.verdict, larger.cause, larger.config.batch_size) == (Verdict.FAILED, Cause.HOST_OOM, 16)
    assert [run.fallback.changed for run in larger.tries] == ["batch_size=12", "batch_size=10"]
    assert climbed.verdict is Verdict.FAILED
    assert json.loads((tmp_path / "runs/roofscale-phase2/last_good.json").read_text())["step"] == "base"


def test_a_run_over_its_margin_falls_back_like_one_that_died(climb: Callable[..., PhaseResult]) -> None:
    machine = Machine(99, whole=18)
    climbed = climb(machine)
    assert machine.batches == [8, 16, 12, 14]  # 89, 67 and 78 % of the memory
    assert climbed.results[1].tries[0].cause is Cause.OVER_MARGIN
    assert out_of_memory([2]) == []  # it did not run out: only a margin was passed


def test_each_try_is_a_run_of_its_own_that_says_why(climb: Callable[..., PhaseResult]) -> None:
    larger = climb(Machine(11)).results[1]
    (asked, twelve), ten = larger.tries, larger
    assert get_run(asked.run_id).tags["failure"] == "host_oom"
    assert get_run(asked.run_id).tags["verdict"] == "failed"
    for run, changed in ((twelve, "batch_size=12"), (ten, "batch_size=10")):
        tags = get_run(run.run_id).tags
        assert (tags["retry_of"], tags["cause"], tags["changed"]) == (asked.run_id, "host_oom", changed)
    assert len(asked.verdict.comparisons) == 1
    assert ten.verdict.comparisons == ()  # expected of 16, not of 10


def test_what_ran_out_of_memory_is_never_run_again_nor_anything_larger(climb: Callable[..., PhaseResult]) -> None:
    climb(Machine(11))
    known = out_of_memory([2])
    assert sorted(one.config.batch_size for one in known) == [12, 16]
    again = Machine(11)
    climbed = climb(again, fresh=True, known_out_of_memory=known)
    assert again.batches == [8, 10, 11]  # 12 and 16 are known, so that 10 is the middle below 12
    asked = climbed.results[1].tries[0]
    assert "not run: at least as large" in asked.measurement.detail
    assert get_run(asked.run_id).tags["ruled_out_by"] in {one.run_id for one in known}
    assert sorted(one.config.batch_size for one in out_of_memory([2])) == [12, 16]  # what was not run proves nothing


def test_a_diverged_run_is_retried_at_a_lower_rate_with_the_same_batch(climb: Callable[..., PhaseResult]) -> None:
    machine = Machine(8, Outcome.DIVERGED)
    climb(machine)
    assert [(c.batch_size, round(c.lr, 6)) for c in machine.ran] == [(8, 1e-3), (16, 1e-3), (16, 333e-6), (16, 111e-6)]


def test_broken_data_is_not_retried(climb: Callable[..., PhaseResult]) -> None:
    machine = Machine(8, Outcome.DATA_ERROR)
    assert climb(machine).results[1].cause is Cause.DATA_ERROR
    assert machine.batches == [8, 16]


def test_a_climb_is_read_back_from_the_server_as_it_was(climb: Callable[..., PhaseResult]) -> None:
    climbed = climb(Machine(11))
    found = latest_result(2)
    assert found is not None
    for field in ("run_id", "experiment", "created", "commit", "notes", "interrupted", "verdict"):
        assert getattr(found, field) == getattr(climbed, field), field
    assert found.phase.fingerprint == climbed.phase.fingerprint
    for mine, theirs in zip(climbed.all_runs(), found.all_runs(), strict=True):
        for field in ("config", "run_id", "fallback", "cause"):
            assert getattr(theirs, field) == getattr(mine, field), field
        assert repr(theirs.verdict) == repr(mine.verdict)  # NaN is unlike itself
        assert theirs.measurement.outcome == mine.measurement.outcome
        assert dict(theirs.measurement.metrics) == dict(mine.measurement.metrics)


def test_an_edited_plan_is_said_in_the_next_verdict(climb: Callable[..., PhaseResult]) -> None:
    assert climb(Machine(99)).notes == ()
    (note,) = climb(Machine(99), PHASE.replace("value: 2.0", "value: 1.9")).notes
    assert note.splitlines() == [
        "the plan was changed after attempt 001 had results:",
        " steps:",
        "   larger:",
        "     expect:",
        "-      memory/share: {value: 2.0, of: previous, tolerance: 0.1}",
        "+      memory/share: {value: 1.9, of: previous, tolerance: 0.1}",
    ]
    assert latest_result(2).notes == (note,)


def test_the_diff_of_a_plan_has_every_change_under_its_keys_and_an_end() -> None:
    step, other = {"name": "base", "set": {"lr": "1e-4"}, "criteria": {"completes": None}}, {"name": "x", "set": {}}
    before = {"phase": 2, "question": "Über?", "steps": [step]}
    assert plan_changes(before, {**dict(reversed(before.items())), "steps": [dict(reversed(step.items()))]}) == []
    after = {**before, "question": "Warum?", "steps": [{**step, "set": {"lr": "1e-5"}}, other]}
    assert plan_changes(before, after) == [
        "-question: Über?",
        "+question: Warum?",
        " steps:",
        "   base:",
        "-    set: {lr: 1e-4}",
        "+    set: {lr: 1e-5}",
        "+  x:",
        "+    set: {}",
    ]
    long = plan_changes(before, {**before, **{f"key{number}": number for number in range(100)}})
    assert (len(long), long[-1]) == (61, "... and 40 more lines")
