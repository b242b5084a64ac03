"""Fetch a data set into a data root: download, unpack, compare what checksums there are, and then let it appear."""

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from roofscale.addresses import without_credentials
from roofscale.data import roofline
from roofscale.data.catalogue import card_of
from roofscale.data.download import download
from roofscale.data.places import FINDERS
from roofscale.data.unpack import BrokenArchive, unpack
from roofscale.errors import ConfigError, DataError
from roofscale.files import atomic_dir

NOTE = "fetched.json"  # in the data set's folder: where it came from
_SUMS = "Checksums.sha256"  # RID's release lists each of its files there, as sha256sum does
_LOOKS = {
    "rid": "a folder images_roof_centered_geotiff",
    "roofline": "a file imdb.mat",
    "airs": "folders train/image and train/label",
}


@dataclass(frozen=True)
class Fetched:
    """A data set that is there now."""

    folder: Path
    url: str = ""  # where it came from; empty: it was there already
    sha256: str = ""  # of what was downloaded
    checked: str = ""  # against what


def address_of(name: str, root: Path, url: str = "") -> str:
    """Where a data set would be downloaded from: the given address, or else its own.

    Raises:
        ConfigError: an unknown data set, or one that has no direct source; says where else to get it.
    """
    card = card_of(name)
    if not url and not card.direct:
        raise ConfigError(f"data set {name!r}: it has no address to download from directly. {card.where(str(root))}")
    return url or card.direct


def fetch(name: str, root: Path, url: str = "", sha256: str = "", pause: float = 1.0) -> Fetched:
    """Fetch a data set into ``<root>/<name>``; one that is there already is left as it is.

    After a kill or a broken connection the same call goes on where it stopped. ``pause`` is that of ``download``.

    Raises:
        ConfigError: no direct source, something else in its place, or an address or checksum that is none.
        DataError: it cannot be downloaded, is not what the checksum says, or is no such data set.
    """
    url, target = address_of(name, root, url), root / name
    if target.exists():
        if FINDERS[name](target):
            return Fetched(target)
        raise ConfigError(f"{target}: there is something here that is no {name}. Remove it, or name another folder.")
    archive = root / ".downloads" / f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"
    archive.parent.mkdir(parents=True, exist_ok=True)
    with _alone(archive), atomic_dir(target) as partial:
        found = download(url, archive, sha256, pause)
        files = _unpacked(name, archive, partial)
        checked = [f"the SHA-256 given ({found})"] if sha256 else []
        checked += [f"the release's own checksums of {files} files"] if files else []
        shown_url = without_credentials(url)
        fetched = Fetched(target, shown_url, found, " and ".join(checked) or "nothing: no checksum is known")
        note = {key: value for key, value in asdict(fetched).items() if key != "folder"}
        (partial / NOTE).write_text(json.dumps(note, indent=1), encoding="utf-8")
        partial.rename(target)
        archive.unlink(missing_ok=True)
    return fetched


def _unpacked(name: str, archive: Path, folder: Path) -> int:
    """Unpack, and look whether it is the data set; return how many files the release's own checksums cover."""
    try:
        unpack(archive, folder)
        files = _compare_sums(folder)
    except BrokenArchive:
        archive.unlink(missing_ok=True)
        raise
    found = FINDERS[name](folder)
    if found is None:
        raise DataError(
            f"{archive}: what was downloaded holds no {name}; expected {_LOOKS[name]}. Remove it and name the right "
            "address."
        )
    if name == "roofline":
        roofline.open_all(found)  # one file, whose end may be missing
    return files


@contextmanager
def _alone(archive: Path) -> Iterator[None]:
    """Two processes must not append to one file."""
    with archive.with_name(f"{archive.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"{archive}: another process fetches this now. Wait for it, or end it.") from error
        yield


def _compare_sums(folder: Path) -> int:
    """Compare all files with the release's own list, where it has one; return how many.

    Raises:
        BrokenArchive: a file is missing or differs.
    """
    count = 0
    for listing in folder.rglob(_SUMS):
        for line in listing.read_text(encoding="utf-8-sig").splitlines():
            expected, _, name = line.strip().partition(" ")
            file = listing.parent / name.lstrip(" *")
            if not name or not file.resolve().is_relative_to(folder.resolve()):
                continue
            if not file.is_file() or _sha256(file) != expected.lower():
                raise BrokenArchive(f"{file}: missing or damaged, by the release's own {_SUMS}. Download it again.")
            count += 1
    return count


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
