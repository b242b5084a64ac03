"""Memory limit of a run: a cgroup of its own if the launcher may create one, else a watchdog.

Resource limits (RLIMIT_AS, RLIMIT_DATA) do not work here: they apply per process, so that a training process with two
loader processes could use three times the limit. The child cgroup is created below the launcher's own; no other cgroup
is changed, except that the memory controller is enabled for the children of the launcher's (v2).
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

# Share of the limit at which the watchdog kills. It samples every 0.1 s, in which memory allocated at 2 GB/s grows by
# 0.2 GB.
WATCHDOG_SHARE = 0.9
_NAME = re.compile(r"roofscale-(\d+)-\d+")
_numbers = itertools.count()


class MemoryLimit:
    """Memory limit for a process that is about to start, and for all its descendants.

    Enter the context before the process starts; the process joins ``group`` by writing its own id to ``cgroup.procs``.
    If no cgroup can be created, ``group`` is None and the monitor must kill the run above ``watchdog_mib``.

    Args:
        limit_bytes: memory limit of the run.
        parent: the cgroup to create a child of, usually this process's own; None = use the watchdog.
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
        """Memory above which the watchdog kills the run, MiB; infinite if the kernel enforces the limit."""
        return float("inf") if self.group else WATCHDOG_SHARE * self.limit_bytes / 2**20

    @property
    def description(self) -> str:
        """The limit and what enforces it, in words."""
        gib = f"{self.limit_bytes / 2**30:.3g} GiB"
        if self.group:
            return f"cgroup v{self.group.version}, {gib}"
        return f"watchdog at {WATCHDOG_SHARE:.0%} of {gib}; {self._why_not}"

    def oom_kills(self) -> int:
        """Return how many processes the kernel has killed for memory since the start of the run.

        Counted in the run's cgroup if it has one, else in the launcher's cgroup or on the whole machine.
        """
        return self._kills() - self._kills_before

    def kill(self) -> None:
        """Kill every process in the run's cgroup, also one that has moved to another session or process group."""
        for pid in self.group.processes() if self.group else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _kills(self) -> int:
        counted = self.group or self._parent or cgroup.own_memory()
        return counted.oom_kills() if counted else cgroup.machine_oom_kills()


def _make(parent: MemoryCgroup, limit_bytes: int) -> MemoryCgroup:
    """Create a child cgroup with a memory limit.

    Raises:
        OSError: not permitted; EBUSY for v2, in which a cgroup with limited children may not hold processes itself.
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
        if (path / "memory.memsw.limit_in_bytes").exists():  # memory plus swap: no escape into swap
            (path / "memory.memsw.limit_in_bytes").write_text(str(limit_bytes))
        return
    (path / "memory.max").write_text(str(limit_bytes))
    (path / "memory.oom.group").write_text("1")  # kill all processes of the run: the others would hang
    with contextlib.suppress(OSError):  # absent if the kernel has no swap
        (path / "memory.swap.max").write_text("0")


def _remove(path: Path) -> None:
    """Remove an empty cgroup, with retries for 1 s: killed processes leave it with a short delay."""
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
    """Remove cgroups of launchers that were killed; the kernel refuses if one still has processes."""
    with contextlib.suppress(OSError):
        for path in parent.path.iterdir():
            name = _NAME.fullmatch(path.name)
            if name and not psutil.pid_exists(int(name[1])):
                with contextlib.suppress(OSError):
                    path.rmdir()
