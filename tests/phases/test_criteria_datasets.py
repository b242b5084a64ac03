"""smooth_transition, consistent and forgetting: stretches of a run, and the evidence in words."""

import dataclasses
import itertools

import numpy as np
import pytest
from tests.synthetic_measurements import Part, ask, mixed, simulate

from roofscale.measurement import Measurement
from roofscale.phases.criteria import Evidence
from roofscale.phases.criteria.datasets import segments
from roofscale.stats.curves import Verdict

PASSED, FAILED, INSUFFICIENT = Verdict.PASSED, Verdict.FAILED, Verdict.INSUFFICIENT_EVIDENCE
CRITERIA = ("smooth_transition", "consistent", "forgetting")


def run(*parts: Part, seed: int = 0, **options: float) -> Measurement:
    return simulate(np.random.default_rng(seed), parts, batch=4, slow_steps=0.0, run_sd=0.0, **options)


def three(**third: object) -> Measurement:
    return run(Part(steps=30), Part("roofline", 30), Part("airs", 30, **third))  # type: ignore[arg-type]


def test_passes_over_the_same_data_are_one_stretch() -> None:
    found = segments(run(Part(steps=6), Part(steps=6), Part("airs", 4), Part("airs", 4)))
    assert [(s.name, len(s.steps), len(s.timed), s.end) for s in found] == [("rid", 12, 10, 12), ("airs", 8, 6, 20)]
    assert [s.memory.size for s in found] == [6, 4]
    (one,) = segments(mixed(three()))
    assert one.name == "airs+rid+roofline"


@pytest.mark.parametrize("name", CRITERIA)
def test_one_data_set_shows_no_switch_and_mixed_ones_need_none(name: str) -> None:
    assert ask(name, Evidence(run(Part(steps=40)))).verdict is INSUFFICIENT
    assert ask(name, Evidence(mixed(three()))).verdict is PASSED


@pytest.mark.parametrize("name", CRITERIA)
def test_what_was_not_measured_never_passes(name: str) -> None:
    whole = three()
    for holed in (
        dataclasses.replace(whole, steps=()),
        dataclasses.replace(whole, validations=(), memory=()),
    ):
        assert ask(name, Evidence(holed)).verdict is INSUFFICIENT
    spoilt = [dataclasses.replace(s, memory_mib=float("nan"), seconds=float("nan")) for s in whole.steps]
    losses = [dataclasses.replace(v, losses=(float("nan"),) * 40) for v in whole.validations]
    found = ask(name, Evidence(dataclasses.replace(whole, steps=tuple(spoilt), validations=tuple(losses))))
    assert found.verdict is INSUFFICIENT


def test_the_copy_that_forked_loader_processes_keep_is_no_data_sets_doing() -> None:
    forked = run(Part(steps=30), Part("roofline", 30, mib=2000.0), Part("airs", 30, mib=2000.0))
    assert ask("smooth_transition", Evidence(forked)).verdict is FAILED
    explained = dataclasses.replace(forked, metrics={**forked.metrics, "memory/copied_mib": 400.0})
    assert ask("smooth_transition", Evidence(explained)).verdict is PASSED
    assert ask("consistent", Evidence(explained)).numbers["airs/memory_ratio"] == pytest.approx(1.0, abs=0.05)


def test_each_switch_is_judged_and_named() -> None:
    found = ask("smooth_transition", Evidence(three(mib=2200.0)))
    assert found.verdict is FAILED
    first, second = found.evidence.split("; roofline to airs: ")
    assert first.startswith("rid to roofline: memory 1.0")
    assert second.startswith("memory 1.3")
    assert "rid's val loss" in second
    assert "roofline's val loss" in second
    assert ask("smooth_transition", Evidence(three())).verdict is PASSED


def test_a_slow_start_after_the_switch_is_forgiven_for_some_steps() -> None:
    whole = run(Part(steps=40), Part("airs", 40))
    slow = [dataclasses.replace(s, seconds=s.seconds * (4 if 40 < s.step <= 48 else 1)) for s in whole.steps]
    slow_start = Evidence(dataclasses.replace(whole, steps=tuple(slow)))
    assert ask("smooth_transition", slow_start, max_steps=8).verdict is PASSED
    assert ask("smooth_transition", slow_start, max_steps=1).verdict is not PASSED


def test_a_switch_on_a_busy_machine_proves_nothing_about_speed_but_about_memory() -> None:
    slow, large = ({"pace": 1.0}, {"mib": 2200.0})
    for change, verdict in ((slow, INSUFFICIENT), (large, FAILED)):
        busy = run(Part(steps=30), Part("airs", 30, **change), cpu__others=0.5)  # type: ignore[arg-type]
        assert ask("smooth_transition", Evidence(busy)).verdict is verdict


def test_consistent_compares_with_the_first_data_set_either_way() -> None:
    for pace in (0.2, 1.2):
        found = ask("consistent", Evidence(three(pace=pace)))
        assert found.verdict is FAILED
        assert "airs: seconds a sample" in found.evidence
    assert ask("consistent", Evidence(three(pace=0.2)), max_factor=4.0).verdict is PASSED
    found = ask("consistent", Evidence(three()))
    assert found.numbers["airs/memory_ratio"] == pytest.approx(1.0, abs=0.05)
    less = ask("consistent", Evidence(three(mib=1200.0)))
    assert less.verdict is FAILED, "600 MiB for the batch became 200"
    assert less.numbers["airs/memory_ratio"] == pytest.approx(1 / 3, abs=0.05)


def test_forgetting_advises_to_mix() -> None:
    gone = {"iou": {"rid": 0.2}, "loss": {"rid": 1.4}}
    found = ask("forgetting", Evidence(three(**gone)))
    assert found.verdict is FAILED
    assert "schedule=mixed" in found.evidence
    assert "rid: val IoU of rid -0.3" in found.evidence
    assert found.numbers["rid/drop"] == pytest.approx(0.3, abs=0.1)
    assert abs(found.numbers["roofline/drop"]) < 0.1
    kept = ask("forgetting", Evidence(three(**gone)), max_drop=0.5)
    assert kept.verdict is PASSED
    assert "mixed" not in kept.evidence


def test_a_drop_that_the_losses_do_not_bear_out_is_no_evidence() -> None:
    assert ask("forgetting", Evidence(three(iou={"rid": 0.3}))).verdict is INSUFFICIENT
    few = run(Part(steps=9), Part("airs", 9, iou={"rid": 0.1}, loss={"rid": 3.0}), samples=5)
    assert ask("forgetting", Evidence(few)).verdict is INSUFFICIENT


def test_what_comes_back_before_the_end_is_not_forgotten() -> None:
    dip = run(Part(steps=9), Part("airs", 9, iou={"rid": 0.1}, loss={"rid": 3.0}), Part("airs", 9))
    assert ask("forgetting", Evidence(dip)).verdict is PASSED
    assert ask("smooth_transition", Evidence(dip)).verdict is FAILED, "the spike was there"


def test_seeds_are_pooled_before_something_counts_as_forgotten() -> None:
    runs = [
        run(Part(steps=9), Part("airs", 9, iou={"rid": iou}, loss={"rid": 0.8}), seed=n)
        for n, iou in ((0, 0.35), (1, 0.55))
    ]
    assert ask("forgetting", Evidence(runs[0])).verdict is FAILED
    assert ask("forgetting", Evidence(runs[0], repeats=(runs[1],))).verdict is PASSED


def test_stretches_hold_every_step_once() -> None:
    whole = three()
    assert list(itertools.chain(*(s.steps for s in segments(whole)))) == list(whole.steps)
