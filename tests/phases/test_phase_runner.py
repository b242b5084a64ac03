"""The phase runner with prepared results: what it runs, repeats, stops at and resumes."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from roofscale.config import RunConfig
from roofscale.errors import ConfigError, EnvironmentFault
from roofscale.measurement import Measurement, Outcome
from roofscale.phases.attempt import Attempts, PhaseLocked
from roofscale.phases.judge import Verdict
from roofscale.phases.phase_file import Step, load_phase
from roofscale.phases.phase_runner import PhaseResult, PhaseRunner, StepResult
from roofscale.runners.supervise import Listener, SilentListener
from roofscale.tracking import TrackedRun, Tracker

PHASE = """
phase: 1
name: tried
max_fallbacks: 0
steps:
  - name: one
    set: {max_samples: 2}
    criteria: {completes: , memory_margin: {max_share: 0.8}}
  - name: two
    set: {max_samples: 4}
    on_failure: %s
    on_insufficient: %s
    max_repeats: 2
    criteria: {completes: , memory_margin: {max_share: 0.8}}
  - name: three
    set: {max_samples: 8}
    criteria: {completes: }
"""
HEALTHY = {"memory/share": 0.5}
FULL = {"memory/share": 0.9}
UNKNOWN: dict[str, float] = {}


class Silent:
    def begin(self, step: Step, config: RunConfig, note: str) -> Listener:
        return SilentListener()

    def judged(self, result: StepResult, run: TrackedRun) -> None:
        pass


class Told:
    """Makes runners that yield, for each number of samples, one measurement after the other."""

    def __init__(self, yields: Mapping[int, list[Mapping[str, float] | Outcome]]) -> None:
        self.yields = {key: list(value) for key, value in yields.items()}
        self.ran: list[tuple[int, int]] = []  # max_samples, seed

    def __call__(self, folder: Path, listener: Listener) -> Callable[[RunConfig], Measurement]:
        def run(config: RunConfig) -> Measurement:
            self.ran.append((config.max_samples, config.seed))
            told = self.yields.get(config.max_samples, [HEALTHY])
            found = told.pop(0) if len(told) > 1 else told[0]
            outcome = found if isinstance(found, Outcome) else Outcome.OK
            metrics = {"speed/run_seconds": 1.0, **({} if isinstance(found, Outcome) else found)}
            measurement = Measurement(outcome, "as told", config.fingerprint, metrics=metrics)
            measurement.save(folder / "measurement.json")
            return measurement

        return run


@pytest.fixture
def climb(tmp_path: Path, tracking_store: None) -> Callable[..., PhaseResult]:
    tracker = Tracker("tried")

    def climbed(
        told: Told, on_failure: str = "stop", on_insufficient: str = "stop", data_root: str = "", **options: Any
    ) -> PhaseResult:
        file = tmp_path / "phase.yaml"
        file.write_text(PHASE % (on_failure, on_insufficient))
        phase = load_phase(file)
        attempts = Attempts(tmp_path / "runs", "tried")
        plan = phase.resolve(overrides={"data_root": data_root})
        return PhaseRunner(phase, plan, tracker, attempts, told, Silent(), {}).run_phase(**options)

    return climbed


def steps(climbed: PhaseResult) -> dict[str, Verdict]:
    return {result.step.name: result.verdict.verdict for result in climbed.results}


def test_every_step_runs_once_where_all_is_well(climb: Callable[..., PhaseResult], tmp_path: Path) -> None:
    told = Told({})
    climbed = climb(told)
    assert climbed.verdict is Verdict.PASSED
    assert told.ran == [(2, 0), (4, 0), (8, 0)]
    last_good = json.loads((tmp_path / "runs" / "tried" / "last_good.json").read_text())
    assert last_good["step"] == "three"
    assert RunConfig().with_overrides(last_good["config"]).max_samples == 8


def test_a_failed_step_stops_the_climb_and_leaves_the_last_good(
    climb: Callable[..., PhaseResult], tmp_path: Path
) -> None:
    told = Told({4: [FULL]})
    climbed = climb(told)
    assert climbed.verdict is Verdict.FAILED
    assert steps(climbed) == {"one": Verdict.PASSED, "two": Verdict.FAILED}
    assert json.loads((tmp_path / "runs" / "tried" / "last_good.json").read_text())["step"] == "one"


def test_a_failed_step_is_passed_over_where_the_phase_says_continue(climb: Callable[..., PhaseResult]) -> None:
    climbed = climb(Told({4: [Outcome.HOST_OOM]}), on_failure="continue")
    assert climbed.verdict is Verdict.FAILED
    assert list(steps(climbed)) == ["one", "two", "three"]


def test_insufficient_evidence_is_repeated_under_other_seeds_and_bounded(climb: Callable[..., PhaseResult]) -> None:
    told = Told({4: [UNKNOWN]})
    climbed = climb(told, on_insufficient="repeat")
    seeds = [seed for samples, seed in told.ran if samples == 4]
    assert len(seeds) == len(set(seeds)) == 3
    assert steps(climbed)["two"] is Verdict.INSUFFICIENT_EVIDENCE
    run = Tracker("tried").client.get_run(climbed.results[1].run_id)
    assert (run.data.tags["verdict"], run.data.tags["repeats"]) == ("insufficient_evidence", "2")
    assert climbed.verdict is Verdict.INSUFFICIENT_EVIDENCE


def test_insufficient_evidence_stops_or_goes_on_as_the_phase_says(climb: Callable[..., PhaseResult]) -> None:
    assert list(steps(climb(Told({4: [UNKNOWN]}), on_insufficient="stop"))) == ["one", "two"]
    assert list(steps(climb(Told({4: [UNKNOWN]}), on_insufficient="continue"))) == ["one", "two", "three"]


def test_an_interrupted_climb_goes_on_where_it_stopped(climb: Callable[..., PhaseResult]) -> None:
    told = Told({4: [Outcome.INTERRUPTED, HEALTHY]})
    first = climb(told)
    assert first.interrupted
    assert steps(first) == {"one": Verdict.PASSED}
    second = climb(told)
    assert second.verdict is Verdict.PASSED
    assert second.run_id == first.run_id
    assert told.ran == [(2, 0), (4, 0), (4, 0), (8, 0)]
    assert [r.measurement.outcome for r in second.results] == [Outcome.OK] * 3


def test_a_finished_attempt_or_a_changed_plan_begins_a_new_one(climb: Callable[..., PhaseResult]) -> None:
    folders = [climb(Told({})).attempt, climb(Told({})).attempt]
    stopped = Told({4: [Outcome.INTERRUPTED]})
    folders += [climb(stopped).attempt, climb(stopped).attempt]
    folders += [climb(stopped, on_failure="continue").attempt, climb(stopped, fresh=True).attempt]
    folders += [climb(stopped, data_root="elsewhere").attempt]
    assert [folder.name for folder in folders] == ["001", "002", "003", "003", "004", "005", "006"]


def test_a_second_runner_of_the_same_phase_is_turned_away(climb: Callable[..., PhaseResult], tmp_path: Path) -> None:
    told = Told({})
    with Attempts(tmp_path / "runs", "tried").lock(), pytest.raises(PhaseLocked, match="another process"):
        climb(told)
    assert told.ran == []


def test_a_run_that_died_is_failed_in_mlflow_with_its_outcome(climb: Callable[..., PhaseResult]) -> None:
    climbed = climb(Told({4: [Outcome.HOST_OOM]}))
    run = Tracker("tried").client.get_run(climbed.results[-1].run_id)
    assert run.info.status == "FAILED"
    assert run.data.tags["outcome"] == "host_oom"
    assert run.data.tags["verdict"] == "failed"
    assert run.data.tags["verdict.completes"] == "failed"


@pytest.mark.parametrize(
    ("error", "status", "outcome"),
    [
        (ConfigError("refused by https://user:secret@host"), "FAILED", "crashed"),
        (EnvironmentFault("no answer from https://user:secret@host"), "KILLED", "interrupted"),
        (KeyboardInterrupt(), "RUNNING", None),
    ],
)
def test_an_error_closes_the_run_and_its_attempt_and_the_same_command_resumes_both(
    error: BaseException, status: str, outcome: str | None, climb: Callable[..., PhaseResult]
) -> None:
    def refuse(folder: Path, listener: Listener) -> Callable[[RunConfig], Measurement]:
        def run(config: RunConfig) -> Measurement:
            raise error

        return run

    with pytest.raises(type(error)):
        climb(refuse)
    tracker = Tracker("tried")
    (attempt,) = tracker.attempts()
    (run,) = tracker.children(attempt.run_id)
    for closed in (attempt, run):
        assert (closed.status, closed.tags.get("outcome")) == (status, outcome)
        assert closed.tags.get("outcome_detail") == (str(error).replace("user:secret", "***") if outcome else None)
    climbed = climb(Told({}))
    assert (climbed.run_id, climbed.results[0].run_id) == (attempt.run_id, run.run_id)
    assert {child.status for child in tracker.children(attempt.run_id)} == {"FINISHED"}
