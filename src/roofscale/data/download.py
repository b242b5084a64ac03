"""Resumable download of a file: after a dropped connection or a kill, only the missing bytes are requested.

The bytes received are in ``<file>.part``; the next attempt, of this process or of a later one, requests the rest. The
file gets its name when it is complete and its checksum is right.

Why not pooch: pooch 1.9 starts from zero at each attempt and discards the bytes received if it is stopped, during its
checksum too; on Python 3.11 its Untar lets an archive write anywhere. With a custom downloader inside it, only its
checksum would remain.
"""

import hashlib
import json
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import requests
from tqdm import tqdm

from roofscale.addresses import without_credentials
from roofscale.errors import ConfigError, DataError

_MAX_ATTEMPTS = 5  # attempts in a row without a new byte, before giving up
_CHUNK = 2**16  # bytes; the most that a broken connection loses
_TIMEOUT = (10.0, 60.0)  # seconds to connect, and between two bytes
_TRANSIENT_CODES = {429, 500, 502, 503, 504}  # HTTP status codes after which another attempt may succeed
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class _ConnectionLost(Exception):
    """An attempt that ended before the file was complete; another one may get further."""


_RETRIED = (_ConnectionLost, requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)


@dataclass(frozen=True)
class _ServerState:
    """The server's description of the file, stored next to the part, so that two versions of it are never mixed."""

    url: str
    version: str  # ETag or date of change; empty: the server gives none
    total: int  # bytes; -1: the server does not give it


def download(url: str, file: Path, sha256: str = "", pause: float = 1.0) -> str:
    """Download ``url`` to ``file`` and return its SHA-256 as hex digits; an existing file is only checked.

    Args:
        url: an http or https address.
        file: the path to write.
        sha256: the expected checksum, as 64 hex digits; empty: not known beforehand.
        pause: seconds to wait after an attempt that made progress; doubled for each one in a row that made none.

    Raises:
        ConfigError: the address is not http(s), or the checksum is not 64 hex digits.
        DataError: the server does not have the file, gives a web page instead or fails repeatedly; the file differs
            from ``sha256``; or the disk is full.
    """
    _check_arguments(url, sha256)
    part = file.with_name(f"{file.name}.part")
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        _download_with_retries(url, part, pause)
    source = file if file.exists() else part
    with source.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if sha256 and digest != sha256.lower():
        source.unlink()
        raise DataError(
            f"{url}: what came has the SHA-256 {digest}; expected {sha256.lower()}. It was removed. Try again, or find "
            "out whether the file was changed at its source."
        )
    source.rename(file)
    _state_file(part).unlink(missing_ok=True)
    return digest


def _check_arguments(url: str, sha256: str) -> None:
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
        raise ConfigError(f"--url {url}: expected an address that begins with https:// or http://.")
    if sha256 and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise ConfigError(f"--sha256 {sha256}: expected the 64 hex digits that sha256sum prints.")


def _download_with_retries(url: str, part: Path, pause: float) -> None:
    """Attempt the download until the part is complete; give up after _MAX_ATTEMPTS without a new byte."""
    furthest, vain = _size(part), 0
    with requests.Session() as session:
        while True:
            try:
                _attempt(session, url, part)
                return
            except _RETRIED as error:
                vain = 0 if _size(part) > furthest else vain + 1
                furthest = max(furthest, _size(part))
                if vain >= _MAX_ATTEMPTS:
                    raise DataError(
                        f"{url}: {_MAX_ATTEMPTS} attempts in a row brought nothing new ({error}). {furthest:,} bytes "
                        f"lie in {part}; the same command goes on from there if the server can."
                    ) from error
                time.sleep(pause * 2**vain)
            except requests.RequestException as error:
                raise DataError(f"{url}: cannot be downloaded ({error}). Name another address with --url.") from error
            except OSError as error:
                raise DataError(
                    f"{part}: cannot be written ({error}). Free space and try again: it goes on from there."
                ) from error


def _attempt(session: requests.Session, url: str, part: Path) -> None:
    """Request the missing bytes and append them; start from zero if the server cannot, or has another version now."""
    before, start = _read_state(part, url), 0
    headers = {"Accept-Encoding": "identity"}  # else lengths would be those of compressed bytes
    if before is not None:
        start = _size(part)
        headers |= {"Range": f"bytes={start}-"} | ({"If-Range": before.version} if before.version else {})
    with session.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as answer:
        if answer.status_code == 416 and before is not None and start == before.total:
            return  # complete already: the process was killed between the last byte and the checksum
        _check_answer(answer, url, part)
        resumes = answer.status_code == 206
        now = _ServerState(without_credentials(url), _version(answer.headers), _total(answer))
        if resumes and (before is None or _first_byte(answer) != start or now.total != before.total):
            part.unlink()
            raise _ConnectionLost("the file at the source is another one by now")
        _state_file(part).write_text(json.dumps(asdict(now)), encoding="utf-8")
        _append(answer, part, start if resumes else 0, now.total)
    if now.total not in (-1, _size(part)):
        raise _ConnectionLost(f"{_size(part):,} of {now.total:,} bytes came")


def _append(answer: requests.Response, part: Path, start: int, total: int) -> None:
    """Write the answer's body to the part, after its first ``start`` bytes; 0 overwrites it."""
    bar = tqdm(
        total=total if total >= 0 else None,
        initial=start,
        desc=f"downloading {part.stem}",
        unit="B",
        unit_scale=True,
        file=sys.stderr,
        leave=False,
        disable=None,
    )
    with bar, part.open("ab" if start else "wb") as stream:
        for chunk in answer.iter_content(_CHUNK):
            stream.write(chunk)
            bar.update(len(chunk))


def _check_answer(answer: requests.Response, url: str, part: Path) -> None:
    """Raise unless the answer contains the file."""
    code = answer.status_code
    if code == 416:  # the server's file is shorter than the part
        part.unlink(missing_ok=True)
        raise _ConnectionLost("the file at the source is another one by now")
    if code in _TRANSIENT_CODES:
        raise _ConnectionLost(f"HTTP {code} {answer.reason}")
    if code not in (200, 206):
        raise DataError(f"{url}: HTTP {code} {answer.reason}; expected the file. Name another address with --url.")
    if answer.headers.get("Content-Type", "").startswith("text/html"):
        raise DataError(
            f"{url}: gives a web page; expected a file. It may ask for a login or a click: open it in a browser, or "
            "name another address with --url."
        )


def _version(headers: Mapping[str, str]) -> str:
    """Return the file's version for If-Range: its ETag or, as If-Range takes no weak one, its date of change."""
    etag = headers.get("ETag", "")
    return headers.get("Last-Modified", "") if not etag or etag.startswith("W/") else etag


def _total(answer: requests.Response) -> int:
    """Return the size of the whole file in bytes; -1 if the server does not give it."""
    if answer.status_code == 206:
        match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        return int(match[2]) if match and match[2] != "*" else -1
    return int(answer.headers.get("Content-Length", -1))


def _first_byte(answer: requests.Response) -> int:
    """Return the position of the answer's first byte in the file; -1 if the server does not give it."""
    match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    return int(match[1]) if match else -1


def _state_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_state(part: Path, url: str) -> _ServerState | None:
    """Return the stored server state of a part that can be continued: not empty, and of the same address."""
    try:
        state = _ServerState(**json.loads(_state_file(part).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return state if state.url == without_credentials(url) and _size(part) > 0 else None


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0
