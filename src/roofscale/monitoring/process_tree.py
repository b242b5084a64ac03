"""Memory, CPU and disk use of a process and all its descendants, read from outside.

On Linux directly from /proc, because psutil opens several files for each value; elsewhere through psutil, which has
neither PSS nor disk counters there: those are None.
"""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import psutil

_T = TypeVar("_T")


@dataclass(frozen=True)
class Rss:
    """Resident set sizes, bytes: cheap to read, but a page that n processes share counts n times."""

    total: int  # sum over the processes
    main: int  # of the main process
    main_peak: int  # largest size the main process ever had (the kernel's VmHWM), 0 if not known
    workers_private: int  # of the descendants, without file and shared memory pages
    lost: bool = False  # whether a process has ended since the last ``refresh``


@dataclass(frozen=True)
class Pss:
    """Proportional set sizes, bytes: a page shared by n processes counts 1/n in each, so the sum is the true use."""

    total: int
    workers: int


class Tree(Protocol):
    """A main process and its descendants. A process that has ended counts as 0; no method raises for it."""

    def refresh(self) -> bool:
        """Update the set of processes; return whether it changed."""
        ...

    def resident(self) -> Rss:
        """Read the resident set sizes."""
        ...

    def proportional(self) -> Pss | None:
        """Read the proportional set sizes; None if the system has none or denies access."""
        ...

    def cpu_seconds(self) -> float:
        """Read the CPU time, user and system, of running processes and of ended ones that were waited for."""
        ...

    def disk_bytes(self) -> tuple[int, int] | None:
        """Read the bytes read from and written to storage, page cache hits left out; of the same processes."""
        ...

    def pids(self) -> frozenset[int]:
        """Return the ids of the processes found by the last ``refresh``."""
        ...


def open_tree(pid: int) -> Tree:
    """Return the process tree under ``pid``, read from /proc if the system has it."""
    return LinuxTree(pid) if Path("/proc/self/smaps_rollup").exists() else PortableTree(pid)


class LinuxTree:
    """``Tree`` over /proc (proc(5))."""

    _PAGE = os.sysconf("SC_PAGE_SIZE")
    _TICKS = os.sysconf("SC_CLK_TCK")

    def __init__(self, pid: int) -> None:
        self._main = pid
        self._pids: tuple[int, ...] = (pid,)

    def refresh(self) -> bool:
        living = (pid for pid in _descendants(self._main) if self._statm(pid)[0])  # zombies have no memory
        pids = (self._main, *living)
        changed = set(pids) != set(self._pids)
        self._pids = pids
        return changed

    def pids(self) -> frozenset[int]:
        return frozenset(self._pids)

    def resident(self) -> Rss:
        sizes = [self._statm(pid) for pid in self._pids]
        peak = _kib(_read(f"/proc/{self._main}/status"), b"VmHWM:")
        workers = sum(resident - shared for resident, shared in sizes[1:])
        lost = any(resident == 0 for resident, _ in sizes)
        return Rss(sum(resident for resident, _ in sizes), sizes[0][0], peak, workers, lost)

    def proportional(self) -> Pss | None:
        texts = [_read(f"/proc/{pid}/smaps_rollup") for pid in self._pids]
        if not texts[0]:  # the main process has ended, or belongs to another user
            return None
        sizes = [_kib(text, b"Pss:") for text in texts]
        return Pss(sum(sizes), sum(sizes[1:]))

    def cpu_seconds(self) -> float:
        return sum(map(self._cpu_ticks, self._pids)) / self._TICKS

    def disk_bytes(self) -> tuple[int, int] | None:
        # When a parent waits for an ended child, the kernel adds the child's counters to its own, as for CPU time.
        texts = [_read(f"/proc/{pid}/io") for pid in self._pids]
        if not texts[0]:
            return None
        return sum(_count(t, b"read_bytes:") for t in texts), sum(_count(t, b"\nwrite_bytes:") for t in texts)

    def _statm(self, pid: int) -> tuple[int, int]:
        fields = _read(f"/proc/{pid}/statm").split()
        return (int(fields[1]) * self._PAGE, int(fields[2]) * self._PAGE) if fields else (0, 0)

    def _cpu_ticks(self, pid: int) -> int:
        # The command name in brackets may hold spaces; utime, stime, cutime, cstime are fields 14 to 17 of stat.
        fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
        return sum(map(int, fields[11:15]))


class PortableTree:
    """``Tree`` through psutil, for systems without /proc."""

    def __init__(self, pid: int) -> None:
        self._processes: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):
            self._processes = [psutil.Process(pid)]
        self._gone_cpu_seconds: dict[int, float] = {}

    def refresh(self) -> bool:
        before = self.pids()
        with contextlib.suppress(psutil.Error, IndexError):
            self._processes[1:] = self._processes[0].children(recursive=True)
        return self.pids() != before

    def pids(self) -> frozenset[int]:
        return frozenset(process.pid for process in self._processes)

    def resident(self) -> Rss:
        sizes = [_ask(process, lambda p: int(p.memory_info().rss), 0) for process in self._processes] or [0]
        return Rss(sum(sizes), sizes[0], 0, sum(sizes[1:]))

    def proportional(self) -> Pss | None:
        return None

    def cpu_seconds(self) -> float:
        for process in self._processes:
            last = self._gone_cpu_seconds.get(process.pid, 0.0)
            self._gone_cpu_seconds[process.pid] = _ask(process, lambda p: float(sum(p.cpu_times()[:2])), last)
        return sum(self._gone_cpu_seconds.values())

    def disk_bytes(self) -> tuple[int, int] | None:
        return None


def _ask(process: psutil.Process, question: Callable[[psutil.Process], _T], otherwise: _T) -> _T:
    try:
        return question(process)
    except psutil.Error:
        return otherwise


def _descendants(pid: int) -> list[int]:
    """Return the children of every thread of ``pid``, and theirs, without a scan of all processes."""
    pids: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            for child in _read(f"/proc/{pid}/task/{thread}/children").split():
                pids += [int(child), *_descendants(int(child))]
    return pids


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as stream:
            return stream.read()
    except OSError:  # the process has ended, or access is denied
        return b""


def _count(text: bytes, key: bytes) -> int:
    value = text.partition(key)[2].split(maxsplit=1)
    return int(value[0]) if value else 0


def _kib(text: bytes, key: bytes) -> int:
    return _count(text, key) * 1024
