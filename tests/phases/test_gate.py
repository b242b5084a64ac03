"""The gate: open on what the tracked runs prove, closed with what is missing and the command that supplies it."""

import dataclasses

import pytest

from roofscale.phases.gate import GateReport, gate_report
from roofscale.tracking import RunRecord

SOUND = {"verdict.completes": "passed", "verdict.stable": "passed", "verdict.memory_margin": "passed", "outcome": "ok"}
METRICS = {"memory/share": 0.3, "memory/mib_per_sample": 400.0, "speed/seconds_per_epoch": 90.0, "train/samples": 100.0}


def run(phase, step="one", attempt="a", **knobs):
    params = {"max_samples": "100", "batch_size": "8", "datasets": "rid", "image_size": "512", "num_workers": "4",
              "compute": "local", **{key: str(value) for key, value in knobs.items()}}  # fmt: skip
    tags = {**SOUND, "device": "cpu", "phase": str(phase), "step": step, "decides": "true"}
    return RunRecord(
        f"{phase}-{step}-{attempt}", step, f"{phase}-{attempt}", "FINISHED", 0.0, 1.0, tags, params, METRICS
    )


def tagged(record, **tags):
    return dataclasses.replace(record, tags={**record.tags, **{k.replace("__", "."): v for k, v in tags.items()}})


def proven():
    return {
        1: [run(1)],
        2: [tagged(run(2), verdict__knee="passed", evidence__knee="knee at batch 8")],
        3: [tagged(run(3), verdict__balanced="passed")],
        4: [run(4, datasets="rid,roofline,airs")],
    }


def closed(runs) -> dict[str, str]:
    report = gate_report(runs, "sqlite:///x")
    assert report.open == (not [c for c in report.conditions if not c.met])
    assert all(bool(c.run_id) == c.met and bool(c.remedy) != c.met for c in report.conditions)
    return {c.name: c.remedy for c in report.conditions if not c.met}


def test_the_gate_is_open_where_all_is_proven_and_names_the_runs() -> None:
    report = gate_report(proven(), "sqlite:///x")
    assert report.open, report.conditions
    assert {c.run_id for c in report.conditions} == {"4-one-a", "3-one-a", "2-one-a"}
    assert "knee at batch 8" in [c.evidence for c in report.conditions]


def test_an_empty_server_opens_nothing() -> None:
    assert len(closed({})) == 9
    assert not GateReport(()).open


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ({"max_samples": 99}, "at least 100 samples"),
        ({"batch_size": 4}, "batches of at least 8"),
        ({"datasets": "rid,airs"}, "all data sets"),
    ],
)
def test_each_size_is_asked_for(change, missing) -> None:
    knobs = {"datasets": "rid,roofline,airs", **change}
    runs = {
        phase: [tagged(run(phase, **knobs), verdict__knee="passed", verdict__balanced="passed")]
        for phase in range(1, 5)
    }
    assert any(missing in name for name in closed(runs))


def test_what_is_shown_only_apart_is_not_shown_together() -> None:
    runs = proven()
    runs[4] = [run(4, datasets="rid,roofline,airs", batch_size=4)]
    assert list(closed(runs)) == ["all of these in one run"]


@pytest.mark.parametrize("spoilt", [{"verdict__stable": "failed"}, {"outcome": "host_oom"}, {"device": "cuda"}])
def test_a_run_that_is_not_sound_proves_nothing(spoilt) -> None:
    runs = proven()
    runs[4] = [tagged(runs[4][0], **spoilt)]
    assert "stable on a CPU with all data sets" in closed(runs)


@pytest.mark.parametrize("trouble", [{"outcome": "host_oom"}, {"verdict__memory_margin": "failed"},
                                     {"verdict__no_leak": "failed"}])  # fmt: skip
def test_memory_trouble_closes_the_gate_until_a_later_attempt_is_free_of_it(trouble) -> None:
    runs = proven()
    runs[2] = [*runs[2], tagged(run(2, "two"), **trouble)]
    assert closed(runs) == {"no memory trouble": "roofscale phase 2 --fresh"}
    runs[2] = [tagged(run(2, attempt="b"), verdict__knee="passed"), *runs[2]]
    assert closed(runs) == {}


def test_a_try_that_was_rolled_back_is_no_trouble() -> None:
    runs = proven()
    runs[2] = [*runs[2], tagged(run(2, "two"), outcome="host_oom", decides="")]
    assert closed(runs) == {}


@pytest.mark.parametrize(("phase", "condition"), [(2, "the best batch is known"), (3, "the loading pattern is known")])
def test_what_is_not_known_says_that_phase_3_supplies_it(phase, condition) -> None:
    runs = proven()
    runs[phase] = [run(phase)]
    assert closed(runs) == {condition: "roofscale phase 3"}


def test_a_search_that_a_whole_run_has_confirmed_tells_the_best_batch() -> None:
    runs = proven()
    runs[2] = [run(2)]
    runs[3] = [tagged(runs[3][0], searched="batch_size 8 to 16", verdict="passed"), *runs[3][1:]]
    assert closed(runs) == {}
    runs[3] = [tagged(runs[3][0], verdict="failed"), *runs[3][1:]]
    assert closed(runs) == {"the best batch is known": "roofscale phase 3"}
