"""Copies data sets to S3, where jobs read them: file by file, several at a time, and none that is there already."""

import hashlib
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from roofscale.data.airs import VISUAL
from roofscale.data.locate import available_datasets, find_dataset
from roofscale.data.synthetic import NOTE
from roofscale.errors import ConfigError, DataError

PART_BYTES = 2**25  # of a large file, which is copied in parts of this size; its checksum depends on it
_FILES = 8  # looked at, or copied, at a time
_CHUNK = 2**20  # bytes read at a time


class Store(Protocol):
    """What an upload needs of S3; see ``store.Store``."""

    def sizes(self, uri: str) -> dict[str, int]:
        """Bytes of each object under a prefix, by what follows that."""
        ...

    def checksum(self, uri: str) -> str:
        """The SHA-256 of an object."""
        ...

    def upload(self, file: Path, uri: str, progress: Callable[[int], None]) -> None:
        """Copy a file."""
        ...


@dataclass(frozen=True)
class FileToUpload:
    """One file, and where jobs look for it."""

    dataset: str
    file: Path
    path: str  # below the prefix
    size: int  # bytes


def files_to_upload(folder: Path, everything: bool = False) -> list[FileToUpload]:
    """The files of all data sets in a folder, each data set under its name, as jobs want it.

    Args:
        everything: the twins for looking at (``_vis``) and hidden files too.

    Raises:
        ConfigError: no data set is there.
    """
    names = available_datasets(folder)
    if not names:
        raise ConfigError(
            f"{folder}: expected a folder with data sets, such as rid/, roofline/ or airs/; found none. Name the "
            "folder that holds them, or get them: roofscale data fetch."
        )
    return [one for name in names for one in _files_of(name, folder, everything)]


def _files_of(name: str, folder: Path, everything: bool) -> Iterator[FileToUpload]:
    top = find_dataset(name, folder).resolve()
    for file in sorted(file for file in top.rglob("*") if file.is_file()):
        inside = file.relative_to(top)
        hidden = any(part.startswith(".") for part in inside.parts)
        if everything or not (hidden or file.stem.endswith(VISUAL)):
            yield FileToUpload(name, file, f"{name}/{inside.as_posix()}", file.stat().st_size)
    # What generated images are known by lies above them, where a release nests its own.
    above = next((place / NOTE for place in top.parents[:3] if (place / NOTE).is_file()), None)
    if above and not (top / NOTE).exists():
        yield FileToUpload(name, above, f"{name}/{NOTE}", above.stat().st_size)


@dataclass(frozen=True)
class UploadResult:
    """What became of the files."""

    copied: tuple[FileToUpload, ...]
    there: tuple[FileToUpload, ...]  # with the same bytes already


def upload_files(
    files: Sequence[FileToUpload],
    uri: str,
    store: Store,
    progress: Callable[[int], None] = lambda sent: None,
    dry_run: bool = False,
) -> UploadResult:
    """Copy what is not there with the same size and checksum; a second try goes on where the first was stopped.

    Args:
        uri: the data root, ``s3://bucket/prefix``.
        progress: is told of bytes that are done with; called from several threads.
        dry_run: only look.

    Raises:
        ConfigError: S3 refuses; says why.
        DataError: a file cannot be read.
    """
    top = uri.rstrip("/")
    sizes = store.sizes(f"{top}/")

    def settle(one: FileToUpload) -> bool:
        address = f"{top}/{one.path}"
        try:
            same = sizes.get(one.path) == one.size and store.checksum(address) == checksum_of(one.file)
            if not (same or dry_run):
                store.upload(one.file, address, progress)
                return False
        except OSError as error:
            raise DataError(
                f"{one.file}: cannot be read ({error.strerror}); mend it, and the same command goes on."
            ) from error
        progress(one.size)
        return same

    with ThreadPoolExecutor(_FILES, "upload") as pool:
        try:
            found = list(pool.map(settle, files))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return UploadResult(
        *(tuple(one for one, same in zip(files, found, strict=True) if same is there) for there in (False, True))
    )


def checksum_of(file: Path, part_bytes: int = PART_BYTES) -> str:
    """SHA-256 as S3 has it: of the bytes, or, of a file that was copied in parts, of the parts' digests.

    Source: https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html
    """
    digests = [_digest(file, start, part_bytes) for start in range(0, max(1, file.stat().st_size), part_bytes)]
    whole = digests[0] if file.stat().st_size < part_bytes else hashlib.sha256(b"".join(digests)).digest()
    return b64encode(whole).decode()


def _digest(file: Path, start: int, size: int) -> bytes:
    found, left = hashlib.sha256(), size
    with file.open("rb") as stream:
        stream.seek(start)
        while left and (chunk := stream.read(min(_CHUNK, left))):
            found.update(chunk)
            left -= len(chunk)
    return found.digest()
