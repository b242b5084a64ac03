"""What could not be sent, on disk until the tracking server has it.

``runs/outbox/<time>-<process>/`` belongs to one process: ``operations.jsonl`` names the server and then one operation a
line, in order; numbered folders hold the files that go with them, and the process holds ``lock`` as long as it keeps
operations. The folder is made with the first operation that is kept and removed once all are sent. Each operation may
be sent twice without harm, so that no account is kept of how far a sending came. What a server has refused lies in a
folder of its own, for ``roofscale sync``.
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
    """One thing to tell the tracking server of one run."""

    kind: str  # see roofscale.tracking.apply
    run_id: str
    content: Mapping[str, Any] = field(default_factory=dict)  # JSON values
    path: Path | None = None  # the file or folder that goes with it


def said_of(operations: Sequence[Operation], folder: Path) -> str:
    """In words, how much is kept where."""
    runs = len({operation.run_id for operation in operations})
    return f"{_counted(len(operations), 'operation')} on {_counted(runs, 'run')} kept in {folder}"


def _counted(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


class Outbox:
    """The operations that one process keeps; the lock on its folder falls with the process, however it ends."""

    def __init__(self, root: Path, server: str, refused: bool = False) -> None:
        name = f"{datetime.datetime.now():%Y%m%d-%H%M%S-%f}-{os.getpid()}"
        self.folder = root / (f"{name}-refused" if refused else name)
        self._header = {"server": server, "refused": refused}
        self._lock = FileLock(self.folder / _LOCK, thread_local=False)  # the thread that sends begins, another leaves
        self._stream: IO[str] | None = None
        self._number = 0

    def keep(self, operation: Operation) -> Operation:
        """Write an operation down, with a copy of its file; return it with the copy in place of the file."""
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
        """Remove everything: it is sent."""
        if self._stream is not None:
            _remove(self.folder)
            self.leave()

    def leave(self) -> None:
        """Leave what is kept to ``roofscale sync`` or a later command."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
            self._lock.release()

    def _begin(self) -> IO[str]:
        self.folder.mkdir(parents=True)
        self._lock.acquire()  # before the file is there that other processes look for
        stream = (self.folder / _OPERATIONS).open("w", encoding="utf-8", buffering=1)
        stream.write(json.dumps(self._header) + "\n")
        return stream


@dataclass(frozen=True)
class AbandonedOutbox:
    """The outbox that a process left behind."""

    folder: Path
    server: str  # without a password
    operations: tuple[Operation, ...]
    refused: bool = False  # by the server, the last time

    def clear(self) -> None:
        """Remove everything: it is sent."""
        _remove(self.folder)


@contextlib.contextmanager
def abandoned_outboxes(root: Path) -> Iterator[list[AbandonedOutbox]]:
    """The outboxes that no running process holds, oldest first; held by us as long as the block lasts."""
    with contextlib.ExitStack() as held:
        found = []
        for file in sorted(root.glob(f"*/{_OPERATIONS}")):
            try:
                held.enter_context(FileLock(file.with_name(_LOCK)).acquire(blocking=False))
                found.append(_read(file))
            except Timeout:  # its process still runs
                continue
            except FileNotFoundError:  # its process has just removed it; the lock's file made the folder again
                _remove(file.parent)
            except (LookupError, TypeError, ValueError) as error:
                _log.warning(
                    f"{file}: damaged, or of another version of Roofscale ({type(error).__name__}: {error}); it is "
                    "left as it is. Remove its folder to be rid of it."
                )
        yield found


def _read(file: Path) -> AbandonedOutbox:
    folder = file.parent
    *whole, _ = file.read_text(encoding="utf-8").split("\n")  # a killed process leaves a part of a line at the end
    header, *lines = map(json.loads, whole or ['{"server": ""}'])
    for said in (header["server"], *(line[name] for line in lines for name in ("kind", "run_id"))):
        if not isinstance(said, str):
            raise TypeError(f"{said!r} in place of a text")
    operations = (
        Operation(
            line["kind"], line["run_id"], dict(line["content"]), folder / line["path"] if "path" in line else None
        )
        for line in lines
    )
    return AbandonedOutbox(folder, header["server"], tuple(operations), bool(header.get("refused")))


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # others may wait there
        folder.parent.rmdir()
