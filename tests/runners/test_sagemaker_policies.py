"""The policies in deploy/iam, enforced by moto: they allow what the launcher and a job need, and deny the rest."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws
from moto.core import set_initial_no_auth_action_count

FOLDER = Path(__file__).resolve().parents[2] / "deploy/iam"
FILLED_IN = {"ACCOUNT": "123456789012", "REGION": "eu-west-1", "BUCKET": "roofs", "ROLE": "RoofscaleJob"}
# What AWS lets no one restrict to a resource: https://docs.aws.amazon.com/service-authorization/latest/reference/
ANYWHERE = {"cloudwatch:PutMetricData", "ecr:GetAuthorizationToken"}


def policy(name: str) -> str:
    text = (FOLDER / f"{name}.json").read_text(encoding="utf-8")
    for token, value in FILLED_IN.items():
        text = text.replace(token, value)
    return text


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
        for key in ("data/rid/1.tif", "roofscale/run/config/config.json", "payroll/all.csv"):
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
    ],
)
def test_objects(
    name: str, operation: str, what: dict[str, Any], allowed: bool, as_user_of: Callable[[str], Any]
) -> None:
    assert may(getattr(as_user_of(name), operation), **what) is allowed


@pytest.mark.parametrize("name", ["launcher", "job-role"])
def test_nothing_is_allowed_everywhere(name: str) -> None:
    for statement in json.loads(policy(name))["Statement"]:
        assert statement["Effect"] == "Allow"
        actions = listed(statement["Action"])
        assert not [action for action in actions if "*" in action]
        if "*" in listed(statement["Resource"]):
            assert set(actions) <= ANYWHERE


def test_the_launcher_touches_its_own_jobs_and_passes_one_role_to_one_service() -> None:
    by_action = {a: s for s in json.loads(policy("launcher"))["Statement"] for a in listed(s["Action"])}
    for action in ("CreateTrainingJob", "DescribeTrainingJob", "StopTrainingJob"):
        assert by_action[f"sagemaker:{action}"]["Resource"].endswith(":training-job/roofscale-*")
    assert by_action["iam:PassRole"]["Resource"] == "arn:aws:iam::123456789012:role/RoofscaleJob"
    assert by_action["iam:PassRole"]["Condition"]["StringEquals"]["iam:PassedToService"] == "sagemaker.amazonaws.com"
    assert not [action for action in by_action if action.startswith("iam:") and action != "iam:PassRole"]


def test_no_token_is_left_and_only_the_service_may_be_the_job() -> None:
    for file in FOLDER.glob("*.json"):
        assert not [token for token in FILLED_IN if token in policy(file.stem)], file
    (trust,) = json.loads(policy("job-trust"))["Statement"]
    assert trust["Principal"] == {"Service": "sagemaker.amazonaws.com"}
