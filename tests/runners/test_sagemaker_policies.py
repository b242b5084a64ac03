"""The policies in deploy/iam, enforced by moto: they allow what the launcher and a job need, and deny the rest."""

import dataclasses
import json
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws
from moto.core import set_initial_no_auth_action_count
from sagemaker.core.utils.utils import SageMakerClient as SdkClient
from tests.runners.sagemaker_settings import CONFIG, SETTINGS, full_description

from roofscale.runners.sagemaker import jobs_api
from roofscale.runners.sagemaker.job import Job
from roofscale.runners.sagemaker.request import build_request

FOLDER = Path(__file__).resolve().parents[2] / "deploy/iam"
FILLED_IN = {"ACCOUNT": "123456789012", "REGION": "eu-west-1", "BUCKET": "roofs", "ROLE": "RoofscaleJob"}
# What AWS lets no one restrict to a resource: https://docs.aws.amazon.com/service-authorization/latest/reference/
ANYWHERE = {"cloudwatch:PutMetricData", "ecr:GetAuthorizationToken", "sagemaker:ListTrainingJobs"}
JOB = full_description("roofscale-a-1")
ANSWERS = {"DescribeTrainingJob": JOB, "ListTrainingJobs": {"TrainingJobSummaries": [JOB]}, "ListTags": {"Tags": []}}
# The documents that say what somebody may do; the other one says who may be a role.
NAMES = sorted({file.stem for file in FOLDER.glob("*.json")} - {"trust"})


def policy(name: str) -> str:
    text = (FOLDER / f"{name}.json").read_text(encoding="utf-8")
    return string.Template(text).substitute(FILLED_IN)


def listed(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


@pytest.fixture
def as_user_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Makes a user who has one policy and nothing else; returns S3 as that user."""
    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with mock_aws():
        s3, iam = (boto3.client(service, region_name="eu-west-1") for service in ("s3", "iam"))
        s3.create_bucket(Bucket="roofs", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
        for key in ("data/rid/1.tif", "roofscale/run/config/config.json", "mlflow/1/a.png", "payroll/all.csv"):
            s3.put_object(Bucket="roofs", Key=key, Body=b"x")

        def make(name: str) -> Any:
            iam.create_user(UserName=name)
            iam.put_user_policy(UserName=name, PolicyName="only", PolicyDocument=policy(name))
            key = iam.create_access_key(UserName=name)["AccessKey"]
            return boto3.client(
                "s3",
                region_name="eu-west-1",
                aws_access_key_id=key["AccessKeyId"],
                aws_secret_access_key=key["SecretAccessKey"],
            )

        yield make


def may(call: Callable[..., Any], **what: Any) -> bool:
    """Whether a call is let through."""
    try:
        with_enforcement(lambda: call(Bucket="roofs", **what))
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("AccessDenied", "403"):
            raise
        return False
    return True


@set_initial_no_auth_action_count(0)
def with_enforcement(call: Callable[[], Any]) -> Any:
    return call()


@pytest.mark.parametrize(
    ("name", "operation", "what", "allowed"),
    [
        ("launcher", "put_object", {"Key": "roofscale/run/config/config.json", "Body": b""}, True),
        ("launcher", "get_object", {"Key": "roofscale/run/config/config.json"}, True),
        ("launcher", "get_object", {"Key": "payroll/all.csv"}, False),
        ("launcher", "put_object", {"Key": "data/rid/1.tif", "Body": b""}, False),
        ("launcher", "delete_object", {"Key": "roofscale/run/config/config.json"}, False),
        ("job-role", "get_object", {"Key": "data/rid/1.tif"}, True),
        ("job-role", "put_object", {"Key": "roofscale/run/folder/checkpoint.pt", "Body": b""}, True),
        ("job-role", "delete_object", {"Key": "roofscale/run/config/config.json"}, True),
        ("job-role", "put_object", {"Key": "data/rid/1.tif", "Body": b""}, False),
        ("job-role", "delete_object", {"Key": "data/rid/1.tif"}, False),
        ("job-role", "get_object", {"Key": "payroll/all.csv"}, False),
        ("job-role", "put_object", {"Key": "mlflow/1/a.png", "Body": b""}, False),
        ("job-mlflow", "put_object", {"Key": "mlflow/1/a.png", "Body": b""}, True),
        ("job-mlflow", "get_object", {"Key": "mlflow/1/a.png"}, False),
        ("job-mlflow", "delete_object", {"Key": "mlflow/1/a.png"}, False),
        ("job-mlflow", "put_object", {"Key": "roofscale/run/config/config.json", "Body": b""}, False),
        ("job-mlflow", "get_object", {"Key": "data/rid/1.tif"}, False),
        ("uploader", "put_object", {"Key": "data/rid/1.tif", "Body": b""}, True),
        ("uploader", "create_multipart_upload", {"Key": "data/airs/1.tif"}, True),
        ("uploader", "head_object", {"Key": "data/rid/1.tif"}, True),
        ("uploader", "delete_object", {"Key": "data/rid/1.tif"}, False),
        ("uploader", "put_object", {"Key": "roofscale/run/config/config.json", "Body": b""}, False),
        ("mlflow-user", "put_object", {"Key": "mlflow/1/a.png", "Body": b""}, True),
        ("mlflow-user", "get_object", {"Key": "mlflow/1/a.png"}, True),
        ("mlflow-user", "delete_object", {"Key": "mlflow/1/a.png"}, False),
        ("mlflow-user", "get_object", {"Key": "data/rid/1.tif"}, False),
        ("mlflow-role", "delete_object", {"Key": "mlflow/1/a.png"}, True),
        ("mlflow-role", "get_object", {"Key": "roofscale/run/config/config.json"}, False),
    ],
)
def test_objects(
    name: str, operation: str, what: dict[str, Any], allowed: bool, as_user_of: Callable[[str], Any]
) -> None:
    assert may(getattr(as_user_of(name), operation), **what) is allowed


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_allowed_everywhere(name: str) -> None:
    for statement in json.loads(policy(name))["Statement"]:
        assert statement["Effect"] == "Allow"
        actions = listed(statement["Action"])
        assert not [action for action in actions if "*" in action]
        if "*" in listed(statement["Resource"]):
            assert set(actions) <= ANYWHERE


def test_the_launcher_touches_its_own_jobs_and_passes_one_role_to_one_service() -> None:
    by_action = {a: s for s in json.loads(policy("launcher"))["Statement"] for a in listed(s["Action"])}
    for action in ("CreateTrainingJob", "DescribeTrainingJob", "StopTrainingJob", "ListTags"):
        assert by_action[f"sagemaker:{action}"]["Resource"].endswith(":training-job/roofscale-*")
    assert by_action["iam:PassRole"]["Resource"] == "arn:aws:iam::123456789012:role/RoofscaleJob"
    assert by_action["iam:PassRole"]["Condition"]["StringEquals"]["iam:PassedToService"] == "sagemaker.amazonaws.com"
    assert by_action["iam:GetRole"]["Resource"] == "arn:aws:iam::123456789012:role/RoofscaleJob"
    assert {action for action in by_action if action.startswith("iam:")} == {"iam:PassRole", "iam:GetRole"}
    for action in ("logs:DescribeLogStreams", "logs:GetLogEvents"):
        assert by_action[action]["Resource"].endswith("log-group:/aws/sagemaker/TrainingJobs*")


def test_the_launcher_may_all_that_it_asks_of_sagemaker(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the SDK's classes really send, its own further requests included."""
    asked: set[str] = set()

    def answer(model: Any, **_: Any) -> tuple[Any, dict[str, Any]]:
        asked.add(f"sagemaker:{model.name}")
        return SimpleNamespace(status_code=200), ANSWERS.get(model.name, {})

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    cloud = jobs_api.SageMakerClient(dataclasses.replace(SETTINGS, region="eu-west-1"))
    client = SdkClient(session=cloud._session, region_name="eu-west-1").get_client("sagemaker")
    client.meta.events.register("before-call.sagemaker.*", answer)
    cloud.submit(build_request(CONFIG, SETTINGS, Job("roofscale-a"), {}))
    assert cloud.running("roofscale-a") == {"roofscale-a-1": {}}
    cloud.stop("roofscale-a-1")
    assert {f"sagemaker:{name}TrainingJob" for name in ("Create", "Describe", "Stop")} < asked
    allowed = {action for s in json.loads(policy("launcher"))["Statement"] for action in listed(s["Action"])}
    assert asked <= allowed


def test_who_tracks_may_neither_make_an_app_nor_delete_one() -> None:
    actions = {action for s in json.loads(policy("mlflow-user"))["Statement"] for action in listed(s["Action"])}
    assert "sagemaker:CallMlflowAppApi" in actions
    assert not [action for action in actions if action.startswith(("sagemaker:Create", "sagemaker:Delete"))
                and "Presigned" not in action]  # fmt: skip


def test_a_job_may_log_to_an_app_and_neither_read_nor_make_one() -> None:
    actions = {action for s in json.loads(policy("job-mlflow"))["Statement"] for action in listed(s["Action"])}
    assert actions == {"sagemaker:CallMlflowAppApi", "s3:PutObject"}


def test_only_the_service_for_this_account_may_be_a_role() -> None:
    (trust,) = json.loads(policy("trust"))["Statement"]
    assert trust["Principal"] == {"Service": "sagemaker.amazonaws.com"}
    assert trust["Condition"]["StringEquals"]["aws:SourceAccount"] == FILLED_IN["ACCOUNT"]
