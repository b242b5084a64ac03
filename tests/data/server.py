"""A web server on this machine that serves one file, as badly as a test wants it."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Served:
    """What is served and how; a test may change it between two requests."""

    content: bytes
    ranges: bool = True  # whether it can go on in the middle
    etag: str = '"one"'
    ignores_if_range: bool = False
    content_type: str = "application/octet-stream"
    length_told: bool = True
    drops: list[int] = field(default_factory=list)  # bytes after which the next answers break off
    always_drops: int | None = None
    statuses: list[int] = field(default_factory=list)  # of the next answers, instead of the file
    seconds_per_chunk: float = 0.0
    asked: list[str] = field(default_factory=list)  # the Range of each request, '' for the whole
    sent: int = 0  # bytes of content
    url: str = ""


@contextmanager
def serving(served: Served) -> Iterator[Served]:
    """Serve on a free port of the loopback until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            _answer(self, served)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}/file"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _answer(request: BaseHTTPRequestHandler, served: Served) -> None:
    asked = request.headers.get("Range", "")
    served.asked.append(asked)
    if served.statuses:
        request.send_response(served.statuses.pop(0))
        request.send_header("Content-Length", "0")
        request.end_headers()
        return
    start, total = int(asked.removeprefix("bytes=").rstrip("-") or 0), len(served.content)
    same = served.ignores_if_range or request.headers.get("If-Range", served.etag) == served.etag
    resumes = bool(asked) and served.ranges and same
    if resumes and start >= total:
        request.send_response(416)
        request.send_header("Content-Range", f"bytes */{total}")
        request.send_header("Content-Length", "0")
        request.end_headers()
        return
    rest = served.content[start:] if resumes else served.content
    request.send_response(206 if resumes else 200)
    if resumes:
        request.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
    request.send_header("ETag", served.etag)
    request.send_header("Content-Type", served.content_type)
    if served.length_told:
        request.send_header("Content-Length", str(len(rest)))
    else:
        request.send_header("Connection", "close")
    request.end_headers()
    _send(request, served, rest)


def _send(request: BaseHTTPRequestHandler, served: Served, rest: bytes) -> None:
    most = served.drops.pop(0) if served.drops else served.always_drops
    rest = rest if most is None else rest[:most]
    try:
        for at in range(0, len(rest), 2**16):
            request.wfile.write(rest[at : at + 2**16])
            served.sent += len(rest[at : at + 2**16])
            time.sleep(served.seconds_per_chunk)
    except OSError:  # the other side was killed
        pass
    request.close_connection = most is not None or not served.length_told
