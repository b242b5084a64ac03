"""Download a file so that a dropped connection, or a kill, costs only what was under way.

What came lies in ``<file>.part``; the next attempt, of this process or of a later one, asks the server for the rest.
The file gets its name when it is whole and its checksum is right.

requests alone, and not pooch on top of it: pooch 1.9 begins anew at each attempt and throws away what came when it is
stopped, during its checksum too; on Python 3.11 its Untar lets an archive write anywhere. With a downloader of our own
inside it, a hash would be all that is left of it.
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

_TRIES = 5  # attempts in a row that bring nothing new, before giving up
_CHUNK = 2**16  # bytes; what a broken connection may lose
_TIMEOUT = (10.0, 60.0)  # seconds to connect, and between two bytes
_PASSING = {429, 500, 502, 503, 504}  # HTTP answers that a later attempt may not get
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class _ConnectionLost(Exception):
    """An attempt ended before the file was whole; another may get further."""


_WORTH_ANOTHER = (_ConnectionLost, requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)


@dataclass(frozen=True)
class _ServerState:
    """What the server said of the file, kept beside the part: a later attempt must not mix two versions of it."""

    url: str
    version: str  # ETag or date of change; empty: it said none
    total: int  # bytes; -1: it did not say


def download(url: str, file: Path, sha256: str = "", pause: float = 1.0) -> str:
    """Download ``url`` to ``file`` and return its SHA-256; a file that is there already is only checked.

    Args:
        sha256: what it has to be, as 64 hex digits; empty: not known beforehand.
        pause: seconds before the second attempt; each further one waits twice as long.

    Raises:
        ConfigError: an address that is not http(s), or a checksum that is none.
        DataError: the server does not have it, gives a web page instead, is too unreliable, or gives other bytes
            than ``sha256`` says; or the disk is full.
    """
    _check_arguments(url, sha256)
    part = file.with_name(f"{file.name}.part")
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        _download_with_retries(url, part, pause)
    source = file if file.exists() else part
    with source.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if sha256 and found != sha256.lower():
        source.unlink()
        raise DataError(
            f"{url}: what came has the SHA-256 {found}; expected {sha256.lower()}. It was removed. Try again, or find "
            "out whether the file was changed at its source."
        )
    source.rename(file)
    _told_file(part).unlink(missing_ok=True)
    return found


def _check_arguments(url: str, sha256: str) -> None:
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
        raise ConfigError(f"--url {url}: expected an address that begins with https:// or http://.")
    if sha256 and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise ConfigError(f"--sha256 {sha256}: expected the 64 hex digits that sha256sum prints.")


def _download_with_retries(url: str, part: Path, pause: float) -> None:
    """Attempt it until the part is whole; give up after _TRIES attempts that got no further than those before."""
    furthest, vain = _size(part), 0
    with requests.Session() as session:
        while True:
            try:
                _attempt(session, url, part)
                return
            except _WORTH_ANOTHER as error:
                vain = 0 if _size(part) > furthest else vain + 1
                furthest = max(furthest, _size(part))
                if vain >= _TRIES:
                    raise DataError(
                        f"{url}: {_TRIES} attempts in a row brought nothing new ({error}). {furthest:,} bytes "
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
    """Ask for what is missing and append it; begin anew where the server cannot, or has another version by now."""
    told, start = _read_told(part, url), 0
    headers = {"Accept-Encoding": "identity"}  # else lengths would be those of something compressed
    if told is not None:
        start = _size(part)
        headers |= {"Range": f"bytes={start}-"} | ({"If-Range": told.version} if told.version else {})
    with session.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as answer:
        if answer.status_code == 416 and told is not None and start == told.total:
            return  # killed between the last byte and the checksum
        _refuse(answer, url, part)
        resumes = answer.status_code == 206
        now = _ServerState(without_credentials(url), _version(answer.headers), _total(answer))
        if resumes and (told is None or _first_byte(answer) != start or now.total != told.total):
            part.unlink()
            raise _ConnectionLost("the file at the source is another one by now")
        _told_file(part).write_text(json.dumps(asdict(now)), encoding="utf-8")
        _append(answer, part, start if resumes else 0, now.total)
    if now.total not in (-1, _size(part)):
        raise _ConnectionLost(f"{_size(part):,} of {now.total:,} bytes came")


def _append(answer: requests.Response, part: Path, start: int, total: int) -> None:
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


def _refuse(answer: requests.Response, url: str, part: Path) -> None:
    """Raise unless the answer carries the file."""
    code = answer.status_code
    if code == 416:  # it has fewer bytes than lie here
        part.unlink(missing_ok=True)
        raise _ConnectionLost("the file at the source is another one by now")
    if code in _PASSING:
        raise _ConnectionLost(f"HTTP {code} {answer.reason}")
    if code not in (200, 206):
        raise DataError(f"{url}: HTTP {code} {answer.reason}; expected the file. Name another address with --url.")
    if answer.headers.get("Content-Type", "").startswith("text/html"):
        raise DataError(
            f"{url}: gives a web page; expected a file. It may ask for a login or a click: open it in a browser, or "
            "name another address with --url."
        )


def _version(headers: Mapping[str, str]) -> str:
    """What names this version of the file for If-Range, which takes no weak ETag."""
    etag = headers.get("ETag", "")
    return headers.get("Last-Modified", "") if not etag or etag.startswith("W/") else etag


def _total(answer: requests.Response) -> int:
    """The size of the whole file, bytes; -1 where the server does not say."""
    if answer.status_code == 206:
        told = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        return int(told[2]) if told and told[2] != "*" else -1
    return int(answer.headers.get("Content-Length", -1))


def _first_byte(answer: requests.Response) -> int:
    told = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    return int(told[1]) if told else -1


def _told_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_told(part: Path, url: str) -> _ServerState | None:
    """What is known of a part that can be gone on with: of the same address, and not empty."""
    try:
        told = _ServerState(**json.loads(_told_file(part).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return told if told.url == without_credentials(url) and _size(part) > 0 else None


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0
