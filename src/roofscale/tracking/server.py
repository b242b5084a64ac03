"""The tracking server: its address, the classification of its errors, and messages with a remedy for each cause."""

import http.client
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mlflow
import requests
from mlflow.exceptions import MlflowException

from roofscale.addresses import credentials, require_quoted, without_credentials, without_secrets
from roofscale.errors import ConfigError, EnvironmentFault

# MLflow's own log would hide Roofscale's. The sender reports a server that does not answer once, where urllib3 would
# at each attempt; for a locked database MLflow would print the whole traceback.
logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
# sagemaker-mlflow 0.5.0 tries to add its headers to requests to any server, fails unless it is SageMaker's, and MLflow
# warns at each request.
logging.getLogger("mlflow.tracking.request_header.registry").setLevel(logging.ERROR)

os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # else one bar per small file

# At the end of a run MLflow would print the server's address, including its password, to stdout, which scripts parse.
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"

# By default MLflow retries for four minutes before it raises. The sender needs the error within seconds: it keeps the
# operations on disk and retries itself.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")

# Authenticate the launcher at a server; a job must not get them.
_SECRETS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
_ENDPOINT = "SAGEMAKER_MLFLOW_CUSTOM_ENDPOINT"  # of sagemaker-mlflow: another address of the server behind an ARN
PATIENCE = "ROOFSCALE_TRACKING_PATIENCE"
_PATIENCE_SECONDS = 90.0  # a server needs a minute to restart
_SQLITE = "sqlite:///"
_ARN = re.compile(r"arn:aws(-us-gov)?:sagemaker:[a-z0-9-]+:\d{12}:mlflow-(app|tracking-server)/[A-Za-z0-9-]+")
_HOST_AND_PORT = re.compile(r"[\w.-]+:\d+(/.*)?")
# HTTP statuses that are transient in addition to those from 500 on: request timeout, too many requests; and missing or
# expired credentials, as the user can renew these while the operations wait in the outbox.
_OVERLOADED = (408, 429)
_TRANSIENT = (401, 403, *_OVERLOADED)
# Permanent errors of an artifact store that is a folder.
_PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


class TrackingError(EnvironmentFault):
    """Error of the tracking server: it does not answer, or refuses a request."""


class ServerAway(TrackingError):
    """Error of a tracking server that does not answer, or refuses the credentials."""


def tracking_uri() -> str:
    """Return the address in ``MLFLOW_TRACKING_URI``, or that of the local database, without a password."""
    return without_secrets(without_credentials(str(mlflow.get_tracking_uri())))


def store_exists() -> bool:
    """Return False if the server is a local database that does not exist: any query of a client would create it."""
    uri = str(mlflow.get_tracking_uri())
    return not uri.startswith(_SQLITE) or Path(unquote(uri.removeprefix(_SQLITE))).exists()


def require_address() -> None:
    """Check the server's address before a library does, as its message would be less clear or show the password.

    Raises:
        ConfigError: the password is not URL-quoted, ``http://`` is missing, the ARN is not of a SageMaker MLflow App
            or tracking server, or ``sagemaker-mlflow`` is not installed.
    """
    uri = str(mlflow.get_tracking_uri())
    require_quoted("MLFLOW_TRACKING_URI", uri)
    if _HOST_AND_PORT.fullmatch(uri):
        raise ConfigError(
            f"MLFLOW_TRACKING_URI={uri}: expected an address with its scheme, such as http://{uri}; without one MLflow "
            "takes it for a folder."
        )
    if not uri.startswith("arn:"):
        return
    if not _ARN.fullmatch(uri):
        raise ConfigError(
            f"MLFLOW_TRACKING_URI={uri}: expected the ARN of an MLflow App or tracking server of SageMaker, such as "
            "arn:aws:sagemaker:eu-west-1:123456789012:mlflow-app/app-ABC123, or an address, such as "
            "http://127.0.0.1:5000."
        )
    try:
        import sagemaker_mlflow  # noqa: F401  # MLflow loads it as a plugin
    except ImportError:
        raise ConfigError(
            f"MLFLOW_TRACKING_URI={uri}: pip install sagemaker-mlflow, which signs requests to it."
        ) from None


def job_logs_itself(logged_by: str) -> bool:
    """Whether a job logs to this server itself; else its launcher has to.

    A job has no secret: it reaches an ARN with the rights of its role, and an https address that asks for no password.

    Args:
        logged_by: auto, launcher, or job for an address that is reached from the job's network only.

    Raises:
        ConfigError: the job has to log, and the server asks for a password.
    """
    uri = str(mlflow.get_tracking_uri())
    by_role = uri.startswith("arn:")
    is_local = (urlsplit(uri).hostname or "") in ("", "localhost", "127.0.0.1", "::1")
    has_secret = not by_role and bool(credentials(uri) or any(map(os.environ.get, _SECRETS)))
    is_reached = by_role or (uri.startswith("https://") and not is_local and not has_secret)
    if logged_by == "launcher" or (logged_by == "auto" and not is_reached):
        return False
    if has_secret:
        raise ConfigError(
            f"logged_by=job: {tracking_uri()} asks for a password or a token, which would be readable in the job's "
            "environment. Set logged_by: launcher, or track with an MLflow App of SageMaker."
        )
    return True


def job_environment(run_id: str, logged_by: str) -> dict[str, str]:
    """Return the variables by which a job logs to a run of this server; empty if its launcher has to log.

    Arguments and errors as for ``job_logs_itself``.
    """
    if not job_logs_itself(logged_by):
        return {}
    endpoint = {_ENDPOINT: os.environ[_ENDPOINT]} if _ENDPOINT in os.environ else {}
    return {"MLFLOW_TRACKING_URI": str(mlflow.get_tracking_uri()), "MLFLOW_RUN_ID": run_id, **endpoint}


def wait_seconds() -> float:
    """Return for how many seconds to wait for a server that does not answer, if the command cannot go on without it.

    Raises:
        ConfigError: ``ROOFSCALE_TRACKING_PATIENCE`` is not a number.
    """
    value = os.environ.get(PATIENCE, str(_PATIENCE_SECONDS))
    try:
        return float(value)
    except ValueError:
        raise ConfigError(f"{PATIENCE}={value}: expected a number of seconds, such as 90.") from None


def is_transient(error: Exception) -> bool:
    """Whether the same call may succeed later: the server is away or overloaded, or refuses the credentials."""
    if isinstance(answer := getattr(error, "response", None), dict):  # botocore's, for artifacts in S3
        code = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
        return bool(code >= 500 or code in _OVERLOADED)
    status = status_of(error)
    if status is None:  # no answer: a connection error of requests, of an object store or of a database
        from_store = type(error).__module__.partition(".")[0] in ("botocore", "boto3", "urllib3", "sqlalchemy")
        return from_store or (isinstance(error, OSError) and not isinstance(error, _PERMANENT))
    return status >= 500 or status in _TRANSIENT


def status_of(error: Exception) -> int | None:
    """Return the HTTP status of the server's answer; None if there was no answer."""
    if isinstance(error, MlflowException):
        # If the answer is not JSON, such as a proxy's error page, only MLflow's message has the status.
        page = re.search(r"failed with error code (\d{3}) != 200", str(error))
        return int(page[1]) if page else int(error.get_http_status_code())  # type: ignore[no-untyped-call]
    response = getattr(error, "response", None)  # requests' errors, for artifacts
    return None if response is None else getattr(response, "status_code", 500)


def lacks_endpoint(error: MlflowException) -> bool:
    """Whether the server is too old to have the endpoint that was called."""
    unknown = status_of(error) == 404 and error.error_code != "RESOURCE_DOES_NOT_EXIST"
    return unknown or error.error_code in ("ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED")


def short_reason(error: Exception) -> str:
    """Return the reason of an error in one line of about 300 characters at most, without secrets."""
    text = without_secrets(str(error))
    if page := re.search(r"failed with error code (\d{3}) != 200", text):
        return f"HTTP {page[1]} {http.client.responses.get(int(page[1]), '')}".strip()
    if "ProxyError" in text:
        return "the proxy does not answer, or refuses"
    if "SSLError" in text:
        cause = re.search(r"certificate verify failed[\w :-]*|\[SSL[\w: -]*\]", text)
        return f"no secure connection{f', {cause[0]}' if cause else ''}"
    if system := re.search(r"\[Errno -?\d+\] ([\w ]+)", text):
        return system[1]
    if "timed out" in text.lower():
        return "timed out"
    line = " ".join(text.split()) or type(error).__name__
    return line if len(line) <= 300 else f"{line[:300]}..."


@contextmanager
def translate_errors() -> Iterator[None]:
    """Check the address, and translate the errors of calls to the server in the block.

    Raises:
        ConfigError: the server's address is not valid.
        ServerAway: the server does not answer, or refuses the credentials.
        TrackingError: the server answers with an error, or is not a tracking server.
    """
    require_address()
    try:
        yield
    except Exception as error:
        if is_transient(error):
            raise server_away_error(error) from None
        if isinstance(error, MlflowException):
            raise TrackingError(f"{tracking_uri()}: {short_reason(error)}") from None
        raise


def server_away_error(error: Exception, kept: str = "") -> ServerAway:
    """Return the error for a server that does not answer or refuses the credentials, with a remedy.

    Args:
        kept: what is kept in the outbox, in words; empty if nothing is.
    """
    named = "MLFLOW_TRACKING_URI=" if os.environ.get("MLFLOW_TRACKING_URI") else ""
    refuses = status_of(error) in (401, 403)
    what = "refuses these credentials" if refuses else "does not answer"
    todo = _remedy(error)
    if kept:
        todo += f" Nothing is lost: {kept}. Once it answers, `roofscale sync` sends it, and the same command goes on."
    return ServerAway(f"{named}{tracking_uri()}: the tracking server {what} ({short_reason(error)}). {todo}")


def _remedy(error: Exception) -> str:
    """Return the remedy that fits the address and the cause of the error."""
    uri, text = str(mlflow.get_tracking_uri()), str(error)
    if uri.startswith("arn:"):
        return (
            "Requests to it are signed with your AWS credentials (aws sts get-caller-identity shows them), which "
            "deploy/iam/mlflow-user.json must be attached to."
        )
    if uri.startswith(_SQLITE):
        file = Path(unquote(uri.removeprefix(_SQLITE)))
        return (
            f"The tracking database {file} cannot be used: let this user write it and its folder, close what else has "
            "it locked, or move it away if it is damaged; or set MLFLOW_TRACKING_URI to another."
        )
    if "SSLError" in text and "WRONG_VERSION_NUMBER" in text:
        return "It speaks http:// and not https:// there; correct the address."
    if "SSLError" in text:
        return (
            "Its certificate is not trusted here: let MLFLOW_TRACKING_SERVER_CERT_PATH or REQUESTS_CA_BUNDLE name the "
            "file of the authority that has signed it."
        )
    if proxies := requests.utils.get_environ_proxies(uri) if uri.startswith("http") else {}:
        proxy = without_credentials(next(iter(proxies.values())))
        return (
            f"Requests to it go through the proxy {proxy} (HTTP_PROXY, HTTPS_PROXY): add {urlsplit(uri).hostname} to "
            "NO_PROXY if it is reached without one, or correct the proxy."
        )
    if status_of(error) in (401, 403):
        return (
            "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, or ask its "
            "administrator for the right."
        )
    if "NameResolutionError" in text or "Name or service not known" in text:
        return "There is no host of that name, as far as this machine can see; correct the address."
    return (
        "Start it and run the same command again, or set MLFLOW_TRACKING_URI to one that runs; without that variable "
        "runs are tracked in the file mlflow.db in the working folder."
    )
