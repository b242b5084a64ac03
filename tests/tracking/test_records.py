"""What can be read back of a tracking server, and that reading leaves nothing on it."""

from functools import partial
from pathlib import Path

import pytest
from mlflow import MlflowClient
from tests.tracking.tiny_run import Tiny

from roofscale import tracking
from roofscale.config import RunConfig
from roofscale.measurement import Outcome
from roofscale.tracking import Tracker, save_model


@pytest.fixture
def tracker(tracking_store: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Tracker:
    monkeypatch.chdir(tmp_path)  # artifacts lie beside where the store is used from
    return Tracker("read")


def test_attempts_and_their_steps_in_order(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking.records, "_PAGE", 2)
    first, second = tracker.start("attempt 1", {}), tracker.start("attempt 2", {"verdict": "passed"})
    steps = [tracker.start(f"step {n}", {}, parent=second) for n in range(5)]
    tracker.start("elsewhere", {}, parent=first)
    gone = tracker.start("attempt 3", {})
    tracker.client.delete_run(gone.run_id)
    steps[0].log_params(RunConfig(batch_size=4))
    tracker.client.log_metric(steps[0].run_id, "memory/peak_mib", 7.0)
    steps[0].finish(Outcome.CRASHED)

    assert [run.name for run in tracker.attempts()] == ["attempt 2", "attempt 1"]
    assert tracker.attempts()[0].tags["verdict"] == "passed"
    found = tracker.children(second.run_id)
    assert [run.name for run in found] == [f"step {n}" for n in range(5)]
    assert {run.parent_id for run in found} == {second.run_id}
    assert (found[0].status, found[0].params["batch_size"]) == ("FAILED", "4")
    assert found[0].metrics["memory/peak_mib"] == 7.0
    assert found[0].ended is not None
    assert found[0].ended >= found[0].started > 1.7e9
    assert found[1].ended is None
    assert tracking.get_run(found[0].run_id) == found[0]
    assert tracking.get_run(gone.run_id) is None
    assert tracking.get_run("0" * 32) is None


def test_artifacts_come_back_and_absent_ones_are_none(tracker: Tracker, tmp_path: Path) -> None:
    run = tracker.start("run", {})
    assert tracker.read_text(run.run_id, "measurement.json") is None
    run.text("a phase", "report/phase1.html")
    assert tracker.read_text(run.run_id, "report/phase1.html") == "a phase"
    assert tracker.read_text(run.run_id, "report/phase2.html") is None
    (tmp_path / "fetched").mkdir()
    fetched = tracker.download(run.run_id, "report", tmp_path / "fetched")
    assert fetched
    assert [file.name for file in fetched.iterdir()] == ["phase1.html"]
    assert tracker.download(run.run_id, "nothing", tmp_path / "fetched") is None


def test_reading_what_was_never_used_makes_nothing(tmp_path: Path) -> None:
    assert Tracker.find("roofscale-phase1") is None
    assert tracking.get_run("0" * 32) is None
    assert tracking.run_by_alias("last-good") is None
    assert list(tmp_path.iterdir()) == []


def test_an_experiment_is_found_and_not_made(tracker: Tracker) -> None:
    assert Tracker.find("another") is None
    found = Tracker.find("read")
    assert found
    assert found.experiment_id == tracker.experiment_id
    tracker.client.delete_experiment(tracker.experiment_id)
    assert Tracker.find("read") is None
    assert [e.name for e in MlflowClient().search_experiments()] == ["Default"]


def test_an_alias_follows_the_run_that_was_promoted_last(tracker: Tracker) -> None:
    assert tracking.run_by_alias("last-good") is None
    runs = [tracker.start(name, {}) for name in ("no model", "first", "second")]
    for run in runs[1:]:
        run.model(partial(save_model, Tiny(), 8))
    runs[0].set_aliases("last-good")
    assert tracking.run_by_alias("last-good") is None
    for run in (*runs[1:], runs[2]):
        run.set_aliases("last-good", f"phase-{run.run_id[:4]}")
    latest = tracking.run_by_alias("last-good")
    assert latest
    assert latest.name == "second"
    assert tracking.run_by_alias(f"phase-{runs[1].run_id[:4]}") == tracking.get_run(runs[1].run_id)
    assert len(tracker.client.search_model_versions("name = 'roofscale'")) == 2
