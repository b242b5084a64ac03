"""Errors of AWS: which are transient, how they are retried, and how they become messages for the user."""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    NoCredentialsError,
    NoRegionError,
)

from roofscale.errors import ConfigError, EnvironmentFault, RoofscaleError, one_line

_log = logging.getLogger(__name__)
T = TypeVar("T")
# Waits for a number of seconds; returns a true value if the caller should stop waiting (the user pressed Ctrl-C).
Wait = Callable[[float], object]

# Throttling, and failures of the server.
_TRANSIENT_CODES = frozenset({"ThrottlingException", "Throttling", "RequestLimitExceeded", "TooManyRequestsException",
                              "SlowDown", "ServiceUnavailable", "InternalFailure", "InternalServerError"})  # fmt: skip
_FIRST_DELAY, _LONGEST_DELAY = 1.0, 60.0  # seconds
_PATIENCE_SECONDS = 3600.0  # without an answer; jobs keep running during an outage

_LONGEST_MESSAGE = 200  # characters; a failing server may send a whole HTML page

# ResourceLimitExceeded is transient only if other jobs hold instances of the quota: a quota of zero stays exceeded.
_QUOTA_IN_USE = re.compile(r"current utilization of [1-9]")

_DENIED = "these credentials may not do that; deploy/iam/launcher.json lists what they need, uploader.json to upload"
_REMEDIES = {
    "ResourceLimitExceeded": "your account's quota for this instance is used up or zero: ask for more at "
    "https://console.aws.amazon.com/servicequotas, set max_parallel_jobs lower, or choose another compute",
    "AccessDeniedException": _DENIED,
    "AccessDenied": _DENIED,
    "403": _DENIED,
    "ExpiredToken": "the credentials have expired; sign in again",
    "ExpiredTokenException": "the credentials have expired; sign in again",
    "UnrecognizedClientException": "the credentials are not valid; sign in again",
    "InvalidAccessKeyId": "the credentials are not valid; sign in again",
    "NoSuchBucket": "there is no such bucket; correct the setting bucket, or make it",
    "ValidationException": "the service refused the request; correct the settings or the run config",
}


class CloudError(EnvironmentFault):
    """AWS, or the network to it, that gave no answer within the patience; the message contains the remedy."""


def retry_transient(attempt: Callable[[], T], wait: Wait, patience: float = _PATIENCE_SECONDS) -> T:
    """Return the result of ``attempt``, retried after transient errors with exponential backoff; logs one warning.

    Args:
        wait: waits between two attempts; a true result ends the retries.
        patience: seconds of waiting in all.

    Raises:
        BotoCoreError, ClientError: the last error, if it is not transient or the patience is used up.
    """
    delay, waited = _FIRST_DELAY, 0.0
    while True:
        try:
            return attempt()
        except (BotoCoreError, ClientError) as error:
            if not is_transient(error) or waited + delay > patience or wait(delay):
                raise
            if not waited:  # once; boto3's own retries have taken half a minute already
                _log.warning(
                    f"AWS: {one_line(error)[:_LONGEST_MESSAGE]}. Trying again, for up to {patience / 60:.0f} minutes; "
                    "a job goes on meanwhile, and Ctrl-C ends the wait."
                )
        waited, delay = waited + delay, min(2 * delay, _LONGEST_DELAY)


def is_transient(error: Exception) -> bool:
    """Whether the same request may work later: throttling, a failing server or network, a quota held by other jobs."""
    if isinstance(error, ClientError):
        if code_of(error) == "ResourceLimitExceeded":
            return bool(_QUOTA_IN_USE.search(str(error)))
        return code_of(error) in _TRANSIENT_CODES or error.response["ResponseMetadata"].get("HTTPStatusCode", 0) >= 500
    return isinstance(error, ConnectionError | HTTPClientError)  # refused, broken or timed out


@contextmanager
def translating_errors(doing: str) -> Iterator[None]:
    """Translate AWS's errors in the block into errors for the user.

    Args:
        doing: the operation, as an infinitive for the message: "to stop the job X".
    """
    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise to_aws_user_error(error, doing) from error


def to_aws_user_error(error: BotoCoreError | ClientError, doing: str) -> RoofscaleError:
    """Return the error for the user, with its remedy. Arguments as in ``translating_errors``."""
    if isinstance(error, NoCredentialsError):
        return ConfigError(
            f"No AWS credentials {doing}: expected a profile (aws configure, aws sso login; AWS_PROFILE), or "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )
    if isinstance(error, NoRegionError):
        return ConfigError(f"No AWS region {doing}: set region in sagemaker.yaml, or AWS_DEFAULT_REGION.")
    if is_transient(error) and not (isinstance(error, ClientError) and code_of(error) in _REMEDIES):
        reason = one_line(error)[:_LONGEST_MESSAGE]
        return CloudError(f"AWS did not answer {doing} ({reason}). A job goes on; the same command finds it again.")
    if isinstance(error, ClientError):
        message = error.response["Error"].get("Message") or code_of(error)
        remedy = _REMEDIES.get(code_of(error), "see the message")
        return ConfigError(f"AWS refused {doing}: {message} ({code_of(error)}): {remedy}.")
    return ConfigError(f"Not possible {doing}: {error}.")


def code_of(error: ClientError) -> str:
    """Return the error code that AWS gives, such as ``ThrottlingException``; empty if there is none."""
    return str(error.response.get("Error", {}).get("Code", ""))
