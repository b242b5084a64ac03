"""Recommendations follow from what was measured, and from nothing else."""

import math
from dataclasses import replace

import pytest
from tests.report.synthetic_results import (
    BATCHES,
    GPU,
    SAMPLES,
    climb,
    measured,
    passed_samples,
    phase,
    rolled_back,
    run,
)

from roofscale.measurement import Outcome
from roofscale.phases.judge import CriterionResult, StepVerdict, Verdict
from roofscale.phases.results import Cause, PhaseResult
from roofscale.report.recommendations import recommend

SAMPLE_PLAN, BATCH_PLAN, GPU_PLAN = phase(SAMPLES), phase(BATCHES), phase(GPU)
WORKER_PLAN = phase("""
phase: 3
name: more-workers
steps:
  - {name: none, set: {num_workers: 0}, criteria: {completes: }}
  - {name: two, set: {num_workers: 2}, criteria: {completes: }}
  - {name: four, set: {num_workers: 4}, criteria: {completes: }}
""")


def said(found: PhaseResult) -> str:
    return "\n".join(f"{advice.say} {advice.because}" for advice in recommend(found, GPU_PLAN))


def test_a_passed_phase_leads_to_the_next() -> None:
    assert said(passed_samples()).startswith("Go on with phase 5, gpu: `roofscale phase 5`. It starts from many.")
    assert recommend(passed_samples())[0].say == "Nothing is left to climb."


def test_a_phase_whose_steps_were_all_judged_can_be_stood_on() -> None:
    found = said(rolled_back())
    assert "Go on with phase 5" in found
    assert "It starts from batch-16 at batch_size=12. batch-8 failed" in found


def test_a_phase_that_stopped_is_to_be_mended() -> None:
    four = run(BATCH_PLAN, 0, measured(2000))
    burst = run(BATCH_PLAN, 1, outcome=Outcome.CRASHED, detail="it broke", cause=Cause.CRASHED, before=[four])
    assert said(climb(BATCH_PLAN, four, burst)).startswith("Mend what the issues name, then run `roofscale phase 2`.")
    assert "See stderr.log in the run's folder. step batch-8, crashed: crashed: it broke" in said(
        climb(BATCH_PLAN, four, burst)
    )
    assert "Do not go on" in said(climb(BATCH_PLAN, burst))


def test_an_interrupted_phase_goes_on() -> None:
    found = said(climb(SAMPLE_PLAN, run(SAMPLE_PLAN, 0, measured(2000)), interrupted=True))
    assert "it goes on where it stopped. 1 of 2 steps" in found


def told_knee(verdict: Verdict, batch: int) -> PhaseResult:
    found = CriterionResult("knee", verdict, "told by the criterion", {"batch_size": float(batch)})
    (*first, last) = rolled_back().results
    return climb(BATCH_PLAN, *first, replace(last, verdict=StepVerdict(last.verdict.verdict, (found,))))


def test_the_batch_that_the_hardware_likes_is_told_by_the_criterion() -> None:
    assert "This hardware likes `batch_size=8` best. told by the criterion" in said(told_knee(Verdict.PASSED, 8))
    assert "likes" not in said(told_knee(Verdict.INSUFFICIENT_EVIDENCE, 8))


@pytest.mark.parametrize(
    ("rates", "word", "fewest"),
    [([1.0, 1.5, 1.51], "Take", 2), ([1.0, 1.5, 1.9], "Keep", 4), ([1.0, 0.99, 1.04], "Take", 0)],
)
def test_the_fewest_workers_near_the_best_are_enough(rates: list[float], word: str, fewest: int) -> None:
    steps = [run(WORKER_PLAN, place, measured(2000, rate)) for place, rate in enumerate(rates)]
    assert f"{word} `num_workers={fewest}` for what comes next." in said(climb(WORKER_PLAN, *steps))


def test_runs_that_differ_in_other_knobs_say_nothing_about_workers() -> None:
    assert "num_workers" not in said(rolled_back())


def test_what_twice_the_batch_would_take_is_forecast_where_it_was_not_measured() -> None:
    assert "leaves room for `batch_size=4`: about 27%" in said(passed_samples())  # (2100 + 2 x 300) / 10000
    tight = climb(SAMPLE_PLAN, run(SAMPLE_PLAN, 0, measured(7800)))
    assert "does not allow `batch_size=4`: about 84%" in said(tight)
    assert "leaves room" not in said(rolled_back())
    assert "leaves room" not in said(
        climb(SAMPLE_PLAN, run(SAMPLE_PLAN, 0, measured(100, memory__mib_per_sample=math.nan)))
    )


def test_more_workers_where_training_waits() -> None:
    stalled = measured(2000, speed__data_stall=0.4, speed__loader_wait=0.35)
    assert "Raise `num_workers` (now 2)" in said(climb(SAMPLE_PLAN, run(SAMPLE_PLAN, 0, stalled)))
    slow = measured(2000, speed__data_stall=0.4, speed__loader_wait=0.0)  # slower than cached, but it never waited
    assert "num_workers" not in said(climb(SAMPLE_PLAN, run(SAMPLE_PLAN, 0, slow)))


def test_forgetting_asks_for_mixed_data_sets() -> None:
    forgot = run(SAMPLE_PLAN, 1, measured(9000), cause=Cause.FORGETTING)
    assert "schedule=mixed" in said(climb(SAMPLE_PLAN, run(SAMPLE_PLAN, 0, measured(2000)), forgot))
    assert "schedule=mixed" not in said(rolled_back())


def test_a_busy_machine_and_broken_samples_are_named() -> None:
    odd = measured(2000, cpu__others=0.3, train__skipped_samples=3.0)
    found = said(climb(SAMPLE_PLAN, run(SAMPLE_PLAN, 0, odd)))
    assert "quiet machine" in found
    assert "few 30%" in found
    assert "up to 3 broken samples" in found
    assert "quiet machine" not in said(passed_samples())
    assert "broken" not in said(passed_samples())
