"""A job that logs itself: what the server has once the job is over without a launcher, and what one adds to it."""

import dataclasses
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from tests.flaky_mlflow_server import Line
from tests.runners.job_folder import AWKWARD, left, start
from tests.runners.sagemaker_settings import SETTINGS, FakeCloud, described, packed

from roofscale.config import RunConfig
from roofscale.errors import ConfigError
from roofscale.measurement import LOGGED_BY, Measurement, Outcome, ResourceSample
from roofscale.runners.sagemaker.aws_errors import CloudError
from roofscale.runners.sagemaker.job import load_or_new
from roofscale.runners.sagemaker.runner import SageMakerRunner
from roofscale.runners.sagemaker.session import Session
from roofscale.runners.supervise import Listeners
from roofscale.tracking import TrackedRun, Tracker, apply
from roofscale.tracking.server import job_environment, job_logs_itself
from roofscale.training_job import MlflowLog

ARN = "arn:aws:sagemaker:eu-west-1:123456789012:mlflow-app/app-ABC"


@pytest.fixture
def opened(line: Line, monkeypatch: pytest.MonkeyPatch) -> TrackedRun:
    """The run that a launcher has opened before it was gone; processes that this test starts find it."""
    run = Tracker("jobs").start("run", {})
    monkeypatch.setenv("MLFLOW_RUN_ID", run.run_id)
    return run


def points(run: TrackedRun) -> dict[str, list[tuple[int, float, int]]]:
    """Every point of every metric that the server has."""
    client = MlflowClient()
    names = client.get_run(run.run_id).data.metrics
    histories = {name: client.get_metric_history(run.run_id, name) for name in names}
    return {name: [(p.step, p.value, p.timestamp) for p in history] for name, history in histories.items()}


@pytest.mark.parametrize(
    ("how", "status", "outcome"),
    [
        ("ok", "FINISHED", "ok"),
        pytest.param("data_error", "FAILED", "data_error", marks=pytest.mark.slow),
        pytest.param("segfault", "FAILED", "crashed", marks=pytest.mark.slow),
        pytest.param("wait", "KILLED", "interrupted", marks=pytest.mark.slow),
    ],
)
def test_the_run_is_whole_and_closed_although_nobody_watched(
    how: str,
    status: str,
    outcome: str,
    top: Path,
    opened: TrackedRun,
) -> None:
    job = start(how, top)
    if how == "wait":
        until = time.monotonic() + 300
        while not (top / "checkpoints/events.jsonl").exists() and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.3)
        job.send_signal(signal.SIGTERM)
    print(job.communicate(timeout=300)[0])
    assert left(top).facts[LOGGED_BY] == "the job"
    found = MlflowClient().get_run(opened.run_id)
    assert (found.info.status, found.data.tags["outcome"]) == (status, outcome)
    assert found.data.tags["outcome_detail"] == left(top).detail
    assert found.data.metrics["system/cpu_utilization_percentage"] >= 0
    assert found.info.end_time / 1000 == pytest.approx(left(top).ended, abs=0.01)
    if how == "ok":
        assert [value for _, value, _ in points(opened)["train/loss"]] == [1, 1 / 2, 1 / 3, 1 / 4]
        assert found.data.metrics["speed/samples_per_s"] == left(top).metric("speed/samples_per_s")
        assert "memory/peak_mib" in found.data.metrics
        assert "val/rid/iou_roof" in found.data.metrics
        artifacts = {item.path for item in MlflowClient().list_artifacts(opened.run_id)}
        assert {"measurement.json", "figures"} <= artifacts


@pytest.mark.slow
def test_what_a_launcher_adds_later_are_no_points_that_the_job_has_logged(
    top: Path,
    opened: TrackedRun,
    tmp_path: Path,
) -> None:
    start("ok", top).communicate(timeout=300)
    before, ended = points(opened), MlflowClient().get_run(opened.run_id).info.end_time
    run = Tracker("jobs").resume(opened.run_id)
    assert run
    measured = launcher(tmp_path, top, run)
    run.log_summary(measured)
    run.finish(measured.outcome, measured.ended)
    after = points(opened)
    added = {name for name in after if name not in before}
    assert added == {"cost/billable_seconds", "cost/usd", "cost/start_seconds"}
    assert {name: after[name] for name in before} == before
    closed = MlflowClient().get_run(opened.run_id).info
    assert (closed.status, closed.end_time) == ("FINISHED", ended)


def launcher(folder: Path, top: Path, run: TrackedRun) -> Measurement:
    """What the launcher of a job measures that has left these files."""
    config = dataclasses.replace(AWKWARD, compute="ml.m5.xlarge", data_root="s3://roofs/data")
    cloud = FakeCloud(
        described("InProgress", Environment={"MLFLOW_RUN_ID": run.run_id}),
        described("Completed", Environment={"MLFLOW_RUN_ID": run.run_id}),
    )
    runner = SageMakerRunner(folder / "launcher", Listeners(run), session=Session(SETTINGS, connect=lambda *_: cloud))
    cloud.submit = lambda request: leave(cloud, request, top)  # type: ignore[method-assign]
    return runner(config)


def leave(cloud: FakeCloud, request: dict, top: Path) -> None:  # type: ignore[type-arg]
    cloud._known = True
    name, folder = request["TrainingJobName"], request["CheckpointConfig"]["S3Uri"]
    measurement = (top / "output/data/measurement.json").read_bytes()
    cloud.objects[f"s3://roofs/roofscale/output/{name}/output/output.tar.gz"] = packed("measurement.json", measurement)
    cloud.objects[f"{folder}/events.jsonl"] = (top / "checkpoints/events.jsonl").read_bytes()


def test_what_a_job_could_not_log_its_launcher_logs(
    top: Path,
    opened: TrackedRun,
    line: Line,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ROOFSCALE_TRACKING_PATIENCE", "1")
    line.cut()
    said, _ = start("ok", top).communicate(timeout=300)
    line.mend()
    assert LOGGED_BY not in left(top).facts
    assert "MLflow: " in said
    assert points(opened) == {}
    measured = launcher(tmp_path, top, opened)
    opened.log_summary(measured)
    assert [value for _, value, _ in points(opened)["train/loss"]] == [1, 1 / 2, 1 / 3, 1 / 4]
    assert points(opened)["system/cpu_utilization_percentage"]


def test_a_launcher_that_watches_a_job_which_logs_itself_logs_none_of_its_points(opened: TrackedRun) -> None:
    opened.event({"event": "elsewhere", "logs_itself": True})
    opened.event({"event": "step", "time": 1.0, "step": 1, "loss": 1.0, "grad_norm": 1.0, "lr": 1.0, "seconds": 1.0,
                  "wait_seconds": 0.0})  # fmt: skip
    opened.flush()
    assert points(opened) == {}


def test_a_launcher_that_leaves_a_job_which_logs_itself_leaves_its_run_open(
    top: Path, opened: TrackedRun, tmp_path: Path
) -> None:
    cloud = FakeCloud(described("InProgress", Environment={"MLFLOW_RUN_ID": opened.run_id}), known=True)
    session = Session(dataclasses.replace(SETTINGS, on_interrupt="detach"), connect=lambda *_: cloud)
    runner = SageMakerRunner(tmp_path / "launcher", Listeners(opened), session=session)
    (tmp_path / "launcher").mkdir()
    load_or_new(tmp_path / "launcher").save(tmp_path / "launcher")
    session.stop_request.request()
    measured = runner(dataclasses.replace(AWKWARD, compute="ml.m5.xlarge", data_root="s3://roofs/data"))
    opened.log_summary(measured)
    opened.finish(measured.outcome)
    assert "runs on" in measured.detail
    assert MlflowClient().get_run(opened.run_id).info.status == "RUNNING"


def test_a_refused_job_closes_its_run(opened: TrackedRun, tmp_path: Path) -> None:
    cloud = FakeCloud()

    def refuse(request: object) -> None:
        raise ConfigError("AWS refused to create the job")

    cloud.submit = refuse  # type: ignore[method-assign]
    runner = SageMakerRunner(tmp_path / "run", Listeners(opened), session=Session(SETTINGS, connect=lambda *_: cloud))
    with pytest.raises(ConfigError), opened.closed_on_error():
        runner(dataclasses.replace(AWKWARD, compute="ml.m5.xlarge", data_root="s3://roofs/data"))
    found = MlflowClient().get_run(opened.run_id)
    assert (found.info.status, found.data.tags["outcome"]) == ("FAILED", "crashed")
    assert found.data.tags["outcome_detail"] == "AWS refused to create the job"
    assert load_or_new(tmp_path / "run").number == 1, "the same command submits the same job"


def test_an_error_while_a_job_logs_itself_leaves_its_run_open(opened: TrackedRun, tmp_path: Path) -> None:
    def away() -> dict[str, Any]:
        raise CloudError("AWS did not answer")

    cloud = FakeCloud(described("InProgress", Environment={"MLFLOW_RUN_ID": opened.run_id}), away, known=True)
    runner = SageMakerRunner(tmp_path / "run", Listeners(opened), session=Session(SETTINGS, connect=lambda *_: cloud))
    (tmp_path / "run").mkdir()
    load_or_new(tmp_path / "run").save(tmp_path / "run")
    with pytest.raises(CloudError), opened.closed_on_error():
        runner(dataclasses.replace(AWKWARD, compute="ml.m5.xlarge", data_root="s3://roofs/data"))
    found = MlflowClient().get_run(opened.run_id)
    assert (found.info.status, "outcome" in found.data.tags) == ("RUNNING", False)


def test_what_the_server_refuses_is_left_to_the_launcher(
    opened: TrackedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As artifacts are whose role may call the server and may not write to its bucket."""

    def refuse(*_: object) -> None:
        raise PermissionError("AccessDenied")

    monkeypatch.setitem(apply._APPLY_BY_KIND, "artifact", refuse)
    log = MlflowLog()
    assert log.finish(Measurement(Outcome.CRASHED, "why", "f"), AWKWARD, tmp_path) is None
    found = MlflowClient().get_run(opened.run_id)
    assert (found.info.status, found.data.tags["outcome"]) == ("FAILED", "crashed")


def test_further_machines_log_their_resources_and_nothing_else(opened: TrackedRun) -> None:
    log = MlflowLog(rank=1)
    log.event({"event": "step", "time": 1.0, "step": 1, "loss": 1.0})
    log.resources(
        ResourceSample(time.time(), {"memory/used_mib": 5.0, "system/node_1/cpu_utilization_percentage": 9.0})
    )
    logged = log.finish(Measurement(Outcome.OK, "", "f"), RunConfig(), Path())
    assert logged
    assert LOGGED_BY in logged.facts
    assert points(opened).keys() == {"node1/memory/used_mib", "system/node_1/cpu_utilization_percentage"}
    assert MlflowClient().get_run(opened.run_id).info.status == "RUNNING"


@pytest.mark.parametrize(
    ("uri", "logged_by", "reached"),
    [
        (ARN, "auto", True),
        (ARN, "launcher", False),
        ("https://mlflow.example.org", "auto", True),
        ("https://user:secret@mlflow.example.org", "auto", False),
        ("https://localhost:5000", "auto", False),
        ("http://mlflow.example.org:5000", "auto", False),
        ("http://mlflow.vpc:5000", "job", True),
        ("sqlite:///mlflow.db", "auto", False),
    ],
)
def test_who_logs_follows_from_the_address(
    uri: str, logged_by: str, reached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    expected = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_RUN_ID": "abc"} if reached else {}
    assert job_logs_itself(logged_by) is reached
    assert job_environment("abc", logged_by) == expected


def test_no_secret_is_in_the_environment_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.org")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
    assert job_environment("abc", "auto") == {}
    with pytest.raises(ConfigError, match="Set logged_by: launcher") as refused:
        job_environment("abc", "job")
    assert "secret" not in str(refused.value)


def test_the_request_names_the_run_and_the_job_is_told_from_its_description(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Heard:
        run_id = "abc"
        events: list[dict] = []  # type: ignore[type-arg]  # noqa: RUF012

        def event(self, event: dict) -> None:  # type: ignore[type-arg]
            self.events.append(event)

        def resources(self, sample: object) -> None: ...

    monkeypatch.setenv("MLFLOW_TRACKING_URI", ARN)
    cloud, heard = FakeCloud(described()), Heard()
    config = dataclasses.replace(AWKWARD, compute="ml.m5.xlarge", data_root="s3://roofs/data")
    SageMakerRunner(tmp_path / "run", Listeners(heard), session=Session(SETTINGS, connect=lambda *_: cloud))(config)
    named = {"ROOFSCALE_DATA_SOURCE": "s3://roofs/data/{name}/", "MLFLOW_TRACKING_URI": ARN, "MLFLOW_RUN_ID": "abc"}
    assert cloud.requests[0]["Environment"] == named
    assert [event.get("logs_itself") for event in heard.events if event["event"] == "elsewhere"] == [False, True, False]
    assert json.dumps(cloud.requests[0])
