"""A folder of what can be made again from the data: who is at work in it, and names that change with the data."""

import fcntl
import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_LOOK_SECONDS = 0.5
_SAY_SECONDS = 10.0


class Chore:
    """Work on a cache before training: its threads, whom it tells how far it is, and what may end it early."""

    def __init__(self, threads: int, say: Callable[[str], None], keep_on: Callable[[], bool] = lambda: True) -> None:
        self.threads, self.say, self.keep_on = threads, say, keep_on
        self._began = self._said = time.monotonic()

    def goes_on(self, what: str, done: int, count: int) -> bool:
        """Tell how far it is, every ten seconds; return whether to go on."""
        now = time.monotonic()
        if now - self._said > _SAY_SECONDS:
            self._said = now
            left = f", about {(now - self._began) * (count / done - 1):.0f} s to go" if done else ""
            self.say(f"{what}: {done} of {count}{left}")
        return self.keep_on()


@contextmanager
def alone_in(folder: Path, chore: Chore) -> Iterator[bool]:
    """Make a folder, and wait until no other process is at work in it; yields False where the chore ends before that.

    The kernel frees the folder of a process that is killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        alone = _taken(lock)
        if not alone:
            chore.say(f"another run is at work in {folder}; waiting for it")
        while not alone and chore.keep_on():
            time.sleep(_LOOK_SECONDS)
            alone = _taken(lock)
        yield alone


def _taken(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def file_state(*files: Path) -> str:
    """Twenty hex digits that name files as they are now: where they lie, size and time of the last change."""
    digest = hashlib.sha256()
    for file in files:
        try:
            state = file.stat()
        except OSError:  # whoever reads it will say so
            digest.update(f"{file} missing\n".encode(errors="surrogateescape"))
        else:
            digest.update(f"{file.resolve()} {state.st_size} {state.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:20]
