"""Holds a run to its compute's memory: by a cgroup of its own where that is permitted, else by a watchdog.

A resource limit of the process (RLIMIT_AS, RLIMIT_DATA) would not do: it counts each process for itself, and a training
process with two loader processes goes to three times the number. Nothing is written to any cgroup but to the one that
is made here, below the cgroup that this process is in already.
"""

import contextlib
import itertools
import os
import re
import signal
import time
from pathlib import Path
from types import TracebackType

import psutil

from roofscale import cgroup
from roofscale.cgroup import MemoryCgroup

# The watchdog samples; memory touched at 2 GB/s goes on for a tenth of a second before it is seen.
WATCHDOG_SHARE = 0.9
_NAME = re.compile(r"roofscale-(\d+)-\d+")
_numbers = itertools.count()


class MemoryLimit:
    """A memory limit for one process that is about to start, and for all its descendants.

    Enter it before the process starts; the process joins ``group`` by writing its own id to ``cgroup.procs``. Where no
    cgroup can be made, ``group`` is None and ``watchdog_mib`` is what the monitor has to watch for.

    Args:
        limit_bytes: what the run may hold.
        parent: the cgroup to make a child of, usually this process's own; None = use the watchdog.
    """

    def __init__(self, limit_bytes: int, parent: MemoryCgroup | None) -> None:
        self.limit_bytes = limit_bytes
        self.group: MemoryCgroup | None = None
        self._parent = parent
        self._why_not = "" if parent else "no memory cgroup, or not asked to use it"
        self._kills_before = 0

    def __enter__(self) -> "MemoryLimit":
        if self._parent:
            _remove_leftovers(self._parent)
            try:
                self.group = _make(self._parent, self.limit_bytes)
            except OSError as error:
                self._why_not = f"no cgroup can be made here: {error.strerror or error}"
        self._kills_before = self._kills()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.group:
            self.kill()
            _remove(self.group.path)

    @property
    def watchdog_mib(self) -> float:
        """The memory at which the watchdog kills; infinite where the kernel enforces the limit."""
        return float("inf") if self.group else WATCHDOG_SHARE * self.limit_bytes / 2**20

    @property
    def description(self) -> str:
        """What is in force, for a person."""
        gib = f"{self.limit_bytes / 2**30:.3g} GiB"
        if self.group:
            return f"cgroup v{self.group.version}, {gib}"
        return f"watchdog at {WATCHDOG_SHARE:.0%} of {gib}; {self._why_not}"

    def oom_kills(self) -> int:
        """Processes that the kernel killed for memory since the start, in the run's cgroup or else around it."""
        return self._kills() - self._kills_before

    def kill(self) -> None:
        """Kill whatever is inside the run's cgroup, whichever session or group it moved to."""
        for pid in self.group.processes() if self.group else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _kills(self) -> int:
        watched = self.group or self._parent or cgroup.own_memory()
        return watched.oom_kills() if watched else cgroup.machine_oom_kills()


def _make(parent: MemoryCgroup, limit_bytes: int) -> MemoryCgroup:
    """Make and limit a child cgroup.

    Raises:
        OSError: not permitted; EBUSY for v2, which lets no cgroup hold both processes and limited children.
    """
    if parent.version == 2 and "memory" not in (parent.path / "cgroup.subtree_control").read_text().split():
        (parent.path / "cgroup.subtree_control").write_text("+memory")
    path = parent.path / f"roofscale-{os.getpid()}-{next(_numbers)}"
    path.mkdir()
    try:
        _set_limit(path, parent.version, limit_bytes)
    except OSError:
        _remove(path)
        raise
    return MemoryCgroup(path, parent.version)


def _set_limit(path: Path, version: int, limit_bytes: int) -> None:
    if version == 1:
        (path / "memory.limit_in_bytes").write_text(str(limit_bytes))
        if (path / "memory.memsw.limit_in_bytes").exists():  # memory and swap together: no way round through swap
            (path / "memory.memsw.limit_in_bytes").write_text(str(limit_bytes))
        return
    (path / "memory.max").write_text(str(limit_bytes))
    (path / "memory.oom.group").write_text("1")  # kill the run whole: half of it would hang
    with contextlib.suppress(OSError):  # absent where the kernel has no swap
        (path / "memory.swap.max").write_text("0")


def _remove(path: Path) -> None:
    """Remove an empty cgroup; processes killed a moment ago still count as inside for a little while."""
    for _ in range(50):
        try:
            path.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.02)
        else:
            return


def _remove_leftovers(parent: MemoryCgroup) -> None:
    """Remove cgroups that a killed Roofscale left behind; the kernel refuses where processes are inside."""
    with contextlib.suppress(OSError):
        for path in parent.path.iterdir():
            name = _NAME.fullmatch(path.name)
            if name and not psutil.pid_exists(int(name[1])):
                with contextlib.suppress(OSError):
                    path.rmdir()
