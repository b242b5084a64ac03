"""What reaches MLflow: each point once, and nothing that was not measured."""

import json
import math
import os
import time
from pathlib import Path

import pytest
from tests.tracking.tiny_run import step

from roofscale.config import RunConfig
from roofscale.measurement import Measurement, Outcome, ResourceSample
from roofscale.tracking import TrackedRun, Tracker


@pytest.fixture
def tracker(tracking_store: None) -> Tracker:
    return Tracker("tracked")


def history(tracker: Tracker, run: TrackedRun, name: str) -> list[tuple[int, float]]:
    points = tracker.client.get_metric_history(run.run_id, name)
    return sorted((point.step, point.value) for point in points)


def test_a_resumed_run_logs_each_step_once(tracker: Tracker) -> None:
    run = tracker.start("run", {})
    for number in (1, 2, 3):
        run.event(step(number, loss=1 / number))
    run.finish(Outcome.INTERRUPTED)
    again = tracker.resume(run.run_id)
    assert again is not None
    for number in (2, 3, 4):  # from its checkpoint on
        again.event({**step(number, loss=1 / number), "time": 1.8e9 + number})  # done again, and later
    again.finish(Outcome.OK)
    assert history(tracker, again, "train/loss") == [(n, 1 / n) for n in (1, 2, 3, 4)]
    assert tracker.client.get_run(run.run_id).info.status == "FINISHED"


def test_what_was_not_measured_is_not_logged(tracker: Tracker) -> None:
    run = tracker.start("run", {})
    run.event(step(1, loss=math.nan))
    run.log_summary(
        Measurement(Outcome.DIVERGED, "loss nan", "f", metrics={"memory/peak_mib": 7.0, "gpu/power_w": math.nan})
    )
    run.finish(Outcome.DIVERGED)
    found = tracker.client.get_run(run.run_id)
    assert "train/loss" not in found.data.metrics
    assert "gpu/power_w" not in found.data.metrics
    assert found.data.metrics["memory/peak_mib"] == 7.0
    assert found.info.status == "FAILED"


def test_a_list_of_runs_sorts_what_a_phase_climbs_by_as_numbers(tracker: Tracker) -> None:
    for batch in (16, 2, 8):
        run = tracker.start(f"batch-{batch}", {})
        run.log_params(RunConfig().with_overrides({"batch_size": batch}))
        run.finish(Outcome.OK)
    found = tracker.client.search_runs([tracker.experiment_id], order_by=["metrics.`knob/batch_size`"])
    assert [run.info.run_name for run in found] == ["batch-2", "batch-8", "batch-16"]
    assert [run.data.params["batch_size"] for run in found] == ["2", "8", "16"]


def test_a_total_is_the_last_point_of_its_series(tracker: Tracker) -> None:
    run = tracker.start("run", {})
    start = tracker.client.get_run(run.run_id).info.start_time / 1000
    for second in (2, 4):
        run.resources(ResourceSample(start + second, {"cpu/utilisation": 0.9}))
    run.log_summary(Measurement(Outcome.OK, "", "f", metrics={"cpu/utilisation": 0.5}))
    assert tracker.client.get_run(run.run_id).data.metrics["cpu/utilisation"] == 0.5
    assert len(history(tracker, run, "cpu/utilisation")) == 3


def test_a_data_set_in_s3_is_named_by_its_address_and_not_by_a_path_in_a_container(tracker: Tracker) -> None:
    run = tracker.start("run", {})
    for name, source in (("rid", "s3://roofs/data/rid/"), ("airs", "/data/airs")):
        dataset = {"name": name, "digest": "abc", "source": source, "samples": {"train": 1, "val": 1}}
        run.event({"event": "start", "facts": {}, "steps_planned": 1, "inputs": [dataset]})
    run.flush()
    found = [entry.dataset for entry in tracker.client.get_run(run.run_id).inputs.dataset_inputs]
    assert {(one.source_type, json.loads(one.source)["uri"]) for one in found} == {
        ("s3", "s3://roofs/data/rid/"), ("local", "/data/airs")
    }  # fmt: skip


def test_the_same_summary_again_adds_no_point(tracker: Tracker) -> None:
    run = tracker.start("run", {})
    rows = tuple(ResourceSample(time.time() + second, {"cpu/utilisation": 0.9}) for second in (1, 3))
    measured = Measurement(
        Outcome.OK, "", "f", metrics={"cpu/utilisation": 0.5, "memory/peak_mib": 7.0}, resources=rows
    )
    run.log_summary(measured)
    again = tracker.resume(run.run_id)
    assert again
    again.log_summary(measured)
    for name in ("cpu/utilisation", "memory/peak_mib"):
        assert len(history(tracker, run, name)) == 1


def test_more_points_than_one_call_takes_all_arrive(tracker: Tracker) -> None:
    run = tracker.start("run", {})
    for number in range(1, 451):  # five series each
        run.event(step(number))
    run.flush()
    assert len(history(tracker, run, "train/lr")) == 450


def test_a_run_that_the_server_no_longer_has_cannot_be_resumed(tracker: Tracker) -> None:
    run = tracker.start("run", {})
    tracker.client.delete_run(run.run_id)
    assert tracker.resume(run.run_id) is None
    assert tracker.resume("0" * 32) is None


def test_a_deleted_experiment_is_restored(tracker: Tracker) -> None:
    tracker.client.delete_experiment(tracker.experiment_id)
    assert Tracker("tracked").experiment_id == tracker.experiment_id


def test_the_store_is_the_tests_own(tracker: Tracker, tmp_path: Path) -> None:
    assert str(tmp_path) in os.environ["MLFLOW_TRACKING_URI"]
    assert str(tmp_path) in tracker.uri
