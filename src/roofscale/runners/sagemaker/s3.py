"""Client of S3 for the launcher and for uploads."""

import io
import tarfile
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import boto3
from boto3.s3.transfer import ProgressCallbackInvoker, TransferConfig, create_transfer_manager
from botocore.config import Config
from botocore.exceptions import ClientError

from roofscale.addresses import S3
from roofscale.runners.sagemaker.aws_errors import Wait, code_of, retry_transient, translating_errors
from roofscale.runners.sagemaker.upload import PART_BYTES

_CONNECTIONS = 16  # at a time
# Bounds what boto3 holds in memory before it is on disk, by default up to 250 MiB: fetching 57 MiB of weights from moto
# took the launcher 18 MiB instead of 35.
_FETCHING = TransferConfig(max_concurrency=4, max_io_queue=16)
_ATTEMPTS = 8  # of boto3 itself, before it raises a transient error


class S3Client:
    """S3, with transient errors retried.

    Args:
        region: AWS region; empty: boto3's own choice.
        kms_key: the key that encrypts written objects; empty: the bucket's default encryption.
        wait: waits between two attempts; see ``aws_errors.Wait``.
    """

    def __init__(self, region: str = "", kms_key: str = "", wait: Wait = time.sleep) -> None:
        self._session = boto3.session.Session(region_name=region or None)
        self._encryption = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": kms_key} if kms_key else {}
        self._wait = wait
        self._s3 = self._client("s3")
        self._transfers = create_transfer_manager(
            self._s3,
            TransferConfig(
                multipart_threshold=PART_BYTES,
                multipart_chunksize=PART_BYTES,
                max_concurrency=_CONNECTIONS,
                preferred_transfer_client="classic",
            ),
        )

    def _client(self, service: str, region: str | None = None) -> Any:
        retries: Any = {"mode": "adaptive", "total_max_attempts": _ATTEMPTS}
        config = Config(retries=retries, max_pool_connections=2 * _CONNECTIONS)
        with translating_errors("to reach AWS"):
            return self._session.client(service, region, config=config)

    def write(self, uri: str, content: bytes) -> None:
        """Write an object."""
        bucket, key = split(uri)
        with translating_errors(f"to write {uri}"):
            self._s3.put_object(Bucket=bucket, Key=key, Body=content, **self._encryption)

    def read_from(self, uri: str, offset: int) -> bytes:
        """Return an object's bytes from an offset on; empty if the object is missing or shorter."""
        bucket, key = split(uri)
        content: bytes | None = self._call(
            f"to read {uri}",
            lambda: self._s3.get_object(Bucket=bucket, Key=key, Range=f"bytes={offset}-")["Body"].read(),
            absent=("NoSuchKey", "404", "InvalidRange", "416"),
        )
        return content or b""

    def read_packed(self, uri: str, name: str) -> bytes | None:
        """Return one file of a .tar.gz; None if the archive or the file in it is missing."""
        archive = self.read_from(uri, 0)
        if not archive:
            return None
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as packed:
            file = packed.extractfile(name) if name in packed.getnames() else None
            return file.read() if file else None

    def fetch(self, uri: str, folder: Path, leave_out: Collection[str] = ()) -> None:
        """Copy the objects under a prefix into a folder, except hidden ones and the file names in ``leave_out``."""
        top = f"{uri.rstrip('/')}/"
        for name in self.sizes(top):
            file = folder / name
            # A hidden file is one that the job had not renamed yet, so it may be incomplete. A key with .. must not
            # lead out of the folder.
            is_skipped = not name or name.endswith("/") or file.name.startswith(".") or file.name in leave_out
            if not is_skipped and file.resolve().is_relative_to(folder.resolve()):
                file.parent.mkdir(parents=True, exist_ok=True)
                download = partial(self._s3.download_file, *split(top + name), str(file), Config=_FETCHING)
                self._call(f"to fetch {uri}", download)

    def size(self, uri: str) -> int:
        """Return the bytes of all objects under a prefix."""
        return sum(self.sizes(uri).values())

    def sizes(self, uri: str) -> dict[str, int]:
        """Return the bytes of each object under a prefix, by the rest of its key."""
        bucket, top = split(uri)
        listing = self._s3.get_paginator("list_objects_v2")
        pages = self._call(f"to look at {uri}", lambda: list(listing.paginate(Bucket=bucket, Prefix=top)))
        return {item["Key"].removeprefix(top): item["Size"] for page in pages for item in page.get("Contents", ())}

    def checksum(self, uri: str) -> str:
        """Return S3's SHA-256 of an object, see ``upload.checksum_of``; empty if it was uploaded without one."""
        bucket, key = split(uri)
        ask = partial(self._s3.head_object, Bucket=bucket, Key=key, ChecksumMode="ENABLED")
        head = self._call(f"to look at {uri}", ask)
        return str(head.get("ChecksumSHA256", "")).partition("-")[0]  # without "-<number of parts>"

    def upload(self, file: Path, uri: str, progress: Callable[[int], None]) -> None:
        """Upload a file with its SHA-256, which S3 verifies.

        Args:
            progress: called with the number of bytes sent since the last call; negative if bytes are sent again.
        """
        bucket, key = split(uri)
        extra = {"ChecksumAlgorithm": "SHA256", **self._encryption}
        subscribers = [ProgressCallbackInvoker(progress)]
        self._call(
            f"to copy {file} to {uri}",
            lambda: self._transfers.upload(str(file), bucket, key, extra, subscribers).result(),
        )

    def _call(self, doing: str, attempt: Callable[[], Any], absent: Collection[str] = (), words: str = "") -> Any:
        """Return the result of ``attempt``, with transient errors retried and the others translated.

        Args:
            doing: see ``translating_errors``.
            absent: the codes of errors for which None is returned.
            words: part of the message of these errors.
        """
        with translating_errors(doing):
            try:
                return retry_transient(attempt, self._wait)
            except ClientError as error:
                if code_of(error) not in absent or words not in str(error):
                    raise
        return None


def split(uri: str) -> tuple[str, str]:
    """Return bucket and key of ``s3://bucket/key``."""
    bucket, _, key = uri.removeprefix(S3).partition("/")
    return bucket, key
