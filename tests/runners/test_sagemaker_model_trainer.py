"""The notebook's cell that starts a job by the SDK's ModelTrainer: its request is the runner's in all that matters."""

import dataclasses
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from moto import mock_aws
from sagemaker.train import ModelTrainer
from tests.runners.aws_schema import problems
from tests.runners.sagemaker_settings import CONFIG, SETTINGS

from roofscale.api import prepare_job
from roofscale.config import RunConfig
from roofscale.report.notebook_cells import _JOB
from roofscale.runners.sagemaker.job import Job, tags_of
from roofscale.runners.sagemaker.request import build_request

SPOT = {"spot": True, "kms_key": "1234abcd-12ab-34cd-56ef-1234567890ab", "subnets": ("subnet-1",),
        "security_groups": ("sg-1",), "tags": {"team": "roofs"}}  # fmt: skip
OF_THE_SDK = {"CompressionType": "GZIP"}  # its default, and the service's


@pytest.fixture
def sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The requests that ModelTrainer would send; S3 is moto's."""
    found: list[dict[str, Any]] = []

    def train(self: ModelTrainer, wait: bool) -> None:
        assert not wait
        found.append(self._create_training_job_args(boto3=True))
        self._latest_training_job = SimpleNamespace(training_job_name=found[-1]["TrainingJobName"])

    monkeypatch.chdir(tmp_path)
    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    for name, value in {"AWS_DEFAULT_REGION": "eu-west-1", "SAGEMAKER_VALIDATE_ROLE": "false"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ModelTrainer, "train", train)
    monkeypatch.setattr("roofscale.runners.sagemaker.jobs_api.check_request", lambda *_: None)
    return found


@pytest.mark.parametrize("more", [{}, SPOT], ids=["plain", "spot in a VPC"])
def test_the_request_of_the_cell_is_that_of_the_runner(
    more: dict[str, Any], sent: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = dataclasses.replace(SETTINGS, **more)
    monkeypatch.setattr("roofscale.runners.sagemaker.settings.load", lambda: settings)
    code = _JOB.format(last_good=CONFIG.diff(RunConfig())).replace("START = False", "START = True")
    with mock_aws():
        boto3.client("s3").create_bucket(Bucket="roofs", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
        exec(code, {"os": os, "lr": 0.5})
    config = CONFIG.with_overrides({"lr": 0.5})
    (request,) = sent
    assert problems("CreateTrainingJob", request) == []
    assert request["TrainingJobName"].startswith("roofscale-train-")
    key = request["CheckpointConfig"]["S3Uri"].split("/")[-2]
    folder = Path("runs/roofscale-train") / f"{config.fingerprint}-notebook"
    expected = build_request(config, settings, Job(key), tags_of(folder))
    for name in ("ContainerEntrypoint", "ContainerArguments"):  # the image's own is the same
        del expected["AlgorithmSpecification"][name]
    expected["OutputDataConfig"] |= OF_THE_SDK
    del expected["TrainingJobName"], request["TrainingJobName"]
    assert {name: request[name] for name in expected} == expected
    assert not any(request[name] for name in request.keys() - expected.keys())


def test_running_the_cell_as_it_is_starts_nothing(sent: list[dict[str, Any]]) -> None:
    exec(_JOB.format(last_good={}), {"os": os})
    assert sent == []


def test_a_prepared_job_logs_itself_where_it_reaches_the_server(
    sent: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "roofscale.runners.sagemaker.settings.load", lambda: dataclasses.replace(SETTINGS, logged_by="job")
    )
    with mock_aws():
        boto3.client("s3").create_bucket(Bucket="roofs", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
        job = prepare_job(CONFIG)
    assert len(job["environment"]["MLFLOW_RUN_ID"]) == 32
