"""Client of S3 for the launcher and for uploads."""

import io
import tarfile
import time
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import boto3
from boto3.s3.transfer import ProgressCallbackInvoker, TransferConfig, create_transfer_manager
from botocore.config import Config
from botocore.exceptions import ClientError

from roofscale.addresses import S3
from roofscale.runners.sagemaker.aws_errors import T, Wait, code_of, retry_transient, translating_errors
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
        with translating_errors(f"to read {uri}"):
            try:
                content = self._patiently(
                    lambda: self._s3.get_object(Bucket=bucket, Key=key, Range=f"bytes={offset}-")["Body"].read()
                )
            except ClientError as error:
                if code_of(error) in ("NoSuchKey", "404", "InvalidRange", "416"):
                    return b""
                raise
        return bytes(content)

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
        bucket, top = split(f"{uri.rstrip('/')}/")
        with translating_errors(f"to fetch {uri}"):
            for key, _ in self._patiently(lambda: list(self._objects(bucket, top))):
                file = folder / key.removeprefix(top)
                # A hidden file is one that the job had not renamed yet, so it may be incomplete. A key with .. must not
                # lead out of the folder.
                wanted = not (key.endswith("/") or file.name.startswith(".") or file.name in leave_out)
                if wanted and file.resolve().is_relative_to(folder.resolve()):
                    file.parent.mkdir(parents=True, exist_ok=True)
                    self._patiently(partial(self._s3.download_file, bucket, key, str(file), Config=_FETCHING))

    def size(self, uri: str) -> int:
        """Return the bytes of all objects under a prefix."""
        return sum(self.sizes(uri).values())

    def sizes(self, uri: str) -> dict[str, int]:
        """Return the bytes of each object under a prefix, by the rest of its key."""
        bucket, top = split(uri)
        with translating_errors(f"to look at {uri}"):
            objects = self._patiently(lambda: list(self._objects(bucket, top)))
        return {key.removeprefix(top): size for key, size in objects}

    def checksum(self, uri: str) -> str:
        """Return S3's SHA-256 of an object, see ``upload.checksum_of``; empty if it was uploaded without one."""
        bucket, key = split(uri)
        with translating_errors(f"to look at {uri}"):
            head = self._patiently(lambda: self._s3.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED"))
        return str(head.get("ChecksumSHA256", "")).partition("-")[0]  # without "-<number of parts>"

    def upload(self, file: Path, uri: str, progress: Callable[[int], None]) -> None:
        """Upload a file with its SHA-256, which S3 verifies.

        Args:
            progress: called with the number of bytes sent since the last call; negative if bytes are sent again.
        """
        bucket, key = split(uri)
        extra = {"ChecksumAlgorithm": "SHA256", **self._encryption}
        subscribers = [ProgressCallbackInvoker(progress)]
        with translating_errors(f"to copy {file} to {uri}"):
            self._patiently(lambda: self._transfers.upload(str(file), bucket, key, extra, subscribers).result())

    def _objects(self, bucket: str, prefix: str) -> Iterator[tuple[str, int]]:
        for page in self._s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            yield from ((item["Key"], item["Size"]) for item in page.get("Contents", ()))

    def _patiently(self, attempt: Callable[[], T]) -> T:
        return retry_transient(attempt, self._wait)


def split(uri: str) -> tuple[str, str]:
    """Return bucket and key of ``s3://bucket/key``."""
    bucket, _, key = uri.removeprefix(S3).partition("/")
    return bucket, key
