"""The launcher's side without AWS: what it hands over, what it makes of what comes back, and how it is left alone."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.runners.sagemaker_settings import CONFIG, SETTINGS, FakeCloud, described, packed

from roofscale import compute
from roofscale.config import RunConfig
from roofscale.data.generate import GenerateSpec, generate
from roofscale.errors import ConfigError
from roofscale.measurement import Measurement, Outcome, ResourceSample
from roofscale.runners.choose import chosen
from roofscale.runners.events import Event
from roofscale.runners.local import LocalRunner
from roofscale.runners.sagemaker.job import of_run
from roofscale.runners.sagemaker.runner import SageMakerRunner, generated_specs, seconds_left

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
    monkeypatch.setattr("roofscale.runners.sagemaker.runner._FIRST_POLL", 0.0)


def runner(folder: Path, cloud: FakeCloud, **more: Any) -> SageMakerRunner:
    settings = {key: more.pop(key) for key in list(more) if key in ("on_interrupt", "budget_usd")}
    connect: Callable[..., Any] = lambda *_: cloud  # noqa: E731
    return SageMakerRunner(folder, settings=dataclasses.replace(SETTINGS, **settings), connect=connect, **more)


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


def test_an_interrupted_job_is_followed_by_one_with_the_same_folder(folder: Path) -> None:
    stopped = Measurement(Outcome.INTERRUPTED, "asked to stop", CONFIG.fingerprint)
    first, cloud, _ = run(folder, stopped)
    assert first.outcome is Outcome.INTERRUPTED
    second, again, _ = run(folder)
    assert second.outcome is Outcome.OK
    assert cloud.requests[0]["CheckpointConfig"] == again.requests[0]["CheckpointConfig"]
    assert [one.requests[0]["TrainingJobName"][-2:] for one in (cloud, again)] == ["-1", "-2"]
    assert of_run(folder).usd == pytest.approx(first.metric("cost/usd") + second.metric("cost/usd"))


def test_a_job_that_runs_already_is_waited_for_and_not_made_again(folder: Path) -> None:
    folder.mkdir(parents=True)
    of_run(folder).save(folder)
    cloud = FakeCloud(described("InProgress"), described("Stopped"), known=True)
    assert runner(folder, cloud)(CONFIG).outcome is Outcome.INTERRUPTED
    assert cloud.requests == []


@pytest.mark.parametrize(("on_interrupt", "stopped"), [("stop", 1), ("ask", 1), ("detach", 0)])
def test_ctrl_c_stops_the_job_or_lets_go_of_it(folder: Path, on_interrupt: str, stopped: int) -> None:
    cloud = FakeCloud(described("InProgress"), described("Stopped") if stopped else described("InProgress"))
    running = runner(folder, cloud, on_interrupt=on_interrupt)
    running.interrupt.ask()
    found = running(CONFIG)
    assert found.outcome is Outcome.INTERRUPTED
    assert len(cloud.stopped) == stopped
    assert ("runs on" in found.detail) is not bool(stopped)
    assert of_run(folder).number == (2 if stopped else 1)  # whoever let go of it waits for the same job later


@pytest.mark.parametrize(("answer", "stops"), [("", True), ("s", True), ("Detach", False)])
def test_at_a_terminal_a_person_is_asked(
    folder: Path, answer: str, stops: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    running = runner(folder, FakeCloud(), ask=lambda question: answer)
    assert running._wants_stop(of_run(folder)) is stops


def test_a_second_ctrl_c_lets_go_at_once(folder: Path) -> None:
    cloud = FakeCloud(described("InProgress"), described("Stopping"))
    running = runner(folder, cloud, on_interrupt="stop")
    cloud.stop = lambda name: running.interrupt.ask()  # type: ignore[method-assign]  # while it is being stopped
    running.interrupt.ask()
    assert "runs on" in running(CONFIG).detail


def test_a_budget_ends_a_job_and_then_refuses(folder: Path) -> None:
    price = compute.get("ml.m5.xlarge").usd_per_hour
    cloud = FakeCloud(described("Stopped", "MaxRuntimeExceeded", BillableTimeInSeconds=3600))
    assert runner(folder, cloud, budget_usd=price)(CONFIG).outcome is Outcome.TIMEOUT
    assert cloud.requests[0]["StoppingCondition"]["MaxRuntimeInSeconds"] == 3600
    with pytest.raises(ConfigError, match=r"have cost 0\.23 USD"):
        runner(folder.with_name("02-second"), FakeCloud(), budget_usd=price)(CONFIG)


def test_a_budget_needs_a_price() -> None:
    with pytest.raises(ConfigError, match=r"no price of ml\.p4d"):
        seconds_left(dataclasses.replace(SETTINGS, budget_usd=1.0), compute.get("ml.p4d.24xlarge"), 0.0)


def test_nothing_is_remembered_of_a_job_that_could_not_be_asked_for(folder: Path) -> None:
    with pytest.raises(ConfigError, match="compute=local: expected an instance of SageMaker"):
        runner(folder, FakeCloud())(dataclasses.replace(CONFIG, compute="local"))
    assert not (folder / "job.json").exists()


def test_generated_data_is_made_again_from_its_spec(tmp_path: Path) -> None:
    spec = GenerateSpec(("rid",), train=2, val=1, test=0, image_px=32)
    generate(tmp_path, spec)
    config = RunConfig(data_root=str(tmp_path))
    (found,) = generated_specs(config).values()
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}
    assert GenerateSpec(**fields) == spec
    (tmp_path / "rid/generated.json").unlink()
    with pytest.raises(ConfigError, match=r"a job cannot see it.*aws s3 sync"):
        generated_specs(config)


def test_the_runner_is_chosen_by_name(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    assert chosen("local") is LocalRunner
    for name in ("ROLE", "BUCKET", "IMAGE"):
        monkeypatch.setenv(f"ROOFSCALE_SAGEMAKER_{name}", "x")
    made = chosen("sagemaker")(folder, Heard())
    assert isinstance(made, SageMakerRunner)
    assert made.settings.bucket == "x"
