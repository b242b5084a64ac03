"""Unpack what was downloaded: a zip or tar archive, or Roofline's imdb.mat as it is. No member may leave the folder."""

import hashlib
import json
import lzma
import stat
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import h5py
from filelock import FileLock, Timeout
from tqdm import tqdm

from roofscale.addresses import without_credentials
from roofscale.data import roofline
from roofscale.data.dataset_cards import dataset_card
from roofscale.data.download import download
from roofscale.data.locate import DATASET_FINDERS
from roofscale.errors import ConfigError, DataError
from roofscale.files import atomic_dir

if not hasattr(tarfile, "data_filter"):  # a Python before 3.11.4, such as Debian 12's: PEP 706's filters are not there
    from backports import tarfile  # type: ignore[no-redef]

# How archives begin. A damaged one may be recognised by nothing else: a zip's table stands at its end.
_ZIP, _COMPRESSED = b"PK\x03\x04", (b"\x1f\x8b", b"BZh", b"\xfd7zXZ")


class BrokenArchive(DataError):
    """An archive that is cut short or damaged: it has to be downloaded again."""


def unpack(archive: Path, folder: Path) -> None:
    """Unpack into a new folder; a MATLAB file is moved there as imdb.mat.

    Raises:
        BrokenArchive: cut short or damaged.
        DataError: a kind of file that cannot be unpacked here, a member that would lie outside the folder, or no space.
    """
    folder.mkdir(parents=True)
    with archive.open("rb") as stream:
        first = stream.read(8)
    try:
        if h5py.is_hdf5(archive):
            archive.rename(folder / roofline.FILE)
        elif first.startswith(_ZIP):
            _unzip(archive, folder)
        elif first.startswith(_COMPRESSED) or tarfile.is_tarfile(archive):
            _untar(archive, folder)
        else:
            raise DataError(
                f"{archive}: neither a zip or tar archive nor a MATLAB v7.3 file (it begins with {first!r}). If it is "
                "an archive of another kind, unpack it by hand."
            )
    except (zipfile.BadZipFile, tarfile.ReadError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # else it is a decompressor's complaint
            raise DataError(f"{folder}: cannot be unpacked there ({error}). Free space and try again.") from error
        raise BrokenArchive(f"{archive}: a broken archive ({error}). It was removed; download it again.") from error


def _unzip(archive: Path, folder: Path) -> None:
    """zipfile would quietly put a member with an outward path elsewhere, and a link as a file: both are refused."""
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            inside = (folder / member.filename).resolve().is_relative_to(folder.resolve())
            if not inside or stat.S_ISLNK(member.external_attr >> 16):
                raise _outward(archive, member.filename)
        for member in tqdm(opened.infolist(), "unpacking", file=sys.stderr, leave=False, disable=None):
            opened.extract(member, folder)


def _untar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as opened:
        for member in tqdm(opened, "unpacking", file=sys.stderr, leave=False, disable=None):
            try:
                opened.extract(member, folder, filter="data")
            except tarfile.FilterError as error:
                raise _outward(archive, member.name) from error
        _check_end(opened)


def _check_end(archive: tarfile.TarFile) -> None:
    """tarfile takes a damaged header for the end, and never comes to the checksum behind a compressed one: read on.

    Raises:
        tarfile.ReadError: anything but the zeros that POSIX asks for.
    """
    assert archive.fileobj is not None
    rest = 0
    while chunk := archive.fileobj.read(2**20):
        rest += len(chunk)
        if chunk.strip(b"\0"):
            raise tarfile.ReadError("a damaged header among its members")
    if not rest:
        raise tarfile.ReadError("its end is missing")


def _outward(archive: Path, name: str) -> DataError:
    return DataError(f"{archive}: its member {name!r} would lie outside the folder. Do not trust this archive.")


NOTE = "fetched.json"  # in the data set's folder: where it came from
_SUMS = "Checksums.sha256"  # RID's release lists each of its files there, as sha256sum does
_LOOKS = {
    "rid": "a folder images_roof_centered_geotiff",
    "roofline": "a file imdb.mat",
    "airs": "folders train/image and train/label",
}


@dataclass(frozen=True)
class FetchResult:
    """A data set that is there now."""

    folder: Path
    url: str = ""  # where it came from; empty: it was there already
    sha256: str = ""  # of what was downloaded
    checked: str = ""  # against what


def source_url(name: str, root: Path, url: str = "") -> str:
    """Where a data set would be downloaded from: the given address, or else its own.

    Raises:
        ConfigError: an unknown data set, or one that has no direct source; says where else to get it.
    """
    card = dataset_card(name)
    if not url and not card.direct:
        raise ConfigError(f"data set {name!r}: it has no address to download from directly. {card.where(str(root))}")
    return url or card.direct


def fetch(name: str, root: Path, url: str = "", sha256: str = "", pause: float = 1.0) -> FetchResult:
    """Fetch a data set into ``<root>/<name>``; one that is there already is left as it is.

    After a kill or a broken connection the same call goes on where it stopped. ``pause`` is that of ``download``.

    Raises:
        ConfigError: no direct source, something else in its place, or an address or checksum that is none.
        DataError: it cannot be downloaded, is not what the checksum says, or is no such data set.
    """
    url, target = source_url(name, root, url), root / name
    if target.exists():
        if DATASET_FINDERS[name](target):
            return FetchResult(target)
        raise ConfigError(f"{target}: there is something here that is no {name}. Remove it, or name another folder.")
    archive = root / ".downloads" / f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"
    archive.parent.mkdir(parents=True, exist_ok=True)
    with _alone(archive), atomic_dir(target) as partial:
        found = download(url, archive, sha256, pause)
        files = _unpacked(name, archive, partial)
        checked = [f"the SHA-256 given ({found})"] if sha256 else []
        checked += [f"the release's own checksums of {files} files"] if files else []
        shown_url = without_credentials(url)
        fetched = FetchResult(target, shown_url, found, " and ".join(checked) or "nothing: no checksum is known")
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
    found = DATASET_FINDERS[name](folder)
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
    try:
        held = FileLock(f"{archive}.lock").acquire(blocking=False)
    except Timeout:
        raise DataError(f"{archive}: another process fetches this now. Wait for it, or end it.") from None
    with held:
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
