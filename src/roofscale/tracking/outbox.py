"""Outbox: operations on disk that could not be sent, until the tracking server has them.

``runs/outbox/<time>-<process>/`` belongs to one process: the first line of ``operations.jsonl`` names the server, each
further line is one operation, in order; numbered folders hold the operations' files, and the process holds ``lock``
while it keeps operations. The folder is created with the first operation and removed when all are sent. Operations are
idempotent, so the outbox does not record which ones have been sent. Operations that a server has refused are in a
folder of their own, for ``roofscale sync``.
"""

import contextlib
import datetime
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

_OPERATIONS = "operations.jsonl"
_LOCK = "lock"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Operation:
    """One request to the tracking server that logs something to one run."""

    kind: str  # see roofscale.tracking.apply
    run_id: str
    content: Mapping[str, Any] = field(default_factory=dict)  # JSON values
    path: Path | None = None  # the file or folder to upload


def said_of(operations: Sequence[Operation], folder: Path) -> str:
    """Return how many operations on how many runs are kept in the folder, in words."""
    runs = len({operation.run_id for operation in operations})
    return f"{_counted(len(operations), 'operation')} on {_counted(runs, 'run')} kept in {folder}"


def _counted(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


class Outbox:
    """Outbox of this process; the system releases the lock on its folder when the process ends, even if killed."""

    def __init__(self, root: Path, server: str, refused: bool = False) -> None:
        name = f"{datetime.datetime.now():%Y%m%d-%H%M%S-%f}-{os.getpid()}"
        self.folder = root / (f"{name}-refused" if refused else name)
        self._header = {"server": server, "refused": refused}
        self._lock = FileLock(self.folder / _LOCK, thread_local=False)  # another thread may release it
        self._stream: IO[str] | None = None
        self._number = 0

    def keep(self, operation: Operation) -> Operation:
        """Write an operation and a copy of its file or folder; return the operation with the path of the copy.

        Raises:
            OSError: the outbox cannot be written, for example because the disk is full.
        """
        if self._stream is None:
            self._stream = self._begin()
        self._number += 1
        fields = {"kind": operation.kind, "run_id": operation.run_id, "content": dict(operation.content)}
        if operation.path:
            copy = self.folder / f"{self._number:06d}" / operation.path.name
            copy.parent.mkdir()
            if operation.path.is_dir():
                shutil.copytree(operation.path, copy)
            else:
                shutil.copyfile(operation.path, copy)
            fields["path"] = str(copy.relative_to(self.folder))
            operation = replace(operation, path=copy)
        self._stream.write(json.dumps(fields) + "\n")
        return operation

    def clear(self) -> None:
        """Remove the outbox from the disk, after all its operations have been sent."""
        if self._stream is not None:
            _remove(self.folder)
            self.leave()

    def leave(self) -> None:
        """Release the lock, so that ``roofscale sync`` or a later command may send the operations."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
            self._lock.release()

    def _begin(self) -> IO[str]:
        self.folder.mkdir(parents=True)
        self._lock.acquire()  # before other processes can find operations.jsonl
        stream = (self.folder / _OPERATIONS).open("w", encoding="utf-8", buffering=1)
        stream.write(json.dumps(self._header) + "\n")
        return stream


@dataclass(frozen=True)
class AbandonedOutbox:
    """Outbox of a process that has ended."""

    folder: Path
    server: str  # without a password
    operations: tuple[Operation, ...]
    refused: bool = False  # whether the server has refused its operations

    def clear(self) -> None:
        """Remove the outbox from the disk, after its operations have been sent or kept elsewhere."""
        _remove(self.folder)


@contextlib.contextmanager
def abandoned_outboxes(root: Path) -> Iterator[list[AbandonedOutbox]]:
    """Yield the outboxes that no running process holds, oldest first; this process holds their locks in the block."""
    with contextlib.ExitStack() as locks:
        outboxes = []
        for file in sorted(root.glob(f"*/{_OPERATIONS}")):
            try:
                locks.enter_context(FileLock(file.with_name(_LOCK)).acquire(blocking=False))
                outboxes.append(_read(file))
            except Timeout:  # its process still runs
                continue
            except FileNotFoundError:  # its process has just removed it; acquiring the lock made the folder anew
                _remove(file.parent)
            except (LookupError, TypeError, ValueError) as error:
                _log.warning(
                    f"{file}: damaged, or of another version of Roofscale ({type(error).__name__}: {error}); it is "
                    "left as it is. Remove its folder to be rid of it."
                )
        yield outboxes


def _read(file: Path) -> AbandonedOutbox:
    folder = file.parent
    *complete, _ = file.read_text(encoding="utf-8").split("\n")  # a killed process may leave an incomplete last line
    header, *lines = map(json.loads, complete or ['{"server": ""}'])
    for value in (header["server"], *(line[name] for line in lines for name in ("kind", "run_id"))):
        if not isinstance(value, str):
            raise TypeError(f"expected a string, not {value!r}")
    operations = (
        Operation(
            line["kind"], line["run_id"], dict(line["content"]), folder / line["path"] if "path" in line else None
        )
        for line in lines
    )
    return AbandonedOutbox(folder, header["server"], tuple(operations), bool(header.get("refused")))


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # not empty: the outboxes of other processes
        folder.parent.rmdir()
