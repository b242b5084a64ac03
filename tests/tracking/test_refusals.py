"""What a tracking server cannot or will not take costs no run: it is logged another way, or kept, and said."""

import http.server
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from tests.flaky_mlflow_server import Line
from tests.tracking.tiny_run import Tiny

from roofscale.errors import ConfigError
from roofscale.measurement import Outcome
from roofscale.tracking import Tracker, find_model, read_weights, register, save_model, server
from roofscale.tracking.server import TrackingError

Answer = Callable[[str], tuple[int, bytes, str] | None]
PAGE = b"<!doctype html><title>Not Found</title>"


class Between(http.server.BaseHTTPRequestHandler):
    """Passes requests on to a server, but for those that ``answer`` has an answer for."""

    there, answer = "", staticmethod(lambda path: None)
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, content, kind = self.answer(self.path) or self._passed_on(body)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _passed_on(self, body: bytes) -> tuple[int, bytes, str]:
        kept = {name: value for name, value in self.headers.items() if name.lower() in ("content-type", "accept")}
        asked = urllib.request.Request(self.there + self.path, body or None, kept, method=self.command)
        try:
            with urllib.request.urlopen(asked, timeout=30) as found:
                return found.status, found.read(), found.headers.get("Content-Type", "")
        except urllib.error.HTTPError as error:
            return error.code, error.read(), error.headers.get("Content-Type", "")

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _any


@pytest.fixture
def between(line: Line, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answer], None]]:
    """Puts a proxy between this process and the server, which answers some requests itself."""
    started: list[http.server.ThreadingHTTPServer] = []

    def put(answer: Answer) -> None:
        handler = type("Handler", (Between,), {"there": line.uri, "answer": staticmethod(answer)})
        started.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=started[-1].serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{started[-1].server_port}")

    yield put
    for one in started:
        one.shutdown()
        one.server_close()


def old(path: str) -> tuple[int, bytes, str] | None:
    """MLflow 2, which has never heard of logged models."""
    return (404, PAGE, "text/html") if "logged-models" in path or path.endswith("/runs/outputs") else None


def test_a_server_of_mlflow_2_keeps_the_model_among_the_runs_artifacts(
    between: Callable[[Answer], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    between(old)
    tracker = Tracker("old")
    assert caplog.text.count("before MLflow 3") == 1
    run = tracker.start("run", {})
    net = Tiny()
    run.model(partial(save_model, net, 8))
    run.set_aliases("last-good")
    run.finish(Outcome.OK)
    tracker.close()
    assert MlflowClient().get_run(run.run_id).info.status == "FINISHED"
    assert not Path("runs").exists(), "nothing is left to be sent"
    for named in (run.run_id, "roofscale@last-good"):
        model = find_model(named)
        assert model.run.run_id == run.run_id
        found = read_weights(model)
        assert all(torch.equal(value, found[name]) for name, value in net.state_dict().items())
    assert register(run.run_id, "champion").named == find_model("roofscale@last-good").uri.removeprefix("models:/")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ((401, b"Unauthorized", "text/plain"), "MLFLOW_TRACKING_USERNAME"),
        (
            (403, b'{"error_code": "PERMISSION_DENIED", "message": "no"}', "application/json"),
            "the right",
        ),
        ((404, PAGE, "text/html"), "HTTP 404 Not Found"),
    ],
)
def test_a_refusal_is_told_from_silence(
    answer: tuple[int, bytes, str], says: str, between: Callable[[Answer], None]
) -> None:
    between(lambda path: answer)
    with pytest.raises(TrackingError, match=says) as refused:
        Tracker("refused")
    assert "Start it" not in str(refused.value)
    assert "doctype" not in str(refused.value)


def test_a_proxy_in_the_way_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://anna:hunter2@127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.2:5999")
    with pytest.raises(TrackingError, match=r"add 127\.0\.0\.2 to NO_PROXY") as refused:
        Tracker("beyond")
    assert "127.0.0.1:9" in str(refused.value)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("127.0.0.1:5000", "such as http://127.0.0.1:5000"),
        ("mlflow.example.org:443/ui", "such as http://mlflow.example.org:443/ui"),
        ("http://anna:a/b@127.0.0.1:9", "%2F"),
    ],
)
def test_an_address_that_cannot_be_meant_is_said(uri: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ConfigError, match=says):
        server.require_address()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("(Caused by SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: "
         "self-signed certificate')))", "REQUESTS_CA_BUNDLE"),
        ("(Caused by SSLError(SSLError(1, '[SSL: WRONG_VERSION_NUMBER] wrong version number')))", "http://"),
        ("(Caused by NameResolutionError('Failed to resolve mlflow.nowhere'))", "no host of that name"),
        ("[Errno 111] Connection refused", "Start it"),
    ],
)  # fmt: skip
def test_each_cause_has_its_own_remedy(text: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.org")
    assert says in str(server.server_away_error(ConnectionError(text)))
