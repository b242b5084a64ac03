"""What a launcher and an upload ask of S3."""

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

from roofscale.runners.sagemaker.aws_errors import T, Wait, code_of, retry_transient, translating_errors
from roofscale.runners.sagemaker.upload import PART_BYTES

_CONNECTIONS = 16  # at a time
# boto3 would hold up to 250 MiB that are not on disk yet. A launcher's 57 MiB of weights, from moto: 18 MiB, not 35.
_FETCHING = TransferConfig(max_concurrency=4, max_io_queue=16)
_ATTEMPTS = 8  # boto3 itself tries that often before it says that something passing has not passed


class S3Client:
    """S3, with passing faults waited out.

    Args:
        kms_key: what is written is encrypted with; empty: as the bucket says.
        wait: how to wait some seconds; see ``faults.Wait``.
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

    def _client(self, service: str) -> Any:
        retries: Any = {"mode": "adaptive", "total_max_attempts": _ATTEMPTS}
        config = Config(retries=retries, max_pool_connections=2 * _CONNECTIONS)
        with translating_errors("to reach AWS"):
            return self._session.client(service, config=config)

    def write(self, uri: str, content: bytes) -> None:
        """Write an object."""
        bucket, key = split(uri)
        with translating_errors(f"to write {uri}"):
            self._s3.put_object(Bucket=bucket, Key=key, Body=content, **self._encryption)

    def read_from(self, uri: str, offset: int) -> bytes:
        """What an object holds from a place on; nothing where it is not there, or not that long."""
        bucket, key = split(uri)
        with translating_errors(f"to read {uri}"):
            try:
                found = self._patiently(
                    lambda: self._s3.get_object(Bucket=bucket, Key=key, Range=f"bytes={offset}-")["Body"].read()
                )
            except ClientError as error:
                if code_of(error) in ("NoSuchKey", "404", "InvalidRange", "416"):
                    return b""
                raise
        return bytes(found)

    def read_packed(self, uri: str, name: str) -> bytes | None:
        """One file of a .tar.gz; None where there is no such archive, or the file is not in it."""
        archive = self.read_from(uri, 0)
        if not archive:
            return None
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as packed:
            found = packed.extractfile(name) if name in packed.getnames() else None
            return found.read() if found else None

    def fetch(self, uri: str, folder: Path, leave_out: Collection[str] = ()) -> None:
        """Copy all that lies under a prefix into a folder, but the files of these names."""
        bucket, top = split(f"{uri.rstrip('/')}/")
        with translating_errors(f"to fetch {uri}"):
            for key, _ in self._patiently(lambda: list(self._objects(bucket, top))):
                file = folder / key.removeprefix(top)
                # A name with a dot is half a file that a rename was to follow; one must not lead out of the folder.
                wanted = not (key.endswith("/") or file.name.startswith(".") or file.name in leave_out)
                if wanted and file.resolve().is_relative_to(folder.resolve()):
                    file.parent.mkdir(parents=True, exist_ok=True)
                    self._patiently(partial(self._s3.download_file, bucket, key, str(file), Config=_FETCHING))

    def size(self, uri: str) -> int:
        """Bytes under a prefix."""
        return sum(self.sizes(uri).values())

    def sizes(self, uri: str) -> dict[str, int]:
        """Bytes of each object under a prefix, by what follows that."""
        bucket, top = split(uri)
        with translating_errors(f"to look at {uri}"):
            found = self._patiently(lambda: list(self._objects(bucket, top)))
        return {key.removeprefix(top): size for key, size in found}

    def checksum(self, uri: str) -> str:
        """The SHA-256 that S3 has of an object, see ``upload.checksum_of``; empty where it was copied without one."""
        bucket, key = split(uri)
        with translating_errors(f"to look at {uri}"):
            found = self._patiently(lambda: self._s3.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED"))
        return str(found.get("ChecksumSHA256", "")).partition("-")[0]  # how many parts follows from the size

    def upload(self, file: Path, uri: str, progress: Callable[[int], None]) -> None:
        """Copy a file to S3, which refuses what does not arrive with the SHA-256 that it was sent with.

        Args:
            progress: is told how many further bytes were sent; fewer than none where some are sent again.
        """
        bucket, key = split(uri)
        extra = {"ChecksumAlgorithm": "SHA256", **self._encryption}
        heard = [ProgressCallbackInvoker(progress)]
        with translating_errors(f"to copy {file} to {uri}"):
            self._patiently(lambda: self._transfers.upload(str(file), bucket, key, extra, heard).result())

    def _objects(self, bucket: str, prefix: str) -> Iterator[tuple[str, int]]:
        for page in self._s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            yield from ((one["Key"], one["Size"]) for one in page.get("Contents", ()))

    def _patiently(self, attempt: Callable[[], T]) -> T:
        return retry_transient(attempt, self._wait)


def split(uri: str) -> tuple[str, str]:
    """Bucket and key of ``s3://bucket/key``."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key
