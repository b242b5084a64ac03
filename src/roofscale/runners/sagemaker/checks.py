"""Checks of role, bucket and image before anything is uploaded, which AWS makes only once a job is asked for or starts.

Each asks for a right of its own (deploy/iam/launcher.json). Without it nothing is known, and the service decides.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import requests
from botocore.exceptions import BotoCoreError, ClientError

from roofscale.errors import ConfigError
from roofscale.runners.sagemaker.aws_errors import code_of

_SERVICE = "sagemaker.amazonaws.com"
_ECR = re.compile(r"(\d{12})\.dkr\.ecr\.([a-z0-9-]+)\.amazonaws\.com/([^:@]+)(?::([^@]+))?(?:@(.+))?")
_ROLE = re.compile(r"arn:aws[a-z-]*:iam::\d{12}:role/?[\w+=,.@/-]+", re.ASCII)  # botocore's model of RoleArn
_MANIFESTS = [f"application/vnd.{kind}+json" for kind in (
    "oci.image.index.v1", "docker.distribution.manifest.list.v2",
    "oci.image.manifest.v1", "docker.distribution.manifest.v2",
)]  # fmt: skip
_MISSING = ("NoSuchEntity", "NoSuchBucket", "404", "RepositoryNotFoundException")
_GRAVITON = re.compile(r"ml\.[a-z]+\d+g")  # AWS's own arm64 processors: ml.m6g, ml.c7gn


def check_request(client: Callable[..., Any], request: Mapping[str, Any], region: str) -> None:
    """Check role, bucket and image of a request for a job in a region.

    Args:
        client: makes a boto3 client for a service, and for a region if one is given.

    Raises:
        ConfigError: one of them is missing or does not fit, so that the job would fail.
    """
    _check_role(client("iam"), request["RoleArn"])
    _check_bucket(client("s3"), request["OutputDataConfig"]["S3OutputPath"].split("/")[2], region)
    image, instance = request["AlgorithmSpecification"]["TrainingImage"], request["ResourceConfig"]["InstanceType"]
    if address := _ECR.fullmatch(image):
        _check_image(client("ecr", address[2]), address, "arm64" if _GRAVITON.match(instance) else "amd64")


def _ask(call: Callable[..., Any], missing: str, **what: Any) -> dict[str, Any]:
    """Return the answer of AWS, empty if it does not tell; raise ``missing`` if AWS has no such resource."""
    try:
        return dict(call(**what))
    except ClientError as error:
        if code_of(error) in _MISSING:
            raise ConfigError(missing) from None
        return dict(error.response["ResponseMetadata"])
    except BotoCoreError:
        return {}


def _check_role(iam: Any, arn: str) -> None:
    if not _ROLE.fullmatch(arn):
        raise ConfigError(
            f"role={arn}: expected the ARN of an IAM role, such as arn:aws:iam::123456789012:role/Roofscale "
            "(aws iam get-role shows it)."
        )
    missing = f"role={arn}: there is no such role. Correct the setting role, or make it (deploy/README.md)."
    answer = _ask(iam.get_role, missing, RoleName=arn.rpartition("/")[2])
    trust = answer.get("Role", {}).get("AssumeRolePolicyDocument", {}).get("Statement")
    if trust is not None and _SERVICE not in json.dumps(trust):
        raise ConfigError(
            f"role={arn}: SageMaker cannot assume it; expected a trust policy that allows {_SERVICE}. Give the role "
            "that of deploy/iam/trust.json, or correct the setting role."
        )


def _check_bucket(s3: Any, bucket: str, region: str) -> None:
    missing = f"bucket={bucket}: there is no such bucket; correct the setting bucket, or make it (deploy/README.md)."
    answer = _ask(s3.head_bucket, missing, Bucket=bucket)
    place = answer.get("BucketRegion") or answer.get("HTTPHeaders", {}).get("x-amz-bucket-region")
    if place and place != region:
        raise ConfigError(
            f"bucket={bucket}: it is in {place}, and the jobs would run in {region}; SageMaker reads and writes only "
            f"in its own region. Set region: {place}, or a bucket in {region}."
        )


def _check_image(ecr: Any, address: re.Match[str], expected: str) -> None:
    image, (registry, _, repository, tag, digest) = address[0], address.groups()
    missing = f"image={image}: it is not in ECR; build and push it (deploy/README.md), or correct the setting image."
    name = {"imageDigest": digest} if digest else {"imageTag": tag or "latest"}
    of = {"registryId": registry, "repositoryName": repository}
    answer = _ask(ecr.batch_get_image, missing, **of, imageIds=[name], acceptedMediaTypes=_MANIFESTS)
    if answer.get("failures"):
        raise ConfigError(missing)
    if not answer.get("images"):
        return
    built_for = _architectures(ecr, of, json.loads(answer["images"][0]["imageManifest"]))
    if built_for and expected not in built_for:
        raise ConfigError(
            f"image={image}: it is built for {', '.join(sorted(built_for))}, and the compute needs {expected}. "
            f"Build and push it with docker build --platform linux/{expected}."
        )


def _architectures(ecr: Any, of: Mapping[str, str], manifest: Mapping[str, Any]) -> set[str]:
    """Return the processor architectures of an image; empty if they cannot be known."""
    if "manifests" in manifest:
        names = {image.get("platform", {}).get("architecture", "unknown") for image in manifest["manifests"]}
        return names - {"unknown"}  # of attestations, which are no images
    layer = _ask(ecr.get_download_url_for_layer, "", **of, layerDigest=manifest.get("config", {}).get("digest", ""))
    if "downloadUrl" not in layer:
        return set()
    try:
        return {requests.get(layer["downloadUrl"], timeout=30).json()["architecture"]}
    except (requests.RequestException, LookupError):
        return set()
