"""Verdicts of steps: from measurements to passed, failed or insufficient evidence, and the evidence in words."""

import dataclasses
import json
import math

import numpy as np
import pytest
from tests.synthetic_curves import loss_curve, memory_curve, validation_losses

from roofscale.measurement import Measurement, MemoryPoint, Outcome, StepRecord, Validation
from roofscale.phases.criteria import CRITERIA
from roofscale.phases.criteria.curves import step_memory
from roofscale.phases.criteria.expectations import Expectation
from roofscale.phases.judge import StepVerdict, Verdict, judge
from roofscale.phases.phase_file import CriterionSpec, Step, load_phase

PASSED, FAILED, INSUFFICIENT = Verdict.PASSED, Verdict.FAILED, Verdict.INSUFFICIENT_EVIDENCE


def measurement(count=50, seed=0, *, losses=None, seconds=1.5, dataset="rid", gain=0.5, leak=0.0, **metrics):
    """A healthy run of ``count`` steps, but for what is said."""
    random = np.random.default_rng(seed)
    losses = loss_curve(random, count) if losses is None else losses
    memory = memory_curve(random, count, leak=leak)
    took = seconds * random.normal(1, 0.05, count)
    took[0] *= 1.5
    ends = 1e9 + np.cumsum(took)
    steps = tuple(
        StepRecord(
            i + 1,
            0,
            dataset,
            2 * i + 2,
            float(losses[i]),
            1.0,
            1e-3,
            float(took[i]),
            0.01,
            float(ends[i]),
            float(memory[i]),
        )
        for i in range(count)
    )
    found = {
        "memory/share": 0.1,
        "memory/peak_mib": float(memory.max()),
        "speed/data_stall": 0.02,
        "speed/loader_wait": 0.01,
        "speed/seconds_per_epoch": float(took.sum()),
        "speed/run_seconds": 99.0,
        **metrics,
    }
    return Measurement(Outcome.OK, "", "0" * 12, steps, validations(random, dataset, count, gain), (), found, {})


def validations(random, dataset, count, gain):
    before, after, constant = validation_losses(random, gain=gain)
    ids = tuple(map(str, range(len(before))))
    return tuple(
        Validation(step, 0, dataset, ids, tuple(losses), tuple(constant), {}, 1.0)
        for step, losses in ((0, before), (count, after))
    )


def step(*names, expect=()):
    criteria = [CriterionSpec(n, {k: limit.default for k, limit in CRITERIA[n].limits.items()}) for n in names]
    return Step("one", {}, tuple(expect), tuple(criteria), "stop", "repeat", 2)


def verdict_of(name, run, **others):
    return judge(step(name), run, **others).criteria[0]


def compared(expected, run, **others):
    return judge(step("completes", expect=[expected]), run, **others).comparisons[0]


def climb(root, **faults):
    """Verdicts of the shipped phase on simulated runs."""
    found, runs = [], []
    for number, (one, config) in enumerate(load_phase(root / "experiments" / "phase1.yaml").resolve()):
        count = config.max_samples // 2
        run = measurement(count, seed=faults.get("seed", 0) * 10 + number, **faults.get(one.name, {}))
        found.append(judge(one, run, runs[-1:], runs[:1]))
        runs.append(run)
    return found


def test_a_healthy_climb_of_the_shipped_phase_passes_on_merit(root):
    verdicts = [[v.verdict for v in climb(root, seed=seed)] for seed in range(20)]
    assert sum(set(found) == {PASSED} for found in verdicts) >= 19, verdicts


@pytest.mark.parametrize(
    ("fault", "caught_by"),
    [
        ({"samples-50": {"leak": 20.0}}, "no_leak"),
        ({"samples-100": {"gain": 0.0}}, "learning"),
        ({"base-10": {"speed/data_stall": 0.9, "speed/loader_wait": 0.9}}, "data_stall"),
        ({"samples-20": {"memory/share": 0.81}}, "memory_margin"),
        ({"samples-20": {"gain": -1e6}}, "bounded"),
    ],
)
def test_a_planted_fault_fails_at_its_criterion_in_every_seed(root, fault, caught_by):
    name = next(iter(fault))
    place = ["base-10", "samples-20", "samples-50", "samples-100"].index(name)
    for seed in range(10):
        verdict = climb(root, seed=seed, **fault)[place]
        assert verdict.verdict is FAILED
        assert caught_by in verdict.named(FAILED)


@pytest.mark.parametrize("outcome", list(Outcome))
def test_only_a_run_that_ended_well_completes(outcome):
    run = dataclasses.replace(measurement(), outcome=outcome, detail="why")
    expected = {Outcome.OK: PASSED, Outcome.INTERRUPTED: INSUFFICIENT}.get(outcome, FAILED)
    result = verdict_of("completes", run)
    assert result.verdict is expected
    assert outcome is Outcome.OK or result.evidence == f"{outcome}: why"
    assert verdict_of("completes", measurement(), repeats=[run]).verdict is expected


@pytest.mark.parametrize(
    "name",
    ["memory_margin", "data_stall", "attains", "no_leak", "learning", "stable", "smooth", "bounded"],
)
def test_nothing_measured_never_passes(name):
    nothing = Measurement(Outcome.HOST_OOM, "killed", "0" * 12)
    assert verdict_of(name, nothing, previous=[measurement()]).verdict is INSUFFICIENT
    spoilt = measurement(**{"memory/share": math.nan, "speed/data_stall": math.nan, "memory/peak_mib": math.inf})
    if name in ("memory_margin", "data_stall"):
        assert verdict_of(name, spoilt, previous=[measurement()]).verdict is INSUFFICIENT
    expected = Expectation("memory/peak_mib", "previous", 1.0, 0.2)
    for run in (nothing, spoilt):
        assert compared(expected, run, previous=[measurement()]).words == "undecided"


def test_memory_holds_host_and_gpu_each():
    assert verdict_of("memory_margin", measurement(**{"memory/share": 0.79})).verdict is PASSED
    assert verdict_of("memory_margin", measurement(**{"memory/share": 0.80})).verdict is FAILED
    assert verdict_of("memory_margin", measurement(**{"gpu/memory_share": 0.9})).verdict is FAILED
    assert verdict_of("memory_margin", measurement(), repeats=[measurement(**{"memory/share": 0.9})]).verdict is FAILED


def test_every_data_set_that_was_trained_on_must_be_learnt():
    run = measurement(gain=0.5)
    airs = validations(np.random.default_rng(1), "airs", 50, 0.0)
    both = tuple(dataclasses.replace(s, dataset="airs+rid") for s in run.steps)
    mixed = dataclasses.replace(run, steps=both, validations=run.validations + airs)
    result = verdict_of("learning", mixed)
    assert result.verdict is FAILED
    assert "airs: val loss" in result.evidence
    assert "rid: val loss" in result.evidence
    assert verdict_of("learning", dataclasses.replace(run, validations=run.validations + airs)).verdict is PASSED
    assert verdict_of("learning", dataclasses.replace(mixed, validations=run.validations)).verdict is INSUFFICIENT


def test_learning_says_its_evidence_in_one_line_with_the_trend_beside_it():
    result = verdict_of("learning", measurement())
    assert result.verdict is PASSED
    assert "\n" not in result.evidence
    for words in ("val loss 1.", "(median drop 0.", "; constant 1.", "Mann-Kendall p="):
        assert words in result.evidence
    assert result.numbers["samples"] == 40


def test_repeats_average_each_sample_over_seeds_instead_of_counting_it_twice():
    weak = [measurement(seed=seed, gain=0.0) for seed in range(3)]
    alone, pooled = verdict_of("learning", weak[0]), verdict_of("learning", weak[0], repeats=weak[1:])
    assert pooled.numbers["samples"] == alone.numbers["samples"] == 40
    means = np.mean([run.validations[1].losses for run in weak], axis=0)
    assert pooled.numbers["after"] == pytest.approx(np.median(means))


def test_a_repeat_with_evidence_makes_up_for_a_run_without_but_not_for_a_failure():
    short, good, bad = measurement(8), measurement(50), measurement(50, losses=np.full(50, math.nan))
    assert verdict_of("stable", short).verdict is INSUFFICIENT
    assert verdict_of("stable", short, repeats=[good]).verdict is PASSED
    assert verdict_of("stable", short, repeats=[good, bad]).verdict is FAILED


@pytest.mark.parametrize(
    ("seconds", "expected"), [(1.5, PASSED), (3.5, FAILED), (0.3, FAILED), (1.5 * 1.4, INSUFFICIENT)]
)
def test_a_ratio_of_times_on_the_edge_of_the_tolerance_is_insufficient_evidence(seconds, expected):
    expect = Expectation("speed/seconds_per_epoch", "previous", 2.0, 0.4)
    result = compared(expect, measurement(10, 1, seconds=seconds), previous=[measurement(5, 2)])
    assert result.verdict is expected, result.evidence


def test_repeats_of_the_step_before_make_up_for_a_noisy_one():
    expect = Expectation("speed/seconds_per_epoch", "previous", 2.0, 0.4)
    step_before = [measurement(5, seed, seconds=1.5) for seed in (2, 3, 4)]
    noisy = dataclasses.replace(step_before[0], steps=tuple(uneven(step_before[0].steps)))
    run = measurement(10, 1)
    assert compared(expect, run, previous=[noisy]).verdict is INSUFFICIENT
    assert compared(expect, run, previous=[noisy, *step_before[1:]]).verdict is PASSED


def uneven(steps):
    """The same steps and seconds in all, but for the noise of a busy machine."""
    factors = np.tile([0.6, 1.4], len(steps))[: len(steps)]
    return [dataclasses.replace(s, seconds=s.seconds * f) for s, f in zip(steps, factors, strict=True)]


def test_expectations_compare_with_what_they_name():
    run, previous, base = (measurement(**{"memory/peak_mib": mib}) for mib in (4000.0, 2000.0, 1000.0))
    for of, value in (("previous", 2.0), ("base", 4.0), ("absolute", 4000.0)):
        close = Expectation("memory/peak_mib", of, value, 0.1)
        far = Expectation("memory/peak_mib", of, value * 1.5, 0.1)
        assert compared(close, run, previous=[previous], base=[base]).words == "borne out"
        assert compared(far, run, previous=[previous], base=[base]).words == "not borne out"
    alone = compared(Expectation("memory/peak_mib", "previous", 2.0, 0.1), run)
    assert alone.verdict is INSUFFICIENT
    assert "no previous step" in alone.evidence


def test_memory_of_a_step_is_the_largest_sample_within_it():
    run = measurement(3)
    ends = [s.time for s in run.steps]
    points = (MemoryPoint(ends[0] - 0.1, 900.0), MemoryPoint(ends[1] - 0.5, 950.0), MemoryPoint(ends[1] - 0.1, 700.0))
    run = dataclasses.replace(run, memory=points)
    assert step_memory(run) == [900.0, 950.0, run.steps[2].memory_mib]


def test_a_verdict_survives_json():
    verdict = judge(step("completes", "learning", "stable", "smooth", "no_leak"), measurement())
    again = StepVerdict.from_dict(json.loads(json.dumps(verdict.as_dict(), allow_nan=False)))
    assert again == verdict
    assert all(math.isfinite(v) for c in verdict.criteria for v in c.numbers.values())
    assert again.verdict is PASSED


def test_a_criterion_that_does_not_decide_is_shown_and_judged():
    asked = step("completes", "learning")
    shown = dataclasses.replace(asked.criteria[1], decides=False)
    found = judge(dataclasses.replace(asked, criteria=(asked.criteria[0], shown)), measurement(gain=0.0))
    assert found.verdict is Verdict.PASSED
    assert found.criteria[1].verdict is Verdict.FAILED
    assert found.named(Verdict.FAILED) == []  # so that no cause is read from it
    assert found.criteria[1].evidence.startswith("(shown only) ")


def test_failed_outweighs_insufficient_outweighs_passed():
    short = measurement(8)
    assert judge(step("completes", "stable"), short).verdict is INSUFFICIENT
    stalled = measurement(8, **{"speed/data_stall": 0.9, "speed/loader_wait": 0.9})
    assert judge(step("completes", "stable", "data_stall"), stalled).verdict is FAILED


@pytest.mark.parametrize(("stall", "wait"), [(0.4, 0.01), (0.01, 0.4)])
def test_a_busy_machine_is_not_blamed_on_the_loader(stall: float, wait: float) -> None:
    found = judge(step("data_stall"), measurement(8, **{"speed/data_stall": stall, "speed/loader_wait": wait}))
    assert found.verdict is PASSED


@pytest.mark.parametrize(
    ("share", "verdict"), [(1.0, PASSED), (0.96, PASSED), (0.94, FAILED), (math.nan, INSUFFICIENT)]
)
def test_an_epoch_is_held_against_what_its_samples_would_take_on_a_cached_batch(share: float, verdict: Verdict) -> None:
    run = measurement(8)
    assert len({one.epoch for one in run.steps}) == 1
    cached = share * run.metrics["speed/seconds_per_epoch"] / run.steps[-1].samples
    timed = dataclasses.replace(run, metrics={**run.metrics, "speed/cached_seconds_per_sample": cached})
    found = judge(step("attains"), timed)
    assert found.verdict is verdict
    busy = dataclasses.replace(timed, metrics={**timed.metrics, "cpu/others": 0.5})
    assert judge(step("attains"), busy).verdict is (INSUFFICIENT if verdict is FAILED else verdict)


@pytest.mark.parametrize(("others", "verdict"), [(0.02, FAILED), (0.5, INSUFFICIENT), (math.nan, FAILED)])
def test_a_failure_by_time_on_a_busy_machine_proves_nothing(others: float, verdict: Verdict) -> None:
    stalled = {"speed/data_stall": 0.9, "speed/loader_wait": 0.9, "cpu/others": others}
    assert judge(step("data_stall"), measurement(8, **stalled)).verdict is verdict


@pytest.mark.parametrize(("pace", "verdict"), [(0.10, FAILED), (0.16, INSUFFICIENT), (math.nan, FAILED)])
def test_a_machine_that_changed_its_pace_proves_nothing_about_time(pace: float, verdict: Verdict) -> None:
    expect = Expectation("speed/seconds_per_epoch", "previous", 2.0, 0.1)
    before = measurement(20, **{"speed/cached_seconds_per_sample": 0.10, "speed/seconds_per_epoch": 1.0})
    slow = measurement(20, **{"speed/cached_seconds_per_sample": pace, "speed/seconds_per_epoch": 4.0})
    assert compared(expect, slow, previous=[before]).verdict is verdict


def test_an_expectation_fails_no_step_and_says_a_likely_reason():
    expect = Expectation("speed/seconds_per_epoch", "previous", 2.0, 0.1)
    before, slow = measurement(20), measurement(20, seconds=6.0, **{"speed/loader_wait": 0.6})
    found = judge(step("completes", expect=[expect]), slow, [before])
    assert found.verdict is PASSED
    assert found.comparisons[0].words == "not borne out"
    assert "waiting for the loader" in found.comparisons[0].reason
    busy = measurement(20, seconds=6.0, **{"cpu/others": 0.5})
    assert "went to other work" in compared(expect, busy, previous=[before]).reason
    assert compared(expect, measurement(40), previous=[before]).reason == ""  # borne out


def test_a_finding_fails_its_step_and_leaves_it_sound():
    before = measurement(20, 1)
    found = judge(step("completes", "faster"), measurement(20, 2, seconds=3.0), base=[before])
    assert (found.verdict, found.without_findings) == (FAILED, PASSED)
    leaking = judge(step("completes", "no_leak", "faster"), measurement(50, 2, leak=20.0), base=[before])
    assert leaking.without_findings is FAILED
