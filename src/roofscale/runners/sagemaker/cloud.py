"""All that is asked of AWS, and AWS's errors as errors that a user can act on. The only module that imports boto3."""

import io
import tarfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    NoCredentialsError,
    NoRegionError,
)

from roofscale.errors import ConfigError, RoofscaleError
from roofscale.runners.sagemaker.settings import Settings

T = TypeVar("T")

# Throttling and a failing server pass; boto3 itself tries that often before it says so.
_ATTEMPTS = 8
_PASSING_CODES = frozenset({"ThrottlingException", "Throttling", "RequestLimitExceeded", "TooManyRequestsException",
                            "SlowDown", "ServiceUnavailable", "InternalFailure", "InternalServerError"})  # fmt: skip
_FIRST_DELAY, _LONGEST_DELAY = 1.0, 60.0  # seconds
_PATIENCE_SECONDS = 3600.0  # without an answer; a job goes on meanwhile

_REMEDIES = {
    "ResourceLimitExceeded": "your account's quota for this instance is used up or zero: ask for more at "
    "https://console.aws.amazon.com/servicequotas, or choose another compute",
    "AccessDeniedException": "these credentials may not do that; deploy/iam/launcher.json lists what they need",
    "AccessDenied": "these credentials may not do that; deploy/iam/launcher.json lists what they need",
    "403": "these credentials may not do that; deploy/iam/launcher.json lists what they need",
    "ExpiredToken": "the credentials have expired; sign in again",
    "ExpiredTokenException": "the credentials have expired; sign in again",
    "UnrecognizedClientException": "the credentials are not valid; sign in again",
    "InvalidAccessKeyId": "the credentials are not valid; sign in again",
    "NoSuchBucket": "there is no such bucket; correct the setting bucket, or make it",
    "ValidationException": "the service refused the request; correct the settings or the run config",
}


class CloudError(RoofscaleError):
    """AWS gave no answer for long, or refused what was asked; the message says what to do."""


class Cloud:
    """S3 and SageMaker for one launcher.

    Args:
        wait: how to wait some seconds; returns early where nobody wants to wait any longer.
    """

    def __init__(self, settings: Settings, wait: Callable[[float], None] = time.sleep) -> None:
        self._settings, self._wait = settings, wait
        session = boto3.session.Session(region_name=settings.region or None)
        config = Config(retries={"mode": "adaptive", "total_max_attempts": _ATTEMPTS})
        with _explained("to reach AWS"):
            self._s3 = session.client("s3", config=config)
            self._sagemaker = session.client("sagemaker", config=config)

    def submit(self, request: Mapping[str, Any]) -> None:
        """Create a training job.

        Raises:
            ConfigError: refused.
        """
        with _explained(f"to create the job {request['TrainingJobName']}"):
            self._sagemaker.create_training_job(**request)

    def describe(self, name: str) -> dict[str, Any] | None:
        """What SageMaker says of a job, None where there is none; waits as long as the network or the service is away.

        Raises:
            CloudError: no answer for an hour.
        """
        with _explained(f"to look after the job {name}"):
            try:
                found: dict[str, Any] = self._patiently(
                    lambda: self._sagemaker.describe_training_job(TrainingJobName=name)
                )
            except ClientError as error:
                if _code(error) == "ValidationException" and "not found" in str(error):
                    return None
                raise
        return found

    def stop(self, name: str) -> None:
        """Ask a job to stop; one that is over already is left alone."""
        with _explained(f"to stop the job {name}"):
            try:
                self._patiently(lambda: self._sagemaker.stop_training_job(TrainingJobName=name))
            except ClientError as error:
                if _code(error) != "ValidationException":
                    raise

    def write(self, uri: str, content: bytes) -> None:
        """Write an object."""
        bucket, key = _split(uri)
        kms = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": self._settings.kms_key}
        with _explained(f"to write {uri}"):
            self._s3.put_object(Bucket=bucket, Key=key, Body=content, **(kms if self._settings.kms_key else {}))

    def read_from(self, uri: str, offset: int) -> bytes:
        """What an object holds from a place on; nothing where it is not there, or not that long."""
        bucket, key = _split(uri)
        with _explained(f"to read {uri}"):
            try:
                found = self._patiently(
                    lambda: self._s3.get_object(Bucket=bucket, Key=key, Range=f"bytes={offset}-")["Body"].read()
                )
            except ClientError as error:
                if _code(error) in ("NoSuchKey", "404", "InvalidRange", "416"):
                    return b""
                raise
        return bytes(found)

    def read_packed(self, uri: str, name: str) -> bytes | None:
        """One file of a .tar.gz; None where there is no such archive, or the file is not in it."""
        archive = self.read_from(uri, 0)
        if not archive:
            return None
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as packed:
            found = packed.extractfile(name) if name in packed.getnames() else None
            return found.read() if found else None

    def fetch(self, uri: str, folder: Path, leave_out: Collection[str] = ()) -> None:
        """Copy all that lies under a prefix into a folder, but the files of these names."""
        bucket, top = _split(f"{uri.rstrip('/')}/")
        with _explained(f"to fetch {uri}"):
            for key, _ in self._patiently(lambda: list(self._objects(bucket, top))):
                file = folder / key.removeprefix(top)
                # A name with a dot is half a file that a rename was to follow; one must not lead out of the folder.
                wanted = not (key.endswith("/") or file.name.startswith(".") or file.name in leave_out)
                if wanted and file.resolve().is_relative_to(folder.resolve()):
                    file.parent.mkdir(parents=True, exist_ok=True)
                    self._patiently(partial(self._s3.download_file, bucket, key, str(file)))

    def size(self, uri: str) -> int:
        """Bytes under a prefix."""
        bucket, top = _split(uri)
        with _explained(f"to look at {uri}"):
            return sum(size for _, size in self._patiently(lambda: list(self._objects(bucket, top))))

    def _objects(self, bucket: str, prefix: str) -> Iterator[tuple[str, int]]:
        for page in self._s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            yield from ((one["Key"], one["Size"]) for one in page.get("Contents", ()))

    def _patiently(self, attempt: Callable[[], T]) -> T:
        return patiently(attempt, self._wait)


def patiently(attempt: Callable[[], T], wait: Callable[[float], None], patience: float = _PATIENCE_SECONDS) -> T:
    """Try until it works or fails for good; waits twice as long after each passing fault."""
    delay, waited = _FIRST_DELAY, 0.0
    while True:
        try:
            return attempt()
        except (BotoCoreError, ClientError) as error:
            if not is_passing(error) or waited + delay > patience:
                raise
        wait(delay)
        waited, delay = waited + delay, min(2 * delay, _LONGEST_DELAY)


def is_passing(error: Exception) -> bool:
    """Whether the same request may work later: throttling, a failing server, a network that is away."""
    if isinstance(error, ClientError):
        return _code(error) in _PASSING_CODES or error.response["ResponseMetadata"].get("HTTPStatusCode", 0) >= 500
    return isinstance(error, ConnectionError | HTTPClientError)  # no connection, one that broke, or one that timed out


class _explained:
    """Turns AWS's errors into a user's; ``doing`` says what was wanted."""

    def __init__(self, doing: str) -> None:
        self._doing = doing

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, BotoCoreError | ClientError):
            raise explain(error, self._doing) from error


def explain(error: BotoCoreError | ClientError, doing: str) -> RoofscaleError:
    """An error of AWS with its remedy."""
    if isinstance(error, NoCredentialsError):
        return ConfigError(
            f"No AWS credentials {doing}: expected a profile (aws configure, aws sso login; AWS_PROFILE), or "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )
    if isinstance(error, NoRegionError):
        return ConfigError(f"No AWS region {doing}: set region in sagemaker.yaml, or AWS_DEFAULT_REGION.")
    if is_passing(error):
        return CloudError(f"AWS did not answer {doing} ({error}). A job goes on; the same command finds it again.")
    if isinstance(error, ClientError):
        said = error.response["Error"].get("Message") or _code(error)
        remedy = _REMEDIES.get(_code(error), "see the message")
        return ConfigError(f"AWS refused {doing}: {said} ({_code(error)}): {remedy}.")
    return ConfigError(f"Not possible {doing}: {error}.")


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key
