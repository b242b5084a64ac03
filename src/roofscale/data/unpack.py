"""Unpack what was downloaded: a zip or tar archive, or Roofline's imdb.mat as it is. No member may leave the folder."""

import lzma
import stat
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import h5py
from tqdm import tqdm

from roofscale.data import roofline
from roofscale.errors import DataError

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
