"""A tracking server that goes away: nothing logged is lost, nobody waits for it who watches a training."""

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from mlflow import MlflowClient
from tests.flaky_mlflow_server import Line
from tests.tracking.tiny_run import Tiny, step

from roofscale.config import RunConfig
from roofscale.measurement import Measurement, Outcome
from roofscale.tracking import TrackedRun, Tracker, save_model, sender, server
from roofscale.tracking.outbox import Operation, Outbox
from roofscale.tracking.server import TrackingError
from roofscale.tracking.sync import SyncResult, active_outboxes, pending, send_abandoned


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "_PAUSES", (0.05, 0.2))


def seconds_of_patience(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setenv(server.PATIENCE, str(seconds))


def losses(run: TrackedRun) -> list[tuple[int, float]]:
    """Every point of the training loss that the server has, doubles too."""
    return sorted((p.step, p.value) for p in MlflowClient().get_metric_history(run.run_id, "train/loss"))


def list_sent(runs: Path) -> list[SyncResult]:
    return list(send_abandoned(runs))


def test_what_happens_while_the_server_is_away_arrives_once_it_is_back(
    line: Line, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tracker = Tracker("gone-for-a-minute")
    run = tracker.start("run", {})
    for number in range(1, 4):
        run.event(step(number, loss=1 / number))
    run.flush()
    line.cut()
    for number in range(4, 7):
        run.event(step(number, loss=1 / number))
    run.flush()
    run.text("written while it was away", "report/page.html")
    run.model(partial(save_model, Tiny(), 8))
    run.set_aliases("last-good")
    run.log_summary(Measurement(Outcome.OK, "six steps", "f", metrics={"memory/peak_mib": 7.0}))
    run.finish(Outcome.OK)
    assert list((tmp_path / "runs" / "outbox").iterdir())
    line.mend()
    tracker.close()

    assert capfd.readouterr().out == ""  # where a script reads JSON
    assert losses(run) == [(n, 1 / n) for n in range(1, 7)]
    found = tracker.client.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.tags["outcome_detail"] == "six steps"
    assert found.data.metrics["memory/peak_mib"] == 7.0
    assert tracker.read_text(run.run_id, "report/page.html") == "written while it was away"
    assert tracker.client.get_model_version_by_alias("roofscale", "last-good").run_id == run.run_id
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_a_server_that_is_started_anew_between_two_runs_is_waited_for(line: Line) -> None:
    tracker = Tracker("between")
    first = tracker.start("first", {})
    first.finish(Outcome.OK)
    line.cut()
    threading.Timer(1.0, line.mend).start()
    second = tracker.start("second", {})
    line.cut()
    threading.Timer(1.0, line.mend).start()
    again = tracker.resume(second.run_id)
    assert again
    assert [run.name for run in tracker.attempts()] == ["second", "first"]


def test_who_watches_a_training_never_waits(tracking_store: None, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = threading.Event()
    tracker = Tracker("slow")
    run = tracker.start("run", {})
    real = sender.apply_operation

    def slow(client: MlflowClient, operation: Operation) -> None:
        assert answer.wait(60)
        real(client, operation)

    monkeypatch.setattr(sender, "apply_operation", slow)
    monkeypatch.setattr("roofscale.tracking.run._FLUSH_SECONDS", 0.0)
    run.event({"event": "start", "facts": {"device": "cpu"}, "steps_planned": 100})
    for number in range(1, 101):
        run.event(step(number))
    assert losses(run) == []  # and yet we came here
    answer.set()
    run.flush()
    assert len(losses(run)) == 100
    assert tracker.client.get_run(run.run_id).data.tags["device"] == "cpu"


def test_gone_for_good_says_what_is_kept_and_a_later_process_sends_it_once(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds_of_patience(monkeypatch, 0)
    tracker = Tracker("gone-for-good")
    run = tracker.start("run", {})
    line.cut()
    for number in range(1, 4):
        run.event(step(number, loss=1 / number))
    run.finish(Outcome.OK)
    for go_on in (lambda: tracker.start("next", {}), tracker.close):
        with pytest.raises(TrackingError, match=r"kept in runs/outbox/.*`roofscale sync` sends"):
            go_on()

    (kept,) = (tmp_path / "runs" / "outbox").iterdir()
    assert pending(tmp_path / "runs") == []  # its process is still there
    assert active_outboxes(tmp_path / "runs") == [kept]
    left = shutil.copytree(kept, tmp_path / "left" / "outbox" / kept.name)  # as if it were not
    with (left / "operations.jsonl").open("a") as torn:
        torn.write('{"kind": "batch", "run_')
    with pytest.raises(TrackingError, match="kept in"):
        list_sent(tmp_path / "left")
    line.mend()
    (sent,) = list_sent(tmp_path / "left")
    assert sent.runs == (run.run_id,)
    assert list_sent(tmp_path / "left") == []
    assert not left.parent.exists()
    tracker._patience = 60.0
    tracker.close()  # the first process sends it too, and that does no harm
    assert losses(run) == [(n, 1 / n) for n in range(1, 4)]
    assert tracker.client.get_run(run.run_id).info.status == "FINISHED"


def test_what_was_sent_twice_is_there_once(
    tracking_store: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Outbox, "clear", lambda self: None)
    tracker = Tracker("twice")
    run = tracker.start("run", {})
    kept = Outbox(tmp_path / "runs" / "outbox", server.tracking_uri())
    monkeypatch.setattr(run._sender, "enqueue", lambda operation: kept.keep(operation))
    run.log_params(RunConfig())
    run.event({"event": "start", "facts": {}, "steps_planned": 3, "inputs": [DATA]})
    for number in range(1, 4):
        run.event(step(number, loss=1 / number))
    run.model(partial(save_model, Tiny(), 8))
    run.set_aliases("last-good")
    run.finish(Outcome.OK)
    kept.leave()
    shutil.copytree(kept.folder, tmp_path / "again" / "outbox" / "1")
    list_sent(tmp_path / "runs")
    list_sent(tmp_path / "again")

    assert losses(run) == [(n, 1 / n) for n in range(1, 4)]
    found = tracker.client.get_run(run.run_id)
    assert len(found.outputs.model_outputs) == 1
    assert len(found.inputs.dataset_inputs) == 1
    assert len(tracker.client.search_model_versions("name = 'roofscale'")) == 1


DATA = {"name": "rid", "digest": "0123", "source": "/data", "samples": {"train": 3, "val": 1}}


def test_what_the_server_refuses_is_said_and_kept_for_sync(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    tracker = Tracker("refused")
    run = tracker.start("run", {})
    run.log_params(RunConfig(batch_size=2))
    for batch_size in (4, 8):
        run.log_params(RunConfig(batch_size=batch_size))
    run.set_tags({"after": "it"})
    run.finish(Outcome.OK)
    tracker.close()
    found = tracker.client.get_run(run.run_id)
    assert (found.info.status, found.data.tags["after"]) == ("FINISHED", "it")
    assert caplog.text.count("refuses the batch") == 1, "each kind is reported once"
    assert "batch_size" in caplog.text
    assert list_sent(Path("runs")) == [], "a next command does not offer it again by itself"
    (kept,) = pending(Path("runs"))
    assert kept.operations == 2
    (again,) = send_abandoned(Path("runs"), refused_too=True)
    assert len(again.refused) == 2
    assert [one.operations for one in pending(Path("runs"))] == [2], "still refused, so still kept"


def test_an_outbox_of_another_version_is_named_and_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    box = tmp_path / "outbox" / "20300101-000000-000000-1"
    box.mkdir(parents=True)
    (box / "operations.jsonl").write_text('{"address": "http://x"}\n{"kind": "batch"}\n')
    assert pending(tmp_path) == []
    assert "another version" in caplog.text
    assert (box / "operations.jsonl").exists()


def test_a_server_that_is_away_at_the_start_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somebody:hunter2@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "127.0.0.1")
    for ask in (lambda: Tracker("away"), lambda: Tracker.find("away")):
        with pytest.raises(TrackingError) as raised:
            ask()
        assert "Connection refused" in str(raised.value)
        assert "MLFLOW_TRACKING_URI" in str(raised.value)
        assert "hunter2" not in str(raised.value)
        assert "127.0.0.1" not in str(raised.value)
        assert raised.value.__cause__ is None
    assert not caplog.records
    assert list(tmp_path.iterdir()) == []


def test_credentials_are_not_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://user:p@ss:w0rd@host/mlflow")
    assert server.tracking_uri() == "postgresql://***@host/mlflow"
    box = Outbox(tmp_path / "outbox", server.tracking_uri())
    box.keep(Operation("batch", "0", {"tags": {"a": "b"}}))
    assert "w0rd" not in (box.folder / "operations.jsonl").read_text()


def test_something_that_is_no_tracking_server_is_said_to_be_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "ftp://example.org")
    with pytest.raises(TrackingError, match="ftp"):
        Tracker("nowhere")
    monkeypatch.setenv(server.PATIENCE, "a minute")
    with pytest.raises(Exception, match="expected a number of seconds"):
        Tracker("nowhere")


def test_system_metrics_go_on_over_a_gap_without_a_word(
    line: Line, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    tracker = Tracker("system")
    run = tracker.start("run", {})
    name = "system/cpu_utilization_percentage"
    with run.system_metrics():
        wait_for_step(run, name, 2)
        line.cut()
        run.flush()
        wait_for_step(run, name, 4)
        run.flush()
        line.mend()
        wait_for_step(run, name, 6)
    run.finish(Outcome.OK)
    tracker.close()
    steps = sorted(point.step for point in tracker.client.get_metric_history(run.run_id, name))
    assert len(steps) > 6
    assert steps == list(range(len(steps)))
    assert "Traceback" not in capfd.readouterr().err


def wait_for_step(run: TrackedRun, name: str, step: int) -> None:
    deadline = time.monotonic() + 60
    while run._last_steps.get(name, -1) < step:
        assert time.monotonic() < deadline, "no further sample"
        time.sleep(0.02)


def test_an_outbox_that_cannot_be_written_ends_no_run(
    line: Line, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "runs").write_text("no folder")
    tracker = Tracker("full")
    run = tracker.start("run", {})
    line.cut()
    run.set_tags({"said": "meanwhile"})
    run.event(step(1))
    run.flush()
    line.mend()
    tracker.close()
    assert tracker.client.get_run(run.run_id).data.tags["said"] == "meanwhile"
    assert losses(run) == [(1, 1.0)]
    assert "cannot be written" in caplog.text


@pytest.mark.slow  # MLflow waits 20 s for the lock before it says so
def test_a_locked_database_is_a_server_that_is_away(
    tracking_store: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tracker = Tracker("locked")
    run = tracker.start("run", {})
    with sqlite3.connect(tmp_path / "mlflow.db") as other:
        other.execute("BEGIN EXCLUSIVE")
        run.set_tags({"said": "behind the lock"})  # comes back when the database has refused once
        other.rollback()
    tracker.close()
    assert tracker.client.get_run(run.run_id).data.tags["said"] == "behind the lock"
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionError("refused"), True),
        (TimeoutError("timed out"), True),
        (FileNotFoundError("the file to send"), False),
        (PermissionError("a folder of artifacts that may not be written"), False),
        (ClientError({"ResponseMetadata": {"HTTPStatusCode": 403}}, "PutObject"), False),
        (ClientError({"ResponseMetadata": {"HTTPStatusCode": 503}}, "PutObject"), True),
        (EndpointConnectionError(endpoint_url="https://s3"), True),
        (TypeError("a mistake of ours"), False),
    ],
)
def test_only_what_may_pass_is_tried_again(error: Exception, expected: bool) -> None:
    assert server.is_transient(error) is expected


@pytest.mark.slow
def test_the_users_own_limits_are_respected() -> None:
    code = "import os; import roofscale.tracking; print(os.environ['MLFLOW_HTTP_REQUEST_TIMEOUT'])"
    assert run_python(code, {}) == "15"
    assert run_python(code, {"MLFLOW_HTTP_REQUEST_TIMEOUT": "77"}) == "77"


def run_python(code: str, environment: dict[str, str]) -> str:
    plain = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_HTTP")}
    done = subprocess.run([sys.executable, "-c", code], env={**plain, **environment}, capture_output=True, text=True)
    return done.stdout.strip()
