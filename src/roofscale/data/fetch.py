"""Download and unpacking of a data set: a zip or tar archive, or Roofline's imdb.mat as it is."""

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

if not hasattr(tarfile, "data_filter"):  # Python before 3.11.4, such as Debian 12's, has no PEP 706 filters
    from backports import tarfile  # type: ignore[no-redef]

NOTE = "fetched.json"  # in the data set's folder: url, SHA-256 and what it was checked against
_CHECKSUM_FILE = "Checksums.sha256"  # in RID's release: one line for each of its files, in the format of sha256sum
_EXPECTED = {
    "rid": "a folder images_roof_centered_geotiff",
    "roofline": "a file imdb.mat",
    "airs": "folders train/image and train/label",
}

# First bytes of archives. They identify a truncated one too: zipfile.is_zipfile needs the table at a zip's end.
_ZIP, _COMPRESSED_TAR = b"PK\x03\x04", (b"\x1f\x8b", b"BZh", b"\xfd7zXZ")


class BrokenArchive(DataError):
    """An archive that is truncated or damaged, and has to be downloaded again."""


def unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive into a new folder; a MATLAB file is moved there as imdb.mat.

    Raises:
        BrokenArchive: the archive is truncated or damaged.
        DataError: the file is no archive of a known kind, a member would lie outside the folder, or the disk is full.
    """
    folder.mkdir(parents=True)
    with archive.open("rb") as stream:
        first = stream.read(8)
    try:
        if h5py.is_hdf5(archive):
            archive.rename(folder / roofline.FILE)
        elif first.startswith(_ZIP):
            _unzip(archive, folder)
        elif first.startswith(_COMPRESSED_TAR) or tarfile.is_tarfile(archive):
            _untar(archive, folder)
        else:
            raise DataError(
                f"{archive}: neither a zip or tar archive nor a MATLAB v7.3 file (it begins with {first!r}). If it is "
                "an archive of another kind, unpack it by hand."
            )
    except (zipfile.BadZipFile, tarfile.ReadError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # decompressors raise it without errno
            raise DataError(f"{folder}: cannot be unpacked there ({error}). Free space and try again.") from error
        raise BrokenArchive(f"{archive}: a broken archive ({error}). It was removed; download it again.") from error


def _unzip(archive: Path, folder: Path) -> None:
    """Unpack a zip archive; refuse links and paths out of the folder, which zipfile would silently change."""
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            inside = (folder / member.filename).resolve().is_relative_to(folder.resolve())
            if not inside or stat.S_ISLNK(member.external_attr >> 16):
                raise _outside_error(archive, member.filename)
        for member in tqdm(opened.infolist(), "unpacking", file=sys.stderr, leave=False, disable=None):
            opened.extract(member, folder)


def _untar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as opened:
        for member in tqdm(opened, "unpacking", file=sys.stderr, leave=False, disable=None):
            try:
                opened.extract(member, folder, filter="data")
            except tarfile.FilterError as error:
                raise _outside_error(archive, member.name) from error
        _check_end(opened)


def _check_end(archive: tarfile.TarFile) -> None:
    """Check that an archive ends after its last member with the zeros that POSIX requires.

    tarfile takes a damaged header for the end. Reading on also makes a decompressor verify its final checksum.

    Raises:
        tarfile.ReadError: other bytes follow, or none.
    """
    assert archive.fileobj is not None
    count = 0
    while chunk := archive.fileobj.read(2**20):
        count += len(chunk)
        if chunk.strip(b"\0"):
            raise tarfile.ReadError("a damaged header among its members")
    if not count:
        raise tarfile.ReadError("its end is missing")


def _outside_error(archive: Path, name: str) -> DataError:
    return DataError(f"{archive}: its member {name!r} would lie outside the folder. Do not trust this archive.")


@dataclass(frozen=True)
class FetchResult:
    """The result of fetching a data set."""

    folder: Path
    url: str = ""  # of the download, without credentials; empty: the data set was there already
    sha256: str = ""  # of the downloaded file
    checked: str = ""  # the checksums that it was compared with, in words


def source_url(name: str, root: Path, url: str = "") -> str:
    """Return the address to download a data set from: the given one, or else that of its card.

    Raises:
        ConfigError: the data set is unknown, or has no direct address; the message says where else to get it.
    """
    card = dataset_card(name)
    if not url and not card.direct:
        raise ConfigError(f"data set {name!r}: it has no address to download from directly. {card.where(str(root))}")
    return url or card.direct


def fetch(name: str, root: Path, url: str = "", sha256: str = "", pause: float = 1.0) -> FetchResult:
    """Download a data set, verify it and unpack it into ``<root>/<name>``; an existing one is left as it is.

    After a kill or a broken connection the same call continues the download.

    Args:
        name: of the data set.
        root: the data root.
        url: the address to download from; empty: that of the data set's card.
        sha256: expected checksum of the download, as 64 hex digits; empty: none is known.
        pause: seconds between attempts, see ``download``.

    Raises:
        ConfigError: there is no direct address, the folder holds something else, or address or checksum are invalid.
        DataError: the download fails, differs from the checksum, or does not contain the data set.
    """
    url, target = source_url(name, root, url), root / name
    if target.exists():
        if DATASET_FINDERS[name](target):
            return FetchResult(target)
        raise ConfigError(f"{target}: there is something here that is no {name}. Remove it, or name another folder.")
    archive = root / ".downloads" / f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"
    archive.parent.mkdir(parents=True, exist_ok=True)
    with _exclusive(archive), atomic_dir(target) as partial:
        digest = download(url, archive, sha256, pause)
        files = _unpack_and_verify(name, archive, partial)
        checked = [f"the SHA-256 given ({digest})"] if sha256 else []
        checked += [f"the release's own checksums of {files} files"] if files else []
        shown_url = without_credentials(url)
        result = FetchResult(target, shown_url, digest, " and ".join(checked) or "nothing: no checksum is known")
        note = {key: value for key, value in asdict(result).items() if key != "folder"}
        (partial / NOTE).write_text(json.dumps(note, indent=1), encoding="utf-8")
        partial.rename(target)
        archive.unlink(missing_ok=True)
    return result


def _unpack_and_verify(name: str, archive: Path, folder: Path) -> int:
    """Unpack the archive and check that it contains the data set; return how many files were compared by checksum."""
    try:
        unpack(archive, folder)
        files = _verify_checksums(folder)
    except BrokenArchive:
        archive.unlink(missing_ok=True)
        raise
    dataset_folder = DATASET_FINDERS[name](folder)
    if dataset_folder is None:
        raise DataError(
            f"{archive}: what was downloaded holds no {name}; expected {_EXPECTED[name]}. Remove it and name the right "
            "address."
        )
    if name == "roofline":
        roofline.open_all(dataset_folder)  # raises if the file is truncated
    return files


@contextmanager
def _exclusive(archive: Path) -> Iterator[None]:
    """Lock an archive, because two processes must not append to the same file."""
    try:
        lock = FileLock(f"{archive}.lock").acquire(blocking=False)
    except Timeout:
        raise DataError(f"{archive}: another process fetches this now. Wait for it, or end it.") from None
    with lock:
        yield


def _verify_checksums(folder: Path) -> int:
    """Compare all files with the release's checksum list, if it has one; return how many were compared.

    Raises:
        BrokenArchive: a file is missing or differs from its checksum.
    """
    count = 0
    for listing in folder.rglob(_CHECKSUM_FILE):
        for line in listing.read_text(encoding="utf-8-sig").splitlines():
            expected, _, name = line.strip().partition(" ")
            file = listing.parent / name.lstrip(" *")
            if not name or not file.resolve().is_relative_to(folder.resolve()):
                continue
            if not file.is_file() or _sha256(file) != expected.lower():
                raise BrokenArchive(
                    f"{file}: missing or damaged, by the release's own {_CHECKSUM_FILE}. Download it again."
                )
            count += 1
    return count


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
