"""The request for a job: what it says, and that AWS's own model finds nothing wrong with it, lengths included."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runners.aws_schema import problems
from tests.runners.sagemaker_settings import CONFIG, SETTINGS

from roofscale.config import RunConfig
from roofscale.errors import ConfigError
from roofscale.runners.sagemaker import request
from roofscale.runners.sagemaker.job import (
    Job,
    Spending,
    from_name,
    key_prefix,
    load_or_new,
    new_job,
    spending,
    tags_of,
)
from roofscale.runners.sagemaker.settings import SageMakerSettings

JOB = Job("roofscale-phase1-001-02-50-samples-abc123")


def build(
    config: RunConfig = CONFIG, job: Job = JOB, tags: dict[str, str] | None = None, **more: Any
) -> dict[str, Any]:
    changed = {key: more.pop(key) for key in list(more) if key not in ("data_bytes", "most_seconds")}
    built = request.build_request(config, dataclasses.replace(SETTINGS, **changed), job, tags or {}, **more)
    assert problems("CreateTrainingJob", built) == []
    return built


def test_python_is_process_1_and_nothing_is_a_hyperparameter() -> None:
    built = build()
    entrypoint = built["AlgorithmSpecification"]["ContainerEntrypoint"]
    assert entrypoint[0] == "python"
    assert not any(word == "sh" or word.endswith("/sh") or "bash" in word for word in entrypoint)
    assert built["AlgorithmSpecification"]["ContainerArguments"] == ["--fingerprint", CONFIG.fingerprint]
    assert "HyperParameters" not in built
    assert built["Environment"] == {"ROOFSCALE_DATA_SOURCE": "s3://roofs/data/{name}/"}


def test_each_data_set_is_a_channel_and_so_is_the_config() -> None:
    channels = {one["ChannelName"]: one for one in build(input_mode="FastFile")["InputDataConfig"]}
    uris = {name: one["DataSource"]["S3DataSource"]["S3Uri"] for name, one in channels.items()}
    assert uris == {"config": f"s3://roofs/roofscale/{JOB.key}/config", "rid": "s3://roofs/data/rid/",
                    "airs": "s3://roofs/data/airs/"}  # fmt: skip
    assert [channels[name]["InputMode"] for name in ("config", "rid")] == ["File", "FastFile"]


def test_generated_data_has_no_channel() -> None:
    local = CONFIG.with_overrides({"data_root": "/somewhere"})
    assert [one["ChannelName"] for one in build(local)["InputDataConfig"]] == ["config"]


def test_jobs_of_one_run_share_its_folder_and_nothing_else() -> None:
    first, second = build(), build(job=dataclasses.replace(JOB, number=2))
    assert first["CheckpointConfig"] == second["CheckpointConfig"]
    assert first["CheckpointConfig"]["LocalPath"] == "/opt/ml/checkpoints"
    assert first["TrainingJobName"] != second["TrainingJobName"]


def test_the_service_stops_later_than_the_run_itself() -> None:
    config = CONFIG.with_overrides({"timeout_seconds": 100.5})
    assert build(config)["StoppingCondition"] == {"MaxRuntimeInSeconds": 701}
    assert build(config, max_runtime_seconds=50)["StoppingCondition"] == {"MaxRuntimeInSeconds": 50}
    assert build(config, most_seconds=77.9)["StoppingCondition"] == {"MaxRuntimeInSeconds": 77}
    assert (
        build(CONFIG.with_overrides({"timeout_seconds": 1e9}))["StoppingCondition"]["MaxRuntimeInSeconds"] == 2_419_200
    )


def test_a_spot_job_may_wait_on_top_of_its_running_time() -> None:
    built = build(spot=True, max_wait_seconds=500, max_runtime_seconds=100)
    assert built["EnableManagedSpotTraining"] is True
    assert built["StoppingCondition"] == {"MaxRuntimeInSeconds": 100, "MaxWaitTimeInSeconds": 600}
    assert build()["EnableManagedSpotTraining"] is False


def test_the_volume_holds_what_file_mode_copies() -> None:
    assert build(data_bytes=100_000_000_000)["ResourceConfig"]["VolumeSizeInGB"] == 150
    assert build(data_bytes=100_000_000_000, input_mode="FastFile")["ResourceConfig"]["VolumeSizeInGB"] == 30


def test_a_run_on_several_machines_asks_for_as_many() -> None:
    assert build()["ResourceConfig"]["InstanceCount"] == 1
    assert build(CONFIG.with_overrides({"instance_count": 3}))["ResourceConfig"]["InstanceCount"] == 3


def test_network_keys_and_warm_pool() -> None:
    assert not {"VpcConfig"} & set(build())
    built = build(subnets=("subnet-1",), security_groups=("sg-1",), kms_key="key-1", keep_alive_seconds=600)
    assert built["VpcConfig"] == {"Subnets": ["subnet-1"], "SecurityGroupIds": ["sg-1"]}
    assert built["ResourceConfig"]["VolumeKmsKeyId"] == built["OutputDataConfig"]["KmsKeyId"] == "key-1"
    assert built["ResourceConfig"]["KeepAlivePeriodInSeconds"] == 600


def test_disks_of_an_instances_own_take_the_place_of_a_volume_and_no_key() -> None:
    gpu = CONFIG.with_overrides({"compute": "ml.g5.xlarge"})
    built = build(gpu, kms_key="key-1", data_bytes=100_000_000_000)
    assert built["ResourceConfig"]["VolumeSizeInGB"] == 150
    assert "VolumeKmsKeyId" not in built["ResourceConfig"]
    assert built["OutputDataConfig"]["KmsKeyId"] == "key-1"
    with pytest.raises(ConfigError, match=r"390 GB of storage for 300 GB of data: ml\.g5\.xlarge has disks of 250 GB"):
        build(gpu, data_bytes=300_000_000_000)
    assert build(gpu, data_bytes=300_000_000_000, input_mode="FastFile")


def test_the_next_job_of_a_phase_may_have_the_instance_of_the_warm_pool() -> None:
    """SageMaker gives it to a job that is the same in these; the volume is that of the data, and not of the samples.

    Source: https://docs.aws.amazon.com/sagemaker/latest/dg/train-warm-pools.html
    """
    settings = {"keep_alive_seconds": 600, "kms_key": "key-1", "subnets": ("subnet-1",), "security_groups": ("sg-1",)}
    first = build(data_bytes=10**9, **settings)
    larger = CONFIG.with_overrides({"batch_size": 8, "max_samples": 500, "timeout_seconds": 7200.0})
    second = build(
        larger, dataclasses.replace(JOB, key="roofscale-phase1-001-03-x-def456"), data_bytes=10**9, **settings
    )
    assert first["StoppingCondition"] != second["StoppingCondition"]
    for name in ("RoleArn", "ResourceConfig", "VpcConfig"):
        assert first[name] == second[name]


def test_tags_say_where_the_run_belongs(tmp_path: Path) -> None:
    folder = tmp_path / "runs/roofscale-phase3/002/01-first-fallback1"
    tags = {one["Key"]: one["Value"] for one in build(tags=tags_of(folder), job=JOB)["Tags"]}
    assert tags.pop("roofscale:folder").endswith(f":{folder}")
    assert tags == {
        "roofscale:experiment": "roofscale-phase3",
        "roofscale:phase": "3",
        "roofscale:attempt": "002",
        "roofscale:step": "01-first-fallback1",
        "roofscale:fingerprint": CONFIG.fingerprint,
        "roofscale:run": JOB.key,
        "roofscale:number": "1",
    }


def test_what_a_tag_cannot_hold_becomes_an_underscore() -> None:
    tags = build(tags={"step": 'a"b\nc; ü' + "x" * 300})["Tags"]
    assert next(one["Value"] for one in tags if one["Key"] == "roofscale:step").startswith("a_b_c_ üxxx")


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1, max_size=90), st.integers(1, 9999))
def test_any_folder_gives_a_name_that_the_service_takes(step: str, number: int) -> None:
    folder = Path("/runs/roofscale-phase1/001") / step.replace("/", "-").replace("\0", "-")
    job = dataclasses.replace(new_job(folder), number=number % 1000)
    assert len(job.name) <= 63
    assert build(job=job, tags={"step": step})["TrainingJobName"] == job.name  # build checks it against the model


def test_an_instance_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"compute=ml\.c99\.huge: not a compute"):
        build(CONFIG.with_overrides({"compute": "ml.c99.huge"}))


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda r: r.pop("RoleArn"), "CreateTrainingJob.RoleArn: lacking"),
        (lambda r: r.update(Colour="red"), "CreateTrainingJob.Colour: not known"),
        (lambda r: r["ResourceConfig"].update(InstanceCount="1"), "expected integer, found str"),
        (lambda r: r["ResourceConfig"].update(InstanceCount=True), "expected integer, found bool"),
        (lambda r: r["StoppingCondition"].update(MaxRuntimeInSeconds=0), "MaxRuntimeInSeconds: 0, expected 1 to None"),
        (lambda r: r.update(Environment={"A": "x" * 513}), "Environment.A: 513 characters, expected 0 to 512"),
        (lambda r: r.update(HyperParameters={"a": "x" * 2501}), "HyperParameters.a: 2501 characters"),
        (lambda r: r["AlgorithmSpecification"].update(ContainerArguments=["x" * 257]), "257 characters"),
        (lambda r: r["InputDataConfig"][0].update(InputMode="Fast"), "'Fast' is none of the 3 values"),
    ],
)
def test_the_checker_sees(break_it: Any, said: str) -> None:
    built = json.loads(json.dumps(build()))
    assert problems("CreateTrainingJob", built) == []
    break_it(built)
    assert said in " ".join(problems("CreateTrainingJob", built))


def test_a_job_is_known_by_its_name_and_a_folder_by_how_its_jobs_names_begin(tmp_path: Path) -> None:
    folder = tmp_path / "roofscale-phase1/001/01-a"
    job = dataclasses.replace(new_job(folder), number=12)
    assert from_name(job.name) == job
    assert job.name.startswith(f"{key_prefix(folder)}-")


def test_a_run_folder_remembers_its_job_until_the_result_was_taken(tmp_path: Path) -> None:
    folder = tmp_path / "roofscale-phase1/001/01-a"
    folder.mkdir(parents=True)
    first = load_or_new(folder)
    first.save(folder)
    assert load_or_new(folder) == first
    dataclasses.replace(first, over=True, usd=0.5).save(folder)
    second = load_or_new(folder)
    assert (second.key, second.number, second.over, second.usd) == (first.key, 2, False, 0.5)
    assert first.name.startswith("roofscale-phase1-001-01-a-")


def test_what_an_attempt_has_cost_counts_its_steps_and_trials_and_no_other_attempts(tmp_path: Path) -> None:
    for where, usd in {"001/01-a": 1.0, "001/02-b.search/trial-3": 2.0, "002/01-a": 4.0}.items():
        folder = tmp_path / "roofscale-phase1" / where
        folder.mkdir(parents=True)
        Job("key", over=True, usd=usd).save(folder)
    for where in ("001/01-a", "001/02-b.search/trial-3", "001/03-new"):
        assert spending(tmp_path / "roofscale-phase1" / where) == Spending(3.0)
    single = tmp_path / "roofscale-train/abc-001"
    single.mkdir(parents=True)
    assert spending(single) == Spending()
    Job("key", over=True, usd=8.0).save(single)
    assert spending(single) == Spending(8.0)
    assert spending(single.with_name("abc-002")) == Spending()


def test_what_an_attempt_may_yet_cost_is_that_of_its_other_jobs_under_way(tmp_path: Path) -> None:
    folders = [tmp_path / f"roofscale-phase1/001/0{number}-a" for number in (1, 2, 3)]
    for folder, job in zip(
        folders,
        (Job("a", over=True, usd=1.0, at_most_usd=9.0), Job("b", usd=0.5, at_most_usd=2.0), Job("c")),
        strict=True,
    ):
        folder.mkdir(parents=True)
        job.save(folder)
    assert spending(folders[0]) == Spending(1.5, 2.0, 2)
    assert spending(folders[1]) == Spending(1.5, 0.0, 1)


def test_places_of_a_single_training_and_of_a_folder_elsewhere() -> None:
    names = ("experiment", "attempt", "step", "phase")
    single, elsewhere = tags_of(Path("/x/runs/roofscale-train/abc-001")), tags_of(Path("/x/mine"))
    assert [single.get(name) for name in names] == ["roofscale-train", "abc-001", None, None]
    assert [elsewhere.get(name) for name in names] == ["mine", None, None, None]


def test_settings_are_all_of_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(SETTINGS, SageMakerSettings)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-tell")
    assert "do-not-tell" not in json.dumps(build())
