"""Steps that do not depend on each other, run side by side: the same verdicts in the same order."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.phases.test_phase_runner import FULL, HEALTHY, PHASE, Silent, Told, steps

from roofscale.config import RunConfig
from roofscale.measurement import Measurement, Outcome
from roofscale.phases.attempt import Attempts
from roofscale.phases.judge import Verdict
from roofscale.phases.phase_file import load_phase
from roofscale.phases.phase_runner import PhaseRunner
from roofscale.phases.results import PhaseResult
from roofscale.runners.job_pool import JobPool
from roofscale.runners.supervise import Listener
from roofscale.tracking import Tracker

CONTINUING = PHASE.replace("max_fallbacks: 0", "max_fallbacks: 0\non_failure: continue\non_insufficient: continue")
SOON = 20.0  # seconds


class Together(Told):
    """Lets runs of these numbers of samples end only once all of them have begun."""

    def __init__(self, samples: tuple[int, ...], yields: dict[int, Any] | None = None) -> None:
        super().__init__(yields or {})
        self._samples, self._all = samples, threading.Barrier(len(samples))

    def __call__(self, folder: Path, listener: Listener) -> Callable[[RunConfig], Measurement]:
        run = super().__call__(folder, listener)

        def wait_and_run(config: RunConfig) -> Measurement:
            if config.max_samples in self._samples:
                self._all.wait(SOON)
            return run(config)

        return wait_and_run


@pytest.fixture
def climb(tmp_path: Path, tracking_store: None) -> Callable[..., PhaseResult]:
    tracker = Tracker("tried")

    def climbed(told: Told, text: str, most: int = 3) -> PhaseResult:
        file = tmp_path / "phase.yaml"
        file.write_text(text)
        phase = load_phase(file)
        attempts = Attempts(tmp_path / "runs", "tried")
        return PhaseRunner(
            phase, phase.resolve(), tracker, attempts, told, Silent(), {}, pool=JobPool(most)
        ).run_phase()

    return climbed


def test_steps_that_are_run_in_any_case_run_at_the_same_time(climb: Callable[..., PhaseResult]) -> None:
    told = Together((2, 4, 8), {4: [FULL]})
    climbed = climb(told, CONTINUING % ("continue", "continue"))
    assert steps(climbed) == {"one": Verdict.PASSED, "two": Verdict.FAILED, "three": Verdict.PASSED}
    assert sorted(told.ran) == [(2, 0), (4, 0), (8, 0)]
    runs = Tracker("tried").children(climbed.run_id)
    assert {run.tags["step_number"]: run.tags["verdict"] for run in runs} == {
        "1": "passed",
        "2": "failed",
        "3": "passed",
    }
    assert {run.status for run in runs} == {"FINISHED"}


def test_a_step_that_may_stop_the_climb_is_waited_for(climb: Callable[..., PhaseResult]) -> None:
    told = Together((2,), {4: [FULL]})
    climbed = climb(told, PHASE % ("stop", "stop"))
    assert steps(climbed) == {"one": Verdict.PASSED, "two": Verdict.FAILED}
    assert told.ran == [(2, 0), (4, 0)]


def test_repeats_wait_for_a_verdict_while_later_steps_go_on(climb: Callable[..., PhaseResult]) -> None:
    told = Together((2, 8), {4: [{}]})
    climbed = climb(told, CONTINUING % ("continue", "repeat"))
    assert list(steps(climbed).values()) == [Verdict.PASSED, Verdict.INSUFFICIENT_EVIDENCE, Verdict.PASSED]
    seeds = [seed for samples, seed in told.ran if samples == 4]
    assert len(seeds) == len(set(seeds)) == 3


def test_what_was_measured_and_not_yet_judged_is_not_run_again(climb: Callable[..., PhaseResult]) -> None:
    told = Together((2, 4, 8), {2: [Outcome.INTERRUPTED, HEALTHY]})
    text = CONTINUING % ("continue", "continue")
    assert climb(told, text).interrupted
    second = Told({})
    climbed = climb(second, text)
    assert steps(climbed) == dict.fromkeys(("one", "two", "three"), Verdict.PASSED)
    assert second.ran == [(2, 0)]
    assert {run.status for run in Tracker("tried").children(climbed.run_id)} == {"FINISHED"}


def test_what_has_begun_counts_although_a_smaller_one_ran_out_of_memory(climb: Callable[..., PhaseResult]) -> None:
    text = (CONTINUING % ("continue", "continue")).replace("max_samples", "batch_size")
    ran: list[int] = []
    both = threading.Barrier(3)

    def make_runner(folder: Path, listener: Listener) -> Callable[[RunConfig], Measurement]:
        def run(config: RunConfig) -> Measurement:
            both.wait(SOON)
            ran.append(config.batch_size)
            outcome = Outcome.HOST_OOM if config.batch_size >= 4 else Outcome.OK
            found = Measurement(outcome, f"with {config.batch_size}", config.fingerprint, metrics=HEALTHY)
            found.save(folder / "measurement.json")
            return found

        return run

    climbed = climb(make_runner, text)  # type: ignore[arg-type]
    assert sorted(ran) == [2, 4, 8]
    assert [result.measurement.detail for result in climbed.results] == ["with 2", "with 4", "with 8"]
