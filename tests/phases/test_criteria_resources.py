"""utilisation_up and balanced: which resource is named, and what a machine without it says."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
from tests.synthetic_measurements import Part, against, ask, simulate

from roofscale.measurement import Measurement, ResourceSample
from roofscale.phases.criteria import Evidence
from roofscale.phases.criteria.resources import training_rows
from roofscale.stats.curves import Verdict

PASSED, FAILED, INSUFFICIENT = Verdict.PASSED, Verdict.FAILED, Verdict.INSUFFICIENT_EVIDENCE


def run(seed: int = 0, *, steps: int = 60, **changes: float) -> Measurement:
    return simulate(np.random.default_rng(seed), [Part(steps=steps)], slow_steps=0.0, **changes)


def test_only_what_was_sampled_within_a_step_counts() -> None:
    whole = run(steps=4)
    first, last = whole.steps[0], whole.steps[-1]
    moments = [first.time - first.seconds - 1, first.time - first.seconds / 2, last.time, last.time + 0.1]
    rows = tuple(ResourceSample(t, {"cpu/utilisation": n / 10}) for n, t in enumerate(moments))
    found = training_rows(dataclasses.replace(whole, resources=rows), "cpu/utilisation")
    assert found.tolist() == [[0.1, 0.2]]
    assert training_rows(dataclasses.replace(whole, resources=()), "cpu/utilisation", "x").shape == (2, 0)
    assert training_rows(dataclasses.replace(whole, steps=()), "cpu/utilisation").shape == (1, 0)


def test_a_moment_at_which_something_is_not_known_is_left_out() -> None:
    whole = run(steps=20)
    rows = [dataclasses.replace(row, metrics={**row.metrics, "cpu/io_wait": math.nan}) for row in whole.resources[:3]]
    holed = dataclasses.replace(whole, resources=(*rows, *whole.resources[3:]))
    assert training_rows(holed, "cpu/io_wait").shape[1] == training_rows(whole, "cpu/io_wait").shape[1] - 3


def test_a_full_machine_has_no_room_for_more_utilisation() -> None:
    full, more = run(cpu=0.98), run(1, cpu=0.97)
    found = ask("utilisation_up", against(full, more))
    assert found.verdict is PASSED, found.evidence
    assert ask("utilisation_up", against(run(cpu=0.6), run(1, cpu=0.6))).verdict is FAILED


def test_utilisation_of_a_run_of_seconds_is_not_known() -> None:
    assert ask("utilisation_up", against(run(), run(1, steps=10, cpu=0.9))).verdict is INSUFFICIENT
    assert ask("utilisation_up", Evidence(run())).verdict is INSUFFICIENT


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"speed__data_stall": 0.4, "speed__loader_wait": 0.4}, "data stall"),
        ({"io_wait": 0.6}, "I/O wait"),
        ({"memory__share": 0.8}, "memory"),
        ({"gpu": 0.9, "gpu__memory_share": 0.9}, "memory"),
        ({"memory__shm_share": 0.8}, "/dev/shm"),
        ({"gpu": 0.03, "cpu": 0.99}, "CPU and GPU"),
        ({"gpu": 0.5}, "GPU"),
    ],
)
def test_balanced_names_the_bottleneck(changes: dict[str, float], named: str) -> None:
    found = ask("balanced", Evidence(run(**changes)))
    assert found.verdict is FAILED
    assert found.evidence.startswith(f"bottleneck: {named} (")


def test_slow_single_steps_are_a_bottleneck() -> None:
    whole = run()
    steps = [dataclasses.replace(s, seconds=s.seconds * (3 if s.step % 5 == 0 else 1)) for s in whole.steps]
    found = ask("balanced", Evidence(dataclasses.replace(whole, steps=tuple(steps))))
    assert found.evidence.startswith("bottleneck: step times (")
    assert found.numbers["outliers"] == pytest.approx(12 / 59)


def test_slow_steps_of_one_pass_are_those_of_the_machine() -> None:
    whole = simulate(np.random.default_rng(0), [Part(steps=12), Part(steps=12)], slow_steps=0.0, step_sd=0.02)

    def slowed(slow: Callable[[int], bool]) -> Measurement:
        steps = [dataclasses.replace(s, seconds=s.seconds * (1.4 if slow(s.step) else 1)) for s in whole.steps]
        return dataclasses.replace(whole, steps=tuple(steps))

    found = ask("balanced", Evidence(slowed(lambda step: step > 14)))
    assert found.verdict is INSUFFICIENT
    assert "x as long in one pass as in another of the same run (over 1.2 proves nothing)" in found.evidence
    assert ask("balanced", Evidence(slowed(lambda step: step % 3 == 0))).verdict is FAILED


def test_a_resource_that_the_machine_does_not_have_is_left_out() -> None:
    whole = run()
    assert "GPU" not in ask("balanced", Evidence(whole)).evidence
    assert "/dev/shm" not in ask("balanced", Evidence(whole)).evidence
    assert "GPU" in ask("balanced", Evidence(run(gpu=0.9))).evidence
    silent = [dataclasses.replace(row, metrics={"cpu/utilisation": 0.5}) for row in whole.resources]
    found = ask("balanced", Evidence(dataclasses.replace(whole, resources=tuple(silent))))
    assert found.verdict is PASSED
    assert "I/O" not in found.evidence


def test_without_resources_over_time_nothing_is_balanced() -> None:
    assert ask("balanced", Evidence(dataclasses.replace(run(), resources=()))).verdict is INSUFFICIENT
    assert ask("balanced", Evidence(run(memory__share=math.nan))).verdict is INSUFFICIENT


def test_a_busy_machine_is_no_bottleneck_of_ours_but_full_memory_is() -> None:
    assert ask("balanced", Evidence(run(io_wait=0.6, cpu__others=0.5))).verdict is INSUFFICIENT
    assert ask("balanced", Evidence(run(memory__share=0.9, cpu__others=0.5))).verdict is FAILED
