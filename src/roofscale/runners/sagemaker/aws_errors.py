"""AWS's faults: which of them pass, how they are waited out, and how they are told to a user."""

import logging
import re
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    NoCredentialsError,
    NoRegionError,
)

from roofscale.errors import ConfigError, EnvironmentFault, RoofscaleError

_log = logging.getLogger(__name__)
T = TypeVar("T")
# Waits some seconds; something true says that nobody wants to wait any longer.
Wait = Callable[[float], object]

# Throttling and a failing server pass.
_PASSING_CODES = frozenset({"ThrottlingException", "Throttling", "RequestLimitExceeded", "TooManyRequestsException",
                            "SlowDown", "ServiceUnavailable", "InternalFailure", "InternalServerError"})  # fmt: skip
_FIRST_DELAY, _LONGEST_DELAY = 1.0, 60.0  # seconds
_PATIENCE_SECONDS = 3600.0  # without an answer; a job goes on meanwhile

_LONGEST_LINE = 200  # characters

# Of an account's quota of instances: other jobs hold some, and will give them back; a quota of zero does not pass.
_HELD = re.compile(r"current utilization of [1-9]")

_DENIED = (
    "these credentials may not do that; deploy/iam/launcher.json lists what they need, uploader.json for an upload"
)
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
    """AWS gave no answer for long, or refused what was asked; the message says what to do."""


def retry_transient(attempt: Callable[[], T], wait: Wait, patience: float = _PATIENCE_SECONDS) -> T:
    """Try until it works or fails for good; waits twice as long after each passing fault, and says so once."""
    delay, waited = _FIRST_DELAY, 0.0
    while True:
        try:
            return attempt()
        except (BotoCoreError, ClientError) as error:
            if not is_transient(error) or waited + delay > patience or wait(delay):
                raise
            if not waited:  # boto3 itself has tried for half a minute before
                _log.warning(
                    f"AWS: {_line(error)}. Trying again, for up to {patience / 60:.0f} minutes; a job goes on "
                    "meanwhile, and Ctrl-C ends the wait."
                )
        waited, delay = waited + delay, min(2 * delay, _LONGEST_DELAY)


def is_transient(error: Exception) -> bool:
    """Whether the same request may work later: throttling, a failing server, a network that is away, instances held."""
    if isinstance(error, ClientError):
        if code_of(error) == "ResourceLimitExceeded":
            return bool(_HELD.search(str(error)))
        return code_of(error) in _PASSING_CODES or error.response["ResponseMetadata"].get("HTTPStatusCode", 0) >= 500
    return isinstance(error, ConnectionError | HTTPClientError)  # no connection, one that broke, or one that timed out


class translating_errors:
    """Turns AWS's errors into a user's; ``doing`` says what was wanted."""

    def __init__(self, doing: str) -> None:
        self._doing = doing

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, BotoCoreError | ClientError):
            raise to_aws_user_error(error, self._doing) from error


def to_aws_user_error(error: BotoCoreError | ClientError, doing: str) -> RoofscaleError:
    """An error of AWS with its remedy."""
    if isinstance(error, NoCredentialsError):
        return ConfigError(
            f"No AWS credentials {doing}: expected a profile (aws configure, aws sso login; AWS_PROFILE), or "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )
    if isinstance(error, NoRegionError):
        return ConfigError(f"No AWS region {doing}: set region in sagemaker.yaml, or AWS_DEFAULT_REGION.")
    if is_transient(error) and not (isinstance(error, ClientError) and code_of(error) in _REMEDIES):
        return CloudError(
            f"AWS did not answer {doing} ({_line(error)}). A job goes on; the same command finds it again."
        )
    if isinstance(error, ClientError):
        said = error.response["Error"].get("Message") or code_of(error)
        remedy = _REMEDIES.get(code_of(error), "see the message")
        return ConfigError(f"AWS refused {doing}: {said} ({code_of(error)}): {remedy}.")
    return ConfigError(f"Not possible {doing}: {error}.")


def _line(error: Exception) -> str:
    """What a fault says, in one line; a server that fails may send a whole page."""
    said = " ".join(str(error).split())
    return said if len(said) <= _LONGEST_LINE else f"{said[:_LONGEST_LINE]}..."


def code_of(error: ClientError) -> str:
    """What AWS calls a fault."""
    return str(error.response.get("Error", {}).get("Code", ""))
