"""Tracking in an MLflow of SageMaker's, named by its ARN: requests are signed, what is wrong is said in our words."""

import http.server
import logging
import threading
from collections.abc import Iterator

import pytest
from tests.flaky_mlflow_server import Line

from roofscale.errors import ConfigError
from roofscale.tracking import TrackingError, check_server

APP = "arn:aws:sagemaker:eu-west-1:123456789012:mlflow-app/app-ROOFS1"
SERVER = "arn:aws:sagemaker:eu-west-1:123456789012:mlflow-tracking-server/roofs"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, str]]]:
    """The headers of what was asked of a server that has no experiments; the plugin is sent there."""
    found: list[dict[str, str]] = []

    class Empty(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            found.append({name.lower(): value for name, value in self.headers.items()})
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Empty)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("SAGEMAKER_MLFLOW_CUSTOM_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATESTING")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    yield found
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("arn", "header", "service"),
    [(APP, "x-sm-mlflow-app-arn", "sagemaker"), (SERVER, "x-mlflow-sm-tracking-server-arn", "sagemaker-mlflow")],
)
def test_requests_are_signed_by_the_launcher(
    arn: str, header: str, service: str, asked: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", arn)
    check_server()
    (headers,) = asked
    assert headers[header] == arn
    signature = headers["authorization"]
    assert signature.startswith("AWS4-HMAC-SHA256 Credential=AKIATESTING/")
    assert f"/eu-west-1/{service}/aws4_request" in signature


@pytest.mark.parametrize(
    "arn",
    [
        "arn:aws:sagemaker:eu-west-1:123456789012",
        "arn:aws:sagemaker:eu-west-1:123456789012:training-job/roofscale-1",
        "arn:aws:sagemaker:eu-west-1:1234:mlflow-app/app-ROOFS1",
    ],
)
def test_an_arn_of_something_else_is_refused(arn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", arn)
    with pytest.raises(ConfigError, match=r"expected the ARN of an MLflow App"):
        check_server()


def test_without_credentials_it_says_what_to_do(asked: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (("AWS_EC2_METADATA_DISABLED", "true"), ("AWS_CONFIG_FILE", "/none"),
                        ("AWS_SHARED_CREDENTIALS_FILE", "/none"), ("MLFLOW_TRACKING_URI", APP)):  # fmt: skip
        monkeypatch.setenv(name, value)
    with pytest.raises(TrackingError, match=r"credentials.*deploy/iam/mlflow-user.json"):
        check_server()
    assert asked == []


def test_a_server_that_is_none_of_sagemakers_is_not_warned_of(line: Line, caplog: pytest.LogCaptureFixture) -> None:
    """The plugin fails at every request to it, which is nothing to a user."""
    logging.getLogger("mlflow").propagate = True
    check_server()
    assert not caplog.records
