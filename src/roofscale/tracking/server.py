"""Which tracking server is meant, whether it answers, and what to say when it does not."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

import mlflow
from mlflow.exceptions import MlflowException

from roofscale.errors import ConfigError, RoofscaleError

# What MLflow says of its own doings would drown what a run has to say. A server that does not answer is told of once,
# by us, and not at every try; of a locked database MLflow would print the whole traceback.
logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
# sagemaker-mlflow 0.5.0 wants to add its headers to requests to servers that are none of SageMaker's, fails, and MLflow
# says so at each of them.
logging.getLogger("mlflow.tracking.request_header.registry").setLevel(logging.ERROR)

os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # one for each small file that is read back

# At the end of a run MLflow would print the server's address, password and all, among what a script reads.
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"

# MLflow would try for four minutes before it says that a server is gone. Ours is told within seconds, keeps what it
# could not send, and tries again by itself.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")

PATIENCE = "ROOFSCALE_TRACKING_PATIENCE"
_PATIENCE_SECONDS = 90.0  # a server that is started anew needs a minute
_SQLITE = "sqlite:///"
_ARN = re.compile(r"arn:aws(-us-gov)?:sagemaker:[a-z0-9-]+:\d{12}:mlflow-(app|tracking-server)/[A-Za-z0-9-]+")
_SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
# Beside the statuses from 500 on: no or no longer valid credentials, time-out, too many requests. What was logged is
# worth keeping until that is mended.
_MAY_PASS = (401, 403, 408, 429)


class TrackingError(RoofscaleError):
    """The tracking server does not answer, or will not have what it was sent."""


class ServerAway(TrackingError):
    """The tracking server does not answer."""


def tracking_uri() -> str:
    """The server that ``MLFLOW_TRACKING_URI`` names, or the local database; fit to be shown, without a password."""
    return without_secrets(str(mlflow.get_tracking_uri()))


def was_ever_used() -> bool:
    """False for a local database that does not exist: a client that looks into it would make it."""
    uri = str(mlflow.get_tracking_uri())
    return not uri.startswith(_SQLITE) or Path(unquote(uri.removeprefix(_SQLITE))).exists()


def require_address() -> None:
    """Look at an ARN, as sagemaker-mlflow would only say ``list index out of range`` of one that is cut short.

    Raises:
        ConfigError: it names no MLflow of SageMaker's, or what speaks to these is not installed.
    """
    uri = str(mlflow.get_tracking_uri())
    if not uri.startswith("arn:"):
        return
    if not _ARN.fullmatch(uri):
        raise ConfigError(
            f"MLFLOW_TRACKING_URI={uri}: expected the ARN of an MLflow App or tracking server of SageMaker, such as "
            "arn:aws:sagemaker:eu-west-1:123456789012:mlflow-app/app-ABC123, or an address, such as "
            "http://127.0.0.1:5000."
        )
    try:
        import sagemaker_mlflow  # noqa: F401  # MLflow finds it by itself
    except ImportError:
        raise ConfigError(
            f"MLFLOW_TRACKING_URI={uri}: pip install sagemaker-mlflow, which signs requests to it."
        ) from None


def patience() -> float:
    """Seconds for which a server that has gone is waited for where nothing can go on without it.

    Raises:
        ConfigError: the environment variable is no number.
    """
    said = os.environ.get(PATIENCE, str(_PATIENCE_SECONDS))
    try:
        return float(said)
    except ValueError:
        raise ConfigError(f"{PATIENCE}={said}: expected a number of seconds, such as 90.") from None


def without_secrets(text: str) -> str:
    """The text with the credentials of every address, and those of MLflow's environment variables, made unreadable."""
    text = re.sub(r"(?<=://)[^/\s]*@", "***@", text)
    for secret in filter(None, map(os.environ.get, _SECRETS)):
        text = text.replace(secret, "***")
    return text


def may_pass(error: Exception) -> bool:
    """Whether the same call may succeed later: the server is away or overloaded, and it is not the call's own fault."""
    if isinstance(error, MlflowException):
        status = int(error.get_http_status_code())  # type: ignore[no-untyped-call]
    elif (response := getattr(error, "response", None)) is not None:  # of requests, on artifacts
        status = getattr(response, "status_code", 500)
    else:  # requests' errors and broken connections; and what the libraries of object stores raise
        outside = type(error).__module__.partition(".")[0] in ("botocore", "boto3", "urllib3", "sqlalchemy")
        return outside or (isinstance(error, OSError) and not isinstance(error, FileNotFoundError))
    return status >= 500 or status in _MAY_PASS


def reason(error: Exception) -> str:
    """One short line of an error, for a person."""
    text = without_secrets(str(error))
    if system := re.search(r"\[Errno -?\d+\] ([\w ]+)", text):
        return system[1]
    if "timed out" in text.lower():
        return "timed out"
    line = " ".join(text.split()) or type(error).__name__
    return line if len(line) <= 300 else f"{line[:300]}..."


@contextmanager
def asking() -> Iterator[None]:
    """Around a question to the server.

    Raises:
        ConfigError: what is named is no server.
        ServerAway: it does not answer.
        TrackingError: it answers, but not as a tracking server does.
    """
    require_address()
    try:
        yield
    except Exception as error:
        if may_pass(error):
            raise away(reason(error)) from None
        if isinstance(error, MlflowException):
            raise TrackingError(f"{tracking_uri()}: {reason(error)}") from None
        raise


def away(why: str, kept: str = "") -> ServerAway:
    """The error that says that the server does not answer, what was kept of the record, and what to do."""
    named = "MLFLOW_TRACKING_URI=" if os.environ.get("MLFLOW_TRACKING_URI") else ""
    if kept:
        todo = f"Nothing is lost: {kept}. Once it answers, `roofscale sync` sends it, and the same command goes on."
    elif str(mlflow.get_tracking_uri()).startswith("arn:"):
        todo = (
            "Requests to it are signed with your AWS credentials (aws sts get-caller-identity shows them), which "
            "deploy/iam/mlflow-user.json must be attached to."
        )
    else:
        todo = (
            "Start it and run the same command again, or set MLFLOW_TRACKING_URI to one that runs; without that "
            "variable runs are tracked in the file mlflow.db in the working folder."
        )
    return ServerAway(f"{named}{tracking_uri()}: the tracking server does not answer ({why}). {todo}")
