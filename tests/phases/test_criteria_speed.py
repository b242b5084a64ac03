"""faster and knee: what is compared, what is said, and when nothing can be told."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.synthetic_measurements import Part, against, ask, climb, simulate

from roofscale.config import RunConfig
from roofscale.measurement import Measurement, Outcome
from roofscale.phases.criteria import BatchPoint, EarlierStep, Evidence, knee
from roofscale.stats.curves import Verdict

PASSED, FAILED, INSUFFICIENT = Verdict.PASSED, Verdict.FAILED, Verdict.INSUFFICIENT_EVIDENCE


def run(pace: float, batch: int = 2, steps: int = 40, seed: int = 0, **metrics: float) -> Measurement:
    return simulate(np.random.default_rng(seed), [Part(steps=steps, pace=pace)], batch=batch, run_sd=0.0, **metrics)


def test_faster_says_how_fast_and_how_sure() -> None:
    found = ask("faster", against(run(0.5, steps=100), run(0.4, 16, 13, seed=1), batch_size=16))
    assert found.verdict is PASSED
    assert found.numbers["gain"] == pytest.approx(0.25, abs=0.1)
    assert found.numbers["gain_low"] > 0.05
    assert "x base" in found.evidence
    assert "90% interval" in found.evidence


def test_a_repeat_narrows_the_interval() -> None:
    base, first, second = run(0.5, steps=100), run(0.42, 16, 7, seed=3), run(0.42, 16, 7, seed=4)
    alone, pooled = ask("faster", against(base, first)), ask("faster", against(base, first, second))
    width = [f.numbers["gain_high"] - f.numbers["gain_low"] for f in (alone, pooled)]
    assert width[1] < width[0]


def test_a_first_step_that_waits_for_the_loader_costs_no_speed() -> None:
    base, fast = run(0.5, steps=100), run(0.4, steps=100, seed=1)
    slow_start = (dataclasses.replace(fast.steps[0], seconds=500.0), *fast.steps[1:])
    later = ask("faster", against(base, dataclasses.replace(fast, steps=slow_start)))
    assert later.numbers == ask("faster", against(base, fast)).numbers


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_too_few_timed_steps_show_no_speed(steps: int) -> None:
    few = dataclasses.replace(run(0.1), steps=run(0.1).steps[:steps])
    assert ask("faster", against(run(0.5), few)).verdict is INSUFFICIENT
    assert ask("faster", against(few, run(0.1))).verdict is INSUFFICIENT
    assert ask("faster", Evidence(run(0.1))).verdict is INSUFFICIENT


@pytest.mark.parametrize(
    ("base_others", "others", "verdict"), [(0.0, 0.0, PASSED), (0.4, 0.4, PASSED), (0.4, 0.0, INSUFFICIENT)]
)
def test_a_gain_over_a_base_that_was_disturbed_more_is_none(
    base_others: float, others: float, verdict: Verdict
) -> None:
    same = {"speed__cached_seconds_per_sample": 0.3}
    base, fast = run(0.5, cpu__others=base_others, **same), run(0.3, seed=1, cpu__others=others, **same)
    assert ask("faster", against(base, fast, num_workers=4)).verdict is verdict


def test_the_pace_of_a_cached_batch_is_compared_only_between_the_same_batches() -> None:
    base = run(0.5, speed__cached_seconds_per_sample=0.5)
    slower = run(0.6, seed=1, speed__cached_seconds_per_sample=0.7)
    assert ask("faster", against(base, slower, num_workers=4)).verdict is INSUFFICIENT, "the machine changed its pace"
    assert ask("faster", against(base, slower, batch_size=16)).verdict is FAILED, "another batch has another pace"
    assert ask("faster", against(base, slower, image_size=256)).verdict is FAILED
    again = run(0.6, seed=2, speed__cached_seconds_per_sample=0.5)
    assert ask("faster", against(base, slower, again, batch_size=16)).verdict is INSUFFICIENT, "repeats are the same"


def test_the_knee_is_the_smallest_within_five_percent_of_the_best() -> None:
    points = [BatchPoint(2, 1.0, 0.1), BatchPoint(4, 1.92, 0.2), BatchPoint(8, 2.0, 0.4), BatchPoint(16, 3.0, 0.8)]
    found = knee(points)
    assert found
    assert found.batch_size == 4, "batch 16 reaches the limit of the memory"
    found = knee(points, max_share=0.9)
    assert found
    assert found.batch_size == 16
    assert knee(points, max_share=0.05) is None
    assert knee([]) is None
    assert knee([BatchPoint(2, math.nan, 0.1)]) is None


@given(
    st.lists(st.tuples(st.integers(1, 64), st.floats(0.1, 100), st.floats(0, 1)), max_size=8, unique_by=lambda p: p[0])
)
def test_no_smaller_batch_within_memory_comes_as_near_to_the_best(raw: list[tuple[int, float, float]]) -> None:
    points = [BatchPoint(*values) for values in raw]
    able = [p for p in points if p.memory_share < 0.8]
    found = knee(points)
    assert (found is None) == (not able)
    if found:
        best = max(p.samples_per_s for p in able)
        assert found in able
        assert found.samples_per_s >= 0.95 * best
        assert all(p.samples_per_s < 0.95 * best for p in able if p.batch_size < found.batch_size)


def test_the_knee_is_told_from_the_steps_of_the_phase() -> None:
    runs = [run(p, b, 200 // b, seed=b) for b, p in ((2, 0.5), (4, 0.35), (8, 0.25), (16, 0.249))]
    found = ask("knee", climb(runs, (2, 4, 8, 16)))
    assert found.verdict is PASSED
    assert found.numbers["batch_size"] == 8
    assert "batch 8" in found.evidence


def test_a_knee_needs_two_batches_that_did_the_same_work() -> None:
    assert ask("knee", climb([run(0.5)], (2,))).verdict is INSUFFICIENT
    for knobs in ({"image_size": 256}, {"fit": "crop"}, {"tile_cache_gib": 9}):
        other = EarlierStep(RunConfig().with_overrides(knobs), (run(0.1, seed=1),))
        found = ask("knee", Evidence(run(0.5), config=RunConfig(batch_size=4), history=(other,)))
        assert found.verdict is INSUFFICIENT, knobs
    assert ask("knee", Evidence(run(0.5))).verdict is INSUFFICIENT, "whose batch size nobody knows"
    died = Measurement(Outcome.HOST_OOM, "killed", "0" * 12, metrics={"memory/share": 1.0})
    assert ask("knee", climb([run(0.5), died], (2, 4))).verdict is INSUFFICIENT


def test_no_batch_under_the_memory_limit_fails() -> None:
    runs = [run(0.5, memory__share=0.85), run(0.4, 4, memory__share=0.9)]
    assert ask("knee", climb(runs, (2, 4))).verdict is FAILED


def test_a_batch_that_was_run_twice_counts_by_both_runs() -> None:
    runs = [run(0.5, 2, 100), run(0.9, 4, 50, seed=1), run(0.3, 4, 50, seed=2), run(0.4, 8, 25, seed=3)]
    assert ask("knee", climb(runs, (2, 4, 4, 8))).numbers["batch_size"] == 8
