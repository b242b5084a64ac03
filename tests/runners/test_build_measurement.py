"""Numbers derived from steps and samples, against values worked out by hand."""

import dataclasses
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofscale.compute import GIB, Compute, ResourceLimits
from roofscale.config import RunConfig
from roofscale.measurement import METRICS, MemoryPoint, Outcome, StepRecord, Validation
from roofscale.runners import build_measurement as a
from roofscale.runners.build_measurement import RunObservation, build_measurement


def step(number: int, *, epoch: int = 0, seconds: float = 0.5, samples: int | None = None, **more: float) -> StepRecord:
    values = {"loss": 1.0 / number, "grad_norm": 1.0, "lr": 1e-3, "wait_seconds": 0.0, "time": 100.0 + number, **more}
    samples = 2 * number if samples is None else samples
    return StepRecord(step=number, epoch=epoch, dataset="rid", samples=samples, seconds=seconds, **values)


def event(record: StepRecord) -> dict[str, object]:
    fields = dataclasses.asdict(record)
    del fields["memory_mib"]
    return {"event": "step", **fields}


def seen(**changes: object) -> RunObservation:
    whole = RunObservation(
        outcome=Outcome.OK,
        detail="",
        started=90.0,
        ended=120.0,
        events=[],
        memory=(),
        metrics={},
        source="s",
        limit="l",
    )
    return dataclasses.replace(whole, **changes)


def test_a_wait_in_every_other_step_counts_in_full() -> None:
    seconds = [0.5, 0.1, 0.5, 0.1, 0.5]
    steps = [dataclasses.replace(step(i, seconds=s), wait_seconds=s - 0.1) for i, s in enumerate(seconds, 1)]
    metrics = a.speed_metrics(steps)
    assert metrics["speed/loader_wait"] == pytest.approx(0.8 / 1.2)
    assert metrics["speed/samples_per_s"] == pytest.approx(8 / 1.2)


def test_throughput_leaves_each_epochs_first_step_out() -> None:
    steps = [step(1, seconds=9), step(2, seconds=0.4), step(3, seconds=0.6), step(4, epoch=1, seconds=7),
             step(5, epoch=1, seconds=0.5)]  # fmt: skip
    metrics = a.speed_metrics(steps)
    assert metrics["speed/seconds_per_sample"] == pytest.approx(0.25)
    assert metrics["speed/samples_per_s"] == pytest.approx(4)
    assert metrics["speed/seconds_per_epoch"] == pytest.approx((3 * 0.5 + 2 * 0.5) / 2)
    assert metrics["speed/start_up_seconds"] == pytest.approx(9 - 0.5)


def test_a_single_step_is_better_than_nothing() -> None:
    assert a.speed_metrics([step(1, seconds=3)])["speed/seconds_per_sample"] == pytest.approx(1.5)
    assert a.speed_metrics([]) == {}


def test_a_smaller_last_batch_counts_by_its_size() -> None:
    steps = [step(1, seconds=1), step(2, seconds=1), step(3, seconds=0.5, samples=5)]
    assert a.batch_samples(steps) == [2, 2, 1]
    assert a.speed_metrics(steps)["speed/seconds_per_sample"] == pytest.approx(0.5)


def test_the_error_of_the_pace_is_the_spread_of_its_steps_over_their_root() -> None:
    steps = [step(1, seconds=9), *(step(n, seconds=s) for n, s in enumerate([1.1, 0.9] * 8, 2))]
    assert a.speed_metrics(steps)["speed/pace_error"] < 0.1 / math.sqrt(16), "windows of both even each other out"
    slower = [step(1, seconds=9), *(step(n, seconds=s) for n, s in enumerate([0.9, 1.0, 1.1], 2))]
    assert a.speed_metrics(slower)["speed/pace_error"] == pytest.approx(0.1 / math.sqrt(3))
    assert math.isnan(a.speed_metrics(slower[:3])["speed/pace_error"]), "two steps tell no spread"


def test_the_seconds_of_a_validated_sample_are_over_all_validations() -> None:
    found = [
        Validation(0, 0, "rid", ("a", "b"), (), (), {}, 3.0),
        Validation(5, 0, "rid", ("a", "b"), (), (), {}, 1.0),
    ]
    metrics = a.validation_metrics(found)
    assert metrics["speed/seconds_per_validated"] == pytest.approx(1.0)
    assert metrics["train/validated_samples"] == 4
    assert "speed/seconds_per_validated" not in a.validation_metrics([])


@pytest.mark.parametrize("leak", [0.0, 20.0, -3.0])
def test_growth_finds_the_slope_through_the_swing_of_steps(leak: float) -> None:
    noise = random.Random(0)
    steps = [dataclasses.replace(step(n), memory_mib=1000 + leak * n + noise.uniform(-30, 30)) for n in range(1, 101)]
    assert a.memory_slope(steps) == pytest.approx(leak, abs=0.3)


def test_growth_leaves_out_the_warm_up_and_needs_five_points() -> None:
    warm = [dataclasses.replace(step(n), memory_mib=100.0 * min(n, 4)) for n in range(1, 9)]
    assert a.memory_slope(warm) == 0
    assert math.isnan(a.memory_slope(warm[:7]))
    assert math.isnan(a.memory_slope([step(n) for n in range(1, 50)]))


def test_growth_of_a_long_run_is_quick_and_right() -> None:
    steps = [dataclasses.replace(step(n), memory_mib=0.5 * n) for n in range(1, 20_001)]
    assert a.memory_slope(steps) == pytest.approx(0.5)


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=20, unique=True), st.floats(-10, 1010))
def test_memory_of_a_step_is_the_last_sample_by_its_end(times: list[float], end: float) -> None:
    memory = [MemoryPoint(t, t) for t in sorted(times)]
    (found,) = a.with_memory([step(1, time=end)], memory)
    if end < min(times):
        assert math.isnan(found.memory_mib)
    else:
        assert found.memory_mib == max(t for t in times if t <= end)


def test_mib_per_sample_is_what_the_steps_added() -> None:
    memory = (MemoryPoint(99, 300.0), MemoryPoint(100.4, 310.0), MemoryPoint(101.5, 900.0))
    run = seen(memory=memory, metrics={"memory/peak_mib": 910.0})
    metrics = a.memory_metrics([step(1), step(2)], run, batch_size=2)  # the first step begins at 100.5
    assert metrics["memory/mib_per_sample"] == pytest.approx(300)


def test_a_run_killed_for_memory_reached_what_the_kernel_saw() -> None:
    metrics = {"memory/peak_mib": 700.0, "memory/kernel_peak_mib": 1000.0}
    for outcome, peak in ((Outcome.HOST_OOM, 1000), (Outcome.OK, 700)):
        assert a.memory_metrics([], seen(outcome=outcome, metrics=metrics), 1)["memory/peak_mib"] == peak
    only = {"memory/peak_mib": 700.0}
    assert a.memory_metrics([], seen(outcome=Outcome.HOST_OOM, metrics=only), 1)["memory/peak_mib"] == 700


@pytest.mark.parametrize(
    ("seconds", "kernel", "writes_nothing", "peak"),
    [(0.2, 800, True, 800), (0.2, 800, False, 600), (2.0, 800, True, 600), (0.2, 500, True, 600)],
)
def test_the_kernel_saw_the_peak_of_a_trial_that_was_over_in_a_moment(
    seconds: float, kernel: float, writes_nothing: bool, peak: float
) -> None:
    steps = [dataclasses.replace(step(number), seconds=seconds) for number in range(1, 6)]
    run = seen(metrics={"memory/peak_mib": 600.0, "memory/kernel_peak_mib": kernel})
    assert a.memory_metrics(steps, run, 1, writes_nothing=writes_nothing)["memory/peak_mib"] == peak


def test_the_whole_measurement_speaks_in_known_names() -> None:
    validation = {"step": 0, "epoch": 0, "dataset": "rid", "sample_ids": ["a"], "losses": [0.5],
                  "constant_losses": [0.6], "metrics": {"iou": 0.1, "iou_hip": math.nan}, "seconds": 1.0}  # fmt: skip
    later = {**validation, "step": 20, "losses": [0.25], "metrics": {"iou": 0.7, "iou_hip": math.nan}}
    steps = [step(n) for n in range(1, 21)]
    events = [{"event": "start", "facts": {"device": "cpu"}}, {"event": "validation", "validation": validation},
              *map(event, steps), {"event": "validation", "validation": later},
              {"event": "metrics", "metrics": {"gpu/memory_peak_mib": 11264, "gpu/alloc_retries": None}}]  # fmt: skip
    run = seen(events=events, memory=(MemoryPoint(95, 512.0),), metrics={"memory/peak_mib": 8192.0, "gpu/power_w": 9})
    size = Compute("ml.g5.xlarge", 4, 16, "A10G", 1, 22.0)
    found = build_measurement(RunConfig(), size, ResourceLimits(16 * GIB, 4, "a note"), run)
    assert found.metric("val/rid/iou") == 0.7
    assert found.metric("val/rid/loss") == 0.25
    assert "val/rid/iou_hip" not in found.metrics
    assert found.metric("train/final_loss") == pytest.approx((1 / 19 + 1 / 20) / 2)
    assert found.metric("train/steps") == 20
    assert found.metric("train/samples") == 40
    assert found.metric("memory/share") == 0.5
    assert found.metric("gpu/memory_share") == 0.5
    assert found.metric("speed/setup_seconds") == pytest.approx(10.5)
    assert found.metric("speed/run_seconds") == 30
    assert found.facts["compute_note"] == "a note"
    assert found.facts["device"] == "cpu"
    assert {name for name in found.metrics if not name.startswith("val/")} <= set(METRICS)


def test_forgetting_is_the_drop_since_a_data_set_was_last_trained_on() -> None:
    def validated(number: int, dataset: str, iou: float) -> Validation:
        return Validation(number, 0, dataset, ("a",), (0.5,), (0.6,), {"iou": iou}, 1.0)

    steps = [dataclasses.replace(step(n), dataset=name) for n, name in enumerate(["rid", "rid", "airs", "airs"], 1)]
    found = [validated(0, "rid", 0.0), validated(1, "rid", 0.4), validated(2, "rid", 0.6), validated(4, "rid", 0.45),
             validated(4, "airs", 0.7)]  # fmt: skip
    assert a.forgetting_metrics(steps, found) == {"forgetting/rid": pytest.approx(0.15)}
    assert set(a.forgetting_metrics(steps, found)) <= set(METRICS)
    mixed = [dataclasses.replace(one, dataset="airs+rid") for one in steps]
    assert a.forgetting_metrics(mixed, found) == {}, "trained on to the end"
    assert a.forgetting_metrics(steps[:2], found[:3]) == {}
    assert a.forgetting_metrics([], []) == {}


def test_a_run_that_never_took_a_step_is_a_measurement_too() -> None:
    found = build_measurement(
        RunConfig(), Compute("local", 1, 1), ResourceLimits(GIB, 1), seen(outcome=Outcome.CRASHED)
    )
    assert found.metric("train/steps") == 0
    assert math.isnan(found.metric("speed/samples_per_s"))
    assert found.steps == ()


def test_speed_of_the_watched_process_leaves_out_an_earlier_one() -> None:
    earlier = [step(n, time=10.0 + n) for n in (1, 2)]
    events = [*map(event, earlier), {"event": "resumed", "step": 2}, event(step(3))]
    found = build_measurement(RunConfig(), Compute("local", 1, 1), ResourceLimits(GIB, 1), seen(events=events))
    assert [s.step for s in found.steps] == [1, 2, 3]
    assert found.metric("speed/setup_seconds") == pytest.approx(103 - 0.5 - 90)
