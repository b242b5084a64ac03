"""Training jobs end to end, through the real command line: ``make test-sagemaker``.

The simulator in ../shared/sagemaker-sim really runs the jobs, in containers of the image that the Dockerfile makes,
behind the API of SageMaker as boto3 speaks it; S3 is moto's. Losses are held against the same run on this machine.
"""

import dataclasses
import itertools
import json
import signal
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import boto3
import pytest
from mlflow import MlflowClient
from tests.flaky_mlflow_server import Line
from tests.sagemaker.environment import LONG, LONGEST_SECONDS, SMALL, TOP, Place, ended, losses

from roofscale import config
from roofscale.measurement import Measurement, Outcome

pytestmark = pytest.mark.alone


@pytest.fixture(scope="session")
def climbed(place: Place) -> Mapping[str, Any]:
    """Phase 1 as jobs, one after the other: what the command says of it."""
    return climb_phase_1(place)


def climb_phase_1(place: Place, *words: str, **settings: str) -> Mapping[str, Any]:
    files = (str(TOP / "experiments" / name) for name in ("phase1.yaml", "smoke.yaml"))
    named = itertools.chain.from_iterable(zip(("--file", "--overlay"), files, strict=True))
    command = place.start("phase", "1", *named, "--compute", "ml.m5.xlarge", "--runner", "sagemaker", "--json", *words,
                          **settings)  # fmt: skip
    out, err = command.communicate(timeout=2 * LONGEST_SECONDS)
    assert command.returncode == 0, err
    found: Mapping[str, Any] = json.loads(out)
    return found


def test_a_job_yields_what_a_local_run_does(place: Place) -> None:
    there, code = place.train(*SMALL)
    here, _ = place.train("--fresh", *SMALL, runner="local")
    assert (there.outcome, code) == (Outcome.OK, 0)
    assert place.agree(losses(there), losses(here))
    assert place.real or [v.metrics for v in there.validations] == [v.metrics for v in here.validations]
    assert there.metrics.keys() - here.metrics.keys() == {"cost/billable_seconds", "cost/usd", "cost/start_seconds"}
    assert here.metrics.keys() - there.metrics.keys() <= {"memory/kernel_peak_mib"}  # a job can make no cgroup
    assert there.metric("memory/peak_mib") > 100
    assert there.resources


def test_phase_1_as_jobs(place: Place, climbed: Mapping[str, Any]) -> None:
    steps = climbed["steps"]
    assert [step["outcome"] for step in steps] == ["ok"] * len(steps)
    assert len(steps) >= 3
    assert all(step["metrics"]["cost/usd"] > 0 for step in steps)
    jobs = (place.folder / climbed["folder"]).glob("*/job.json")
    assert len({json.loads(file.read_text())["key"] for file in jobs}) == len(steps)


@pytest.mark.usefixtures("climbed")
def test_phase_1_is_on_record_where_the_arn_leads(simulated: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):  # artifacts lie in its S3
        monkeypatch.setenv(name, simulated.environment[name])
    client = MlflowClient(simulated.mlflow)
    experiment = client.get_experiment_by_name("roofscale-phase1")
    assert experiment
    steps = client.search_runs([experiment.experiment_id], "tags.step != ''")
    assert len(steps) >= 3
    for run in steps:
        assert (run.info.status, run.data.params["compute"]) == ("FINISHED", "ml.m5.xlarge")
        for metric in ("memory/mib_per_sample", "speed/samples_per_s", "system/cpu_utilization_percentage",
                       "cost/billable_seconds"):  # fmt: skip
            assert run.data.metrics[metric] > 0, metric
        assert len(client.get_metric_history(run.info.run_id, "train/loss")) == run.data.metrics["train/steps"]
        assert client.get_metric_history(run.info.run_id, "memory/used_mib")
        assert run.info.artifact_uri.startswith(f"s3://{simulated.bucket}/mlflow/")
        assert "measurement.json" in {item.path for item in client.list_artifacts(run.info.run_id)}


def test_steps_side_by_side_come_to_what_they_come_to_one_after_the_other(
    place: Place, climbed: Mapping[str, Any]
) -> None:
    before = {folder.name: spans(folder) for folder in (place.folder / climbed["folder"]).glob("*/")}
    again = climb_phase_1(place, "--fresh", max_parallel_jobs="2")
    after = {folder.name: spans(folder) for folder in (place.folder / again["folder"]).glob("*/")}
    assert {name: losses for name, (_, _, losses) in after.items()} == {
        name: losses for name, (_, _, losses) in before.items()
    }
    times = sorted((began, ended) for began, ended, _ in after.values())
    assert any(second < ended for (_, ended), (second, _) in itertools.pairwise(times)), "none overlap"


def spans(folder: Path) -> tuple[float, float, list[float]]:
    """When the first and the last event of a run was, and its losses."""
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    times = [event["time"] for event in events]
    return times[0], times[-1], losses(Measurement.load(folder / "measurement.json"))


def test_status_finds_a_running_job_and_a_dry_run_shows_its_request(place: Place) -> None:
    words = (*LONG, "seed=12")
    code, said = ended(place.start("train", "--dry-run", "--json", "--runner", "sagemaker", *words))
    assert code == 0, said
    (request,) = json.loads(said)["requests"]
    command = place.start("train", "--json", "--runner", "sagemaker", *words, on_interrupt="stop")
    name = place.job(*words)
    code, said = ended(place.start("status", "--json"))
    assert code == 0, said
    assert list(json.loads(said)["jobs"]) == [name]
    command.send_signal(signal.SIGINT)
    ended(command)
    assert (
        request["TrainingJobName"].rpartition("-")[0].rpartition("-")[0] == name.rpartition("-")[0].rpartition("-")[0]
    )


def test_out_of_memory_at_8_gib(place: Place) -> None:
    found, code = place.train(*OUT_OF_MEMORY)
    assert (found.outcome, code) == (Outcome.HOST_OOM, 1)
    assert "lower batch_size" in found.detail
    assert found.metric("cost/billable_seconds") > 0


def test_a_stopped_job_is_gone_on_with_to_the_last_bit(place: Place, uninterrupted: list[float]) -> None:
    command = place.start("train", "--json", "--runner", "sagemaker", *LONG, on_interrupt="stop")
    place.job(*LONG)
    command.send_signal(signal.SIGINT)
    code, said = ended(command)
    assert code == 130, said
    found = place.to_its_end(*LONG)
    assert found.outcome is Outcome.OK, found.detail
    assert 0 < int(found.facts["resumed_at_step"]) < len(uninterrupted)
    assert not found.facts["job"].endswith("-1")
    assert place.agree(losses(found), uninterrupted)


def test_a_spot_job_survives_the_loss_of_its_instance(simulated: Place, uninterrupted: list[float]) -> None:
    command = simulated.start("train", "--json", "--fresh", "--runner", "sagemaker", *LONG, spot="true")
    interrupt(simulated, simulated.job(*LONG))
    out, err = command.communicate(timeout=LONGEST_SECONDS)
    assert command.returncode == 0, err
    found = Measurement.load(simulated.folder / json.loads(out)["folder"] / "measurement.json")
    assert losses(found) == uninterrupted
    assert found.facts["job"].endswith("-1"), "the service itself has started the same job again"
    assert int(found.facts["resumed_at_step"]) > 0
    assert 0 <= found.metric("cost/spot_saving") < 1


def interrupt(place: Place, job: str) -> None:
    """Take a spot job's instance away."""
    address = f"http://127.0.0.1:{int(place.environment['SIM_PORT']) + 1}/interrupt/{job}"
    urllib.request.urlopen(urllib.request.Request(address, method="POST"), timeout=30).read()


OUT_OF_MEMORY = ("compute=ml.m5.large", "batch_size=24", "max_samples=48", "val_samples=1", "num_workers=0",
                 "threads=2", "precision=fp32", "channels_last=false")  # fmt: skip


@pytest.mark.parametrize(
    ("words", "status", "outcome"),
    [((*SMALL, "seed=21"), "FINISHED", "ok"), ((*OUT_OF_MEMORY, "seed=21"), "FAILED", "host_oom")],
    ids=["ok", "host_oom"],
)
def test_a_job_whose_launcher_is_killed_logs_itself_to_its_end(
    words: tuple[str, ...], status: str, outcome: str, simulated: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed as soon as the job is submitted; the same command judges the run later, and runs nothing again."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):  # artifacts lie in its S3
        monkeypatch.setenv(name, simulated.environment[name])
    client, service = MlflowClient(simulated.mlflow), boto3.client("sagemaker", region_name="eu-west-1")
    command = simulated.start("train", "--json", "--runner", "sagemaker", *words)
    fingerprint = config.load(None, words).fingerprint
    prefix = f"roofscale-train-{fingerprint}"
    jobs = lambda: service.list_training_jobs(NameContains=prefix)["TrainingJobSummaries"]  # noqa: E731
    until = time.monotonic() + LONGEST_SECONDS
    while not jobs() and time.monotonic() < until:
        time.sleep(0.2)
    command.kill()
    command.communicate()
    experiment = client.get_experiment_by_name("roofscale-train")
    assert experiment
    runs = lambda: client.search_runs([experiment.experiment_id], f"tags.fingerprint = '{fingerprint}'")  # noqa: E731
    while runs()[0].info.status == "RUNNING" and time.monotonic() < until:
        time.sleep(1)
    (run,) = runs()
    assert (run.info.status, run.data.tags["outcome"]) == (status, outcome)
    assert run.data.tags["logged_by"] == "the job"
    assert run.data.metrics["memory/peak_mib"] > 100
    assert run.data.metrics["system/cpu_utilization_percentage"] > 0
    if outcome == "ok":
        assert len(client.get_metric_history(run.info.run_id, "train/loss")) == run.data.metrics["train/steps"]
        assert run.data.metrics["speed/samples_per_s"] > 0
        assert run.data.metrics["memory/mib_per_sample"] > 0
        assert {"measurement.json", "figures"} <= {item.path for item in client.list_artifacts(run.info.run_id)}
        assert run.outputs.model_outputs
    found, _ = simulated.train(*words)
    (job,) = jobs()
    assert (found.facts["job"], found.outcome) == (job["TrainingJobName"], outcome)
    (judged,) = runs()
    assert judged.info.end_time == run.info.end_time
    assert judged.data.metrics.items() >= run.data.metrics.items()
    assert len(client.get_metric_history(run.info.run_id, "memory/peak_mib")) == 1


def test_who_lets_go_of_a_job_waits_for_the_same_one_later(place: Place) -> None:
    words = (*LONG, "seed=8")
    command = place.start("train", "--json", "--runner", "sagemaker", *words, on_interrupt="detach")
    name = place.job(*words)
    command.send_signal(signal.SIGINT)
    code, said = ended(command)
    assert code == 130, said
    assert "runs on" in said
    found, _ = place.train(*words)
    assert found.outcome is Outcome.OK, found.detail
    assert found.facts["job"] == name


def test_a_network_that_is_away_for_a_while_costs_nothing(simulated: Place) -> None:
    line = Line(int(simulated.environment["SIM_PORT"]))
    line.mend()
    words = (*LONG, "seed=13")
    behind = dataclasses.replace(simulated, environment={**simulated.environment, "AWS_ENDPOINT_URL": line.uri})
    command = behind.start("train", "--json", "--runner", "sagemaker", *words)
    behind.job(*words)
    line.cut()
    time.sleep(5)
    line.mend()
    out, err = command.communicate(timeout=LONGEST_SECONDS)
    line.cut()
    assert command.returncode == 0, err
    found = Measurement.load(simulated.folder / json.loads(out)["folder"] / "measurement.json")
    assert len(losses(found)) == found.metric("train/steps")


def test_a_job_that_the_service_ends_for_its_time(place: Place) -> None:
    found, code = place.train(*LONG, "seed=9", max_runtime_seconds="8")
    assert (found.outcome, code) == (Outcome.TIMEOUT, 1)
    assert "8 s" in found.detail


def test_values_that_a_shell_would_break(place: Place, tmp_path: Path) -> None:
    """The name of no encoder: the job tells it back as it was, and its fingerprint is that of the whole config."""
    name = 'it\'s "a" $HOME `x`;\nü 屋根'
    found, code = place.train(*SMALL, f"encoder={name}")
    assert (found.outcome, code) == (Outcome.CRASHED, 1)
    assert name in found.detail or repr(name) in found.detail
    assert found.fingerprint == config.load(None, [*SMALL, f"encoder={name}"]).fingerprint


def test_data_from_s3_whatever_its_folder_is_called(place: Place) -> None:
    local = next(place.folder.glob("data/generated/*"))
    key = 'it\'s a "place" ü'
    code, said = ended(place.start("data", "upload", str(local), f"s3://{place.bucket}/{key}"))
    assert code == 0, said
    there, _ = place.train(*SMALL, f"data_root=s3://{place.bucket}/{key}", "seed=3")
    here, _ = place.train(*SMALL, "seed=3", runner="local")
    assert there.outcome is Outcome.OK, there.detail
    assert place.agree(losses(there), losses(here))
    assert there.facts["data_fingerprint"] == here.facts["data_fingerprint"]


def test_network_keys_and_a_warm_pool_reach_the_service(simulated: Place) -> None:
    key = "1234abcd-12ab-34cd-56ef-1234567890ab"
    found, _ = simulated.train(*SMALL, "seed=15", subnets="subnet-1,subnet-2", security_groups="sg-1", kms_key=key,
                               keep_alive_seconds="600")  # fmt: skip
    assert found.outcome is Outcome.OK, found.detail
    here = simulated.environment
    session = boto3.Session(here["AWS_ACCESS_KEY_ID"], here["AWS_SECRET_ACCESS_KEY"], region_name="eu-west-1")
    service, s3 = (session.client(name, endpoint_url=here["AWS_ENDPOINT_URL"]) for name in ("sagemaker", "s3"))
    asked = service.describe_training_job(TrainingJobName=found.facts["job"])
    assert asked["VpcConfig"] == {"Subnets": ["subnet-1", "subnet-2"], "SecurityGroupIds": ["sg-1"]}
    assert asked["ResourceConfig"]["KeepAlivePeriodInSeconds"] == 600
    assert asked["ResourceConfig"]["VolumeKmsKeyId"] == asked["OutputDataConfig"]["KmsKeyId"] == key
    (channel,) = asked["InputDataConfig"]
    folder = channel["DataSource"]["S3DataSource"]["S3Uri"].removeprefix(f"s3://{simulated.bucket}/")
    assert s3.head_object(Bucket=simulated.bucket, Key=f"{folder}/config.json")["SSEKMSKeyId"] == key


@pytest.mark.parametrize(
    ("settings", "words", "said"),
    [
        ({"bucket": "no-such-bucket"}, (), "there is no such bucket"),
        ({"role": "RoofscaleJob"}, (), "role=RoofscaleJob: expected the ARN of an IAM role"),
        ({}, ("compute=local",), "expected an instance of SageMaker"),
        ({}, ("compute=ml.c5.xlarge",), "refused to create the job"),  # whose size the simulator does not know
        ({"budget_usd": "0.0001"}, (), "budget_usd=0.0001"),
    ],
)
def test_what_cannot_be_is_one_clear_message(
    settings: dict[str, str], words: tuple[str, ...], said: str, simulated: Place
) -> None:
    command = simulated.start("train", "--fresh", "--runner", "sagemaker", *SMALL, "seed=11", *words, **settings)
    code, told = ended(command)
    told = " ".join(told.split())
    assert said in told, told
    assert "Traceback" not in told
    assert code != 0


def test_who_waits_for_a_service_that_fails_is_told_and_can_leave(simulated: Place) -> None:
    """Of an image that is not there. The job fails, but asked for it this simulator answers 500 ever after, as of every
    job that ended before it began. What such a job comes to is in test_sagemaker_runner, and in test_local_mode.
    """
    said = simulated.folder / "said"
    with said.open("w") as stream:
        command = simulated.start("train", "--json", "--runner", "sagemaker", *SMALL, "seed=16", stderr=stream,
                                  image="no-such-image:1")  # fmt: skip
        until = time.monotonic() + LONGEST_SECONDS
        while "Trying again" not in said.read_text() and command.poll() is None and time.monotonic() < until:
            time.sleep(0.5)
        command.send_signal(signal.SIGINT)
        out, _ = command.communicate(timeout=LONGEST_SECONDS)
    told = " ".join(said.read_text().split())
    assert "(500) when calling the DescribeTrainingJob operation" in told
    assert "the same command finds it again" in told
    assert "Traceback" not in told
    assert command.returncode != 0, out
