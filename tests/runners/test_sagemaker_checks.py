"""What is refused before anything is uploaded: roles, buckets and images that would fail a job, asked for on moto."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws
from tests.runners.sagemaker_settings import CONFIG, ROLE, SETTINGS

from roofscale.errors import ConfigError
from roofscale.runners.sagemaker import checks
from roofscale.runners.sagemaker.job import Job
from roofscale.runners.sagemaker.request import build_request

REQUEST = build_request(CONFIG, SETTINGS, Job("roofscale-a"), {})
TRUST = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": "sagemaker.amazonaws.com"}}],
}


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """An account with the role and the bucket, and a registry that a test fills."""
    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with mock_aws():
        make = lambda service, region=None: boto3.client(service, region_name=region or "eu-west-1")  # noqa: E731
        make("iam").create_role(RoleName="RoofscaleJob", AssumeRolePolicyDocument=json.dumps(TRUST))
        make("s3").create_bucket(Bucket="roofs", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
        make("ecr").create_repository(repositoryName="roofscale")
        yield make


def push(client: Callable[..., Any], *architectures: str) -> None:
    """Push an image for several architectures, with an attestation as docker build adds one."""
    kind = "application/vnd.oci.image.manifest.v1+json"
    names = (*architectures, "unknown")
    manifests = [{"mediaType": kind, "size": 1, "digest": f"sha256:{n:064}", "platform": {"architecture": name}}
                 for n, name in enumerate(names)]  # fmt: skip
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests}
    client("ecr").put_image(repositoryName="roofscale", imageManifest=json.dumps(index), imageTag="1")


def check(client: Callable[..., Any], region: str = "eu-west-1") -> None:
    checks.check_request(client, REQUEST, region)


def test_what_fits_is_let_through(client: Callable[..., Any]) -> None:
    push(client, "amd64", "arm64")
    check(client)


def test_an_image_for_another_architecture_or_none_is_refused(client: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=r"image=.*roofscale:1: it is not in ECR; build and push it"):
        check(client)
    push(client, "arm64")
    with pytest.raises(ConfigError, match=r"built for arm64, and the compute needs amd64. .*--platform linux/amd64"):
        check(client)
    client("ecr").delete_repository(repositoryName="roofscale", force=True)
    with pytest.raises(ConfigError, match="it is not in ECR"):
        check(client)


def test_the_architecture_of_a_single_image_is_that_of_its_config(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ecr:
        def get_download_url_for_layer(self, **what: str) -> dict[str, str]:
            assert what == {"repositoryName": "roofscale", "layerDigest": "sha256:1"}
            return {"downloadUrl": "https://layer"}

    class Answer:
        def json(self) -> dict[str, str]:
            return {"architecture": "arm64"}

    monkeypatch.setattr(checks.requests, "get", lambda url, timeout: Answer())
    found = checks._architectures(Ecr(), {"repositoryName": "roofscale"}, {"config": {"digest": "sha256:1"}})
    assert found == {"arm64"}


@pytest.mark.parametrize(
    ("instance", "arm"),
    [("ml.m6g.large", True), ("ml.c7gn.xlarge", True), ("ml.g5.xlarge", False), ("ml.g4dn.xlarge", False)],
)
def test_which_instances_have_arm_processors(instance: str, arm: bool) -> None:
    assert bool(checks._GRAVITON.match(instance)) is arm


def test_a_role_that_sagemaker_cannot_assume_is_refused(client: Callable[..., Any]) -> None:
    push(client, "amd64")
    other = json.dumps(TRUST).replace("sagemaker", "ec2")
    client("iam").update_assume_role_policy(RoleName="RoofscaleJob", PolicyDocument=other)
    with pytest.raises(ConfigError, match=rf"role={ROLE}: SageMaker cannot assume it.*trust\.json"):
        check(client)
    client("iam").delete_role(RoleName="RoofscaleJob")
    with pytest.raises(ConfigError, match=f"role={ROLE}: there is no such role"):
        check(client)


def test_a_name_in_place_of_a_role_is_refused(client: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="role=RoofscaleJob: expected the ARN of an IAM role"):
        checks.check_request(client, {**REQUEST, "RoleArn": "RoofscaleJob"}, "eu-west-1")


def test_a_bucket_elsewhere_or_nowhere_is_refused(client: Callable[..., Any]) -> None:
    push(client, "amd64")
    with pytest.raises(ConfigError, match=r"is in eu-west-1, and the jobs would run in us-east-1.*region: eu-west-1"):
        check(client, region="us-east-1")
    client("s3").delete_bucket(Bucket="roofs")
    with pytest.raises(ConfigError, match="bucket=roofs: there is no such bucket"):
        check(client)


def test_what_these_credentials_may_not_ask_is_left_to_the_service() -> None:
    class Denied:
        def __getattr__(self, name: str) -> Callable[..., Any]:
            def refuse(**_: Any) -> None:
                answer = {"Error": {"Code": "AccessDenied"}, "ResponseMetadata": {"HTTPHeaders": {}}}
                raise ClientError(answer, name)  # type: ignore[arg-type]

            return refuse

    checks.check_request(lambda *_: Denied(), REQUEST, "eu-west-1")
