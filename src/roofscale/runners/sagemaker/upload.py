"""Upload of data sets to S3 for jobs: several files at a time, skipping those that are there already."""

import hashlib
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from roofscale.data.airs import VISUAL
from roofscale.data.locate import available_datasets, find_dataset
from roofscale.data.synthetic import NOTE
from roofscale.errors import ConfigError, DataError

if TYPE_CHECKING:
    from roofscale.runners.sagemaker.s3 import S3Client  # imports boto3

PART_BYTES = 2**25  # files from this size on are uploaded in parts of it; S3's checksum depends on the part size
_FILES = 8  # compared or uploaded at a time
_CHUNK = 2**20  # bytes per read


@dataclass(frozen=True)
class FileToUpload:
    """One file, with its path in S3."""

    dataset: str
    file: Path
    path: str  # below the data root in S3
    size: int  # bytes


def files_to_upload(folder: Path, everything: bool = False) -> list[FileToUpload]:
    """Return the files of all data sets in a folder; in S3 each data set is under its name, as jobs expect.

    Args:
        everything: include the visual copies of labels (``_vis``) and hidden files.

    Raises:
        ConfigError: the folder contains no data set.
    """
    names = available_datasets(folder)
    if not names:
        raise ConfigError(
            f"{folder}: expected a folder with data sets, such as rid/, roofline/ or airs/; found none. Name the "
            "folder that holds them, or get them: roofscale data fetch."
        )
    return [file for name in names for file in _files_of(name, folder, everything)]


def _files_of(name: str, folder: Path, everything: bool) -> Iterator[FileToUpload]:
    top = find_dataset(name, folder).resolve()
    for file in sorted(file for file in top.rglob("*") if file.is_file()):
        inside = file.relative_to(top)
        hidden = any(part.startswith(".") for part in inside.parts)
        if everything or not (hidden or file.stem.endswith(VISUAL)):
            yield FileToUpload(name, file, f"{name}/{inside.as_posix()}", file.stat().st_size)
    # The note that marks images as generated can be in a parent folder, as releases nest their data.
    above = next((parent / NOTE for parent in top.parents[:3] if (parent / NOTE).is_file()), None)
    if above and not (top / NOTE).exists():
        yield FileToUpload(name, above, f"{name}/{NOTE}", above.stat().st_size)


def upload_files(
    files: Sequence[FileToUpload],
    uri: str,
    s3: "S3Client",
    progress: Callable[[int], None] = lambda sent: None,
    dry_run: bool = False,
) -> tuple[list[FileToUpload], list[FileToUpload]]:
    """Upload the files that S3 lacks with the same size and checksum; a second call continues a stopped one.

    Args:
        uri: the data root, ``s3://bucket/prefix``.
        progress: called from several threads with the bytes uploaded or skipped since its last call.
        dry_run: compare only.

    Returns:
        The files that S3 lacked, and those that it had.

    Raises:
        ConfigError: S3 refuses; the message has the reason.
        DataError: a file cannot be read.
    """
    top = uri.rstrip("/")
    sizes = s3.sizes(f"{top}/")

    def upload_if_changed(item: FileToUpload) -> bool:
        """Return whether S3 had the same bytes already."""
        address = f"{top}/{item.path}"
        try:
            same = sizes.get(item.path) == item.size and s3.checksum(address) == checksum_of(item.file)
            if not (same or dry_run):
                s3.upload(item.file, address, progress)
                return False
        except OSError as error:
            raise DataError(
                f"{item.file}: cannot be read ({error.strerror}); mend it, and the same command goes on."
            ) from error
        progress(item.size)
        return same

    with ThreadPoolExecutor(_FILES, "upload") as pool:
        try:
            were_there = list(pool.map(upload_if_changed, files))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    pairs = list(zip(files, were_there, strict=True))
    return [file for file, there in pairs if not there], [file for file, there in pairs if there]


def checksum_of(file: Path, part_bytes: int = PART_BYTES) -> str:
    """Return the SHA-256 as S3 computes it, in base64: of the bytes, or of the parts' digests if there are parts.

    Source: https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html
    """
    digests = [_digest(file, start, part_bytes) for start in range(0, max(1, file.stat().st_size), part_bytes)]
    whole = digests[0] if file.stat().st_size < part_bytes else hashlib.sha256(b"".join(digests)).digest()
    return b64encode(whole).decode()


def _digest(file: Path, start: int, size: int) -> bytes:
    digest, remaining = hashlib.sha256(), size
    with file.open("rb") as stream:
        stream.seek(start)
        while remaining and (chunk := stream.read(min(_CHUNK, remaining))):
            digest.update(chunk)
            remaining -= len(chunk)
    return digest.digest()
