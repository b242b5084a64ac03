"""The launcher's side without AWS: what it hands over, what it makes of what comes back, and how it is left alone."""

import dataclasses
import json
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.runners.sagemaker_settings import CONFIG, SETTINGS, FakeCloud, described, packed

from roofscale import compute
from roofscale.config import RunConfig
from roofscale.data.sources import data_fingerprint, open_sources
from roofscale.data.synthetic import GenerateSpec, generate
from roofscale.errors import ConfigError
from roofscale.measurement import Measurement, Outcome, ResourceSample
from roofscale.runners.events import Event
from roofscale.runners.job_pool import JobPool
from roofscale.runners.local import LocalRunner
from roofscale.runners.registry import get_runner
from roofscale.runners.sagemaker.job import Spending, load_or_new
from roofscale.runners.sagemaker.runner import SageMakerRunner, budget_seconds, instance_of, synthetic_specs
from roofscale.runners.sagemaker.runner import _poll_seconds as poll_seconds
from roofscale.runners.sagemaker.session import Session

STEP = {
    **{"event": "step", "step": 1, "epoch": 0, "dataset": "rid", "samples": 2, "loss": 0.5, "grad_norm": 1.0},
    **{"lr": 0.1, "seconds": 0.2, "wait_seconds": 0.0, "time": 1.0},
}
RAN_WELL = Measurement(
    Outcome.OK, "5 steps", CONFIG.fingerprint, metrics={"train/steps": 5.0}, facts={"device": "cpu"},
    resources=(ResourceSample(1.0, {"memory/used_mib": 9.0}),),
)  # fmt: skip


class Heard:
    """A listener that keeps what it hears."""

    run_id = ""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.samples: list[ResourceSample] = []

    def event(self, event: Event) -> None:
        self.events.append(event)

    def resources(self, sample: ResourceSample) -> None:
        self.samples.append(sample)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs/roofscale-phase1/001/01-first"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roofscale.runners.sagemaker.runner._poll_seconds", lambda waited, jobs: 0.0)


def session(cloud: FakeCloud, ask: Callable[[str], str] = input, **settings: Any) -> Session:
    connect: Callable[..., Any] = lambda *_: cloud  # noqa: E731
    return Session(dataclasses.replace(SETTINGS, **settings), connect=connect, ask=ask)


def runner(folder: Path, cloud: FakeCloud, listener: Heard | None = None, **settings: Any) -> SageMakerRunner:
    return SageMakerRunner(folder, listener or Heard(), session=session(cloud, **settings))


def leaves(
    cloud: FakeCloud, measurement: Measurement | None = RAN_WELL, **files: bytes
) -> Callable[[], dict[str, Any]]:
    """What a job does when it is next looked at: it writes its files and is over."""

    def work() -> dict[str, Any]:
        name = cloud.requests[-1]["TrainingJobName"]
        top = cloud.requests[-1]["CheckpointConfig"]["S3Uri"]
        for file, content in files.items():
            cloud.objects[f"{top}/{file.replace('__', '.')}"] = content
        if measurement:
            content = json.dumps(dataclasses.asdict(measurement)).encode()
            output = f"s3://roofs/roofscale/output/{name}/output/output.tar.gz"
            cloud.objects[output] = packed("measurement.json", content)
            return described("Completed" if measurement.outcome is Outcome.OK else "Failed")
        return described("Failed", FailureReason="AlgorithmError: , exit code: 137")

    return work


def run(
    folder: Path, measurement: Measurement | None = RAN_WELL, **files: bytes
) -> tuple[Measurement, FakeCloud, Heard]:
    cloud, heard = FakeCloud(), Heard()
    cloud._answers = [described("InProgress", "Starting"), leaves(cloud, measurement, **files)]
    return runner(folder, cloud, listener=heard)(CONFIG), cloud, heard


def test_the_same_measurement_comes_back_with_what_it_cost(folder: Path) -> None:
    found, _, heard = run(folder, events__jsonl=f"{json.dumps(STEP)}\n".encode(), stderr__log=b"said")
    assert (found.outcome, found.detail, found.fingerprint) == (Outcome.OK, "5 steps", CONFIG.fingerprint)
    assert found.metric("train/steps") == 5
    assert found.metric("cost/usd") == pytest.approx(60 / 3600 * compute.get("ml.m5.xlarge").usd_per_hour)
    assert found.facts["device"] == "cpu"
    assert found.facts["job"].startswith("roofscale-phase1-001-01-first-")
    assert Measurement.load(folder / "measurement.json").metrics == found.metrics
    assert STEP in heard.events
    assert heard.samples == list(RAN_WELL.resources)
    assert (folder / "stderr.log").read_bytes() == b"said"


def test_the_config_is_handed_over_as_a_file(folder: Path) -> None:
    _, cloud, _ = run(folder)
    (uri,) = (key for key in cloud.objects if key.endswith("config/config.json"))
    channel = cloud.requests[0]["InputDataConfig"][0]["DataSource"]["S3DataSource"]["S3Uri"]
    assert uri == f"{channel}/config.json"
    assert RunConfig().with_overrides(json.loads(cloud.objects[uri])) == CONFIG
    assert json.loads((folder / "config.json").read_text()) == CONFIG.as_dict()


def test_what_the_job_had_of_them_does_not_replace_the_launchers_files(folder: Path) -> None:
    run(folder, config__json=b"{}", checkpoint__pt=b"large")
    assert json.loads((folder / "config.json").read_text()) == CONFIG.as_dict()
    assert not (folder / "checkpoint.pt").exists()


def test_a_job_that_died_without_a_word_is_measured_by_its_events(folder: Path) -> None:
    found, _, _ = run(folder, None, events__jsonl=f"{json.dumps(STEP)}\n".encode())
    assert found.outcome is Outcome.HOST_OOM
    assert [step.loss for step in found.steps] == [0.5]
    assert found.metric("train/steps") == 1


def test_the_last_lines_of_its_log_are_told_of_a_job_that_crashed_without_a_measurement(folder: Path) -> None:
    cloud = FakeCloud(described("Failed", FailureReason="AlgorithmError: , exit code: 1"))
    cloud.log = [*map(str, range(9)), "", "exec /opt/venv/bin/python: exec format error"]
    found = runner(folder, cloud)(CONFIG)
    assert found.outcome is Outcome.CRASHED
    assert found.detail.endswith("Its log ends: 5 | 6 | 7 | 8 | exec /opt/venv/bin/python: exec format error")


def test_a_job_whose_image_is_not_there_says_what_to_do_and_costs_nothing(folder: Path) -> None:
    reason = "ClientError: Cannot pull algorithm container. Either the image does not exist or its permissions are bad."
    never_began = {"TrainingJobStatus": "Failed", "SecondaryStatus": "Failed", "FailureReason": reason}
    found = runner(folder, FakeCloud(described("InProgress", "Starting"), never_began))(CONFIG)
    assert (found.outcome, found.metrics, found.steps) == (Outcome.CRASHED, {}, ())
    assert "build and push it, or correct the setting image" in found.detail
    assert load_or_new(folder).number == 2, "the same command submits anew"


def test_an_interrupted_job_is_followed_by_one_with_the_same_folder(folder: Path) -> None:
    stopped = Measurement(Outcome.INTERRUPTED, "asked to stop", CONFIG.fingerprint)
    first, cloud, _ = run(folder, stopped)
    assert first.outcome is Outcome.INTERRUPTED
    second, again, _ = run(folder)
    assert second.outcome is Outcome.OK
    assert cloud.requests[0]["CheckpointConfig"] == again.requests[0]["CheckpointConfig"]
    assert [one.requests[0]["TrainingJobName"][-2:] for one in (cloud, again)] == ["-1", "-2"]
    assert load_or_new(folder).usd == pytest.approx(first.metric("cost/usd") + second.metric("cost/usd"))


def test_a_job_that_runs_already_is_waited_for_and_not_made_again(folder: Path) -> None:
    folder.mkdir(parents=True)
    load_or_new(folder).save(folder)
    cloud = FakeCloud(described("InProgress"), described("Stopped"), known=True)
    assert runner(folder, cloud)(CONFIG).outcome is Outcome.INTERRUPTED
    assert cloud.requests == []


@pytest.mark.parametrize(("on_interrupt", "stopped"), [("stop", 1), ("ask", 1), ("detach", 0)])
def test_ctrl_c_stops_the_job_or_lets_go_of_it(folder: Path, on_interrupt: str, stopped: int) -> None:
    running = runner(folder, cloud := FakeCloud(), on_interrupt=on_interrupt)

    def pressed() -> dict[str, Any]:
        running.session.stop_request.request()
        return described("InProgress")

    cloud._answers = [pressed, described("Stopped") if stopped else described("InProgress")]
    found = running(CONFIG)
    assert found.outcome is Outcome.INTERRUPTED
    assert len(cloud.stopped) == stopped
    assert ("runs on" in found.detail) is not bool(stopped)
    assert load_or_new(folder).number == (2 if stopped else 1)  # whoever let go of it waits for the same job later


@pytest.mark.parametrize(("answer", "stops"), [("", True), ("s", True), ("Detach", False)])
def test_at_a_terminal_a_person_is_asked(answer: str, stops: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    asked: list[str] = []

    def ask(question: str) -> str:
        asked.append(question)
        return answer

    jobs = session(FakeCloud(), ask, on_interrupt="ask")
    jobs.running |= {"one", "two"}
    assert [jobs.should_stop_jobs(), jobs.should_stop_jobs()] == [stops, stops]
    (question,) = asked  # for all jobs, once
    assert "Stop 2 jobs" in question


def test_a_ctrl_c_that_came_while_a_service_was_asked_ends_the_wait_for_it() -> None:
    jobs = session(FakeCloud(), on_interrupt="stop")
    assert not jobs.wait(0.0)
    jobs.stop_request.request()
    began = time.monotonic()
    assert jobs.wait(60.0)
    assert time.monotonic() - began < 30
    assert jobs.should_stop_jobs()
    assert not jobs.wait(0.0), "a stop under way is waited for"
    jobs.stop_request.request()
    assert jobs.wait(60.0), "and a second one is not"


def test_a_second_ctrl_c_lets_go_at_once(folder: Path) -> None:
    running = runner(folder, cloud := FakeCloud(), on_interrupt="stop")
    ask = running.session.stop_request.request
    cloud._answers = [lambda: ask() or described("InProgress"), described("Stopping")]
    cloud.stop = lambda name: ask()  # type: ignore[method-assign]  # while it is being stopped
    assert "runs on" in running(CONFIG).detail


class ManyJobs(FakeCloud):
    """A service whose jobs run until they are stopped."""

    def describe(self, name: str) -> dict[str, Any] | None:
        known = name in {request["TrainingJobName"] for request in self.requests}
        return described("Stopped" if name in self.stopped else "InProgress") if known else None


@pytest.mark.parametrize(("on_interrupt", "stopped"), [("stop", 3), ("detach", 0)])
def test_ctrl_c_stops_all_jobs_or_lets_go_of_them(folder: Path, on_interrupt: str, stopped: int) -> None:
    jobs = session(cloud := ManyJobs(), on_interrupt=on_interrupt)
    pool = JobPool(3, jobs.stop_request)
    folders = [folder.with_name(f"0{number}-step") for number in (1, 2, 3)]
    with pool.running():
        found = [pool.submit(partial(SageMakerRunner(place, session=jobs), CONFIG)) for place in folders]
        until = time.monotonic() + 20
        while len(jobs.running) < 3 and time.monotonic() < until:
            time.sleep(0.01)
        signal.raise_signal(signal.SIGINT)
        outcomes = [future.result().outcome for future in found]
    assert outcomes == [Outcome.INTERRUPTED] * 3
    assert len(set(cloud.stopped)) == len(cloud.stopped) == stopped
    assert [load_or_new(place).number for place in folders] == [2 if stopped else 1] * 3


def test_who_has_pressed_ctrl_c_before_a_job_is_made_does_not_get_one(folder: Path) -> None:
    running = runner(folder, cloud := FakeCloud())
    running.session.stop_request.request()
    found = running(CONFIG)
    assert (found.outcome, cloud.requests) == (Outcome.INTERRUPTED, [])
    assert "was not made" in found.detail
    assert not (folder / "job.json").exists()


def test_a_job_whose_folder_was_lost_is_known_by_its_tags(folder: Path) -> None:
    run(folder)
    _, before, _ = run(folder.with_name("02-second"))
    tags = {tag["Key"]: tag["Value"] for tag in before.requests[0]["Tags"]}
    shutil.rmtree(folder.with_name("02-second"))
    cloud = FakeCloud(described("InProgress"), described("Stopped"), known=True)
    cloud.under_way = {
        "roofscale-phase1-001-02-second-aaaaaa-3": {**tags, "roofscale:folder": "another-machine:/x"},
        "roofscale-phase1-001-02-second-bbbbbb-2": tags,
    }
    found = runner(folder.with_name("02-second"), cloud)(CONFIG)
    assert cloud.requests == []
    assert found.facts["job"] == "roofscale-phase1-001-02-second-bbbbbb-2"
    assert load_or_new(folder.with_name("02-second")).number == 3


def test_a_budget_ends_a_job_and_then_refuses(folder: Path) -> None:
    price = compute.get("ml.m5.xlarge").usd_per_hour
    cloud = FakeCloud(described("Stopped", "MaxRuntimeExceeded", BillableTimeInSeconds=3600))
    assert runner(folder, cloud, budget_usd=price)(CONFIG).outcome is Outcome.TIMEOUT
    assert cloud.requests[0]["StoppingCondition"]["MaxRuntimeInSeconds"] == 3600
    with pytest.raises(ConfigError, match=r"have cost 0\.23 USD"):
        runner(folder.with_name("02-second"), FakeCloud(), budget_usd=price)(CONFIG)


def test_several_machines_cost_as_many_times_as_much() -> None:
    one, three = (instance_of(CONFIG.with_overrides({"instance_count": count})) for count in (1, 3))
    assert one.usd_per_hour
    assert three == dataclasses.replace(one, usd_per_hour=pytest.approx(3 * one.usd_per_hour))


def test_a_budget_needs_a_price() -> None:
    with pytest.raises(ConfigError, match=r"no price of ml\.p4d"):
        budget_seconds(dataclasses.replace(SETTINGS, budget_usd=1.0), compute.get("ml.p4d.24xlarge"), Spending())


def test_jobs_side_by_side_cannot_together_go_beyond_the_budget() -> None:
    size = compute.get("ml.m5.xlarge")
    settings = dataclasses.replace(SETTINGS, budget_usd=3 * size.usd_per_hour, max_parallel_jobs=3)
    hours: list[float] = []
    for under_way in range(3):
        spent = Spending(0.0, sum(hours) * size.usd_per_hour, under_way)
        hours.append(budget_seconds(settings, size, spent) / 3600)
    assert hours == pytest.approx([1.0, 1.0, 1.0])
    one_is_over = Spending(0.5 * size.usd_per_hour, 2 * size.usd_per_hour, 2)  # it took half an hour of its hour
    assert budget_seconds(settings, size, one_is_over) == pytest.approx(1800)
    with pytest.raises(ConfigError, match="those under way may cost"):
        budget_seconds(settings, size, Spending(size.usd_per_hour, 2 * size.usd_per_hour, 2))


def test_nothing_is_remembered_of_a_job_that_could_not_be_asked_for(folder: Path) -> None:
    with pytest.raises(ConfigError, match="compute=local: expected an instance of SageMaker"):
        runner(folder, FakeCloud())(dataclasses.replace(CONFIG, compute="local"))
    assert not (folder / "job.json").exists()


def test_generated_data_is_made_again_from_its_spec(tmp_path: Path) -> None:
    spec = GenerateSpec(("rid",), train=2, val=1, test=0, image_px=32)
    generate(tmp_path, spec)
    config = RunConfig(data_root=str(tmp_path), max_samples=0, val_samples=0)
    (found,) = synthetic_specs(config).values()
    assert len(found.pop("only")) == 2 + 1, "all of training and validation"
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}
    assert GenerateSpec(**fields) == spec
    (tmp_path / "rid/generated.json").unlink()
    with pytest.raises(ConfigError, match=r"a job cannot see it.*roofscale data upload"):
        synthetic_specs(config)


def test_only_the_images_that_a_run_reads_are_drawn_in_its_job(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    generate(here, GenerateSpec(("rid",), train=20, val=5, test=1, image_px=32))
    config = RunConfig(data_root=str(here), max_samples=3, val_samples=2, image_size=32)
    found = synthetic_specs(config)["rid"]
    only = found.pop("only")
    generate(there, GenerateSpec(("rid",), train=20, val=5, test=1, image_px=32), only=only)
    assert len(list(there.rglob("*.tif"))) == 3 + 2
    assert data_fingerprint(open_sources(config, there)) == data_fingerprint(open_sources(config, here))
    assert "only" not in synthetic_specs(config.with_overrides({"split": "random"}))["rid"], "it deals out all images"
    with pytest.raises(ConfigError, match="not generated from this spec"):
        generate(there, GenerateSpec(("rid",), train=20, val=5, test=1, image_px=32))


def test_the_runner_is_chosen_by_name(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    here = get_runner("local", needed_after=("json",))
    local = here.make(folder, Heard())
    assert isinstance(local, LocalRunner)
    assert (local.needed_after, here.max_jobs) == (("json",), 1)
    for name in ("ROLE", "BUCKET", "IMAGE"):
        monkeypatch.setenv(f"ROOFSCALE_SAGEMAKER_{name}", "xyz")
    monkeypatch.setenv("ROOFSCALE_SAGEMAKER_MAX_PARALLEL_JOBS", "4")
    where = get_runner("sagemaker")
    made, other = (where.make(folder, Heard()) for _ in range(2))
    assert isinstance(made, SageMakerRunner)
    assert isinstance(other, SageMakerRunner)
    assert (made.session.settings.bucket, where.max_jobs) == ("xyz", 4)
    assert made.session is other.session
    assert made.session.stop_request is where.stop_request


def test_jobs_side_by_side_are_looked_at_more_rarely() -> None:
    assert poll_seconds(10, 1) == 0.5
    assert poll_seconds(3600, 1) == 2.5
    looks = [jobs / poll_seconds(3600, jobs) for jobs in (1, 5, 20, 100)]  # a second, at all of them
    assert max(looks) < 2.6
