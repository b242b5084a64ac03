"""The resource monitor: samples memory, CPU, disk, network and GPU of a run's process tree from outside.

Memory is read several times a second, because peaks are short; everything else every two seconds. Memory has three
sources, best first; which one was used is a fact of the measurement:

1. the run's own cgroup: usage less inactive page cache, which is what the kernel compares with the limit.
2. the sum of the resident sets (cheap, but a shared page counts several times) plus a correction, computed now and then
   from the proportional set sizes (exact, but 16 ms of CPU per GB each time).
3. the sum of the resident sets, if neither of the others exists (macOS).
"""

import contextlib
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, TypeVar

from roofscale.cgroup import MemoryCgroup
from roofscale.compute import MIB
from roofscale.measurement import MemoryPoint, ResourceSample
from roofscale.monitoring import process_tree
from roofscale.monitoring.nvml import GpuMonitor, GpuUsage
from roofscale.monitoring.rates import Rates, nan_max

# Share of one core that exact readings (PSS) may take together; less if a cgroup has the total and they only supply the
# workers' part. The time to the next reading follows from the cost of the last.
_EXACT_SHARE = {"total": 0.005, "workers": 0.001}
_SETTLING_SECONDS = (3.0,)  # between exact readings after the set of processes changed, at any cost
_STEADY_SECONDS = 10.0  # at least, between exact readings otherwise
_TREE_SECONDS = 1.0  # between refreshes of the process tree
_MOST_POINTS = 4096  # of the memory curve
_MOST_ROWS = 1024  # of the other resources over time

Timed = TypeVar("Timed", MemoryPoint, ResourceSample)


class Monitor:
    """A context manager that monitors a process and its descendants from a thread of its own.

    Args:
        pid: id of the process.
        group: the cgroup that holds the process and nothing else; None sums over the process tree.
        cores: of the compute; CPU utilisation is a share of their time.
        interval: seconds between memory readings.
        row_seconds: seconds between rows of the other resources.
        limit_mib: memory limit, MiB.
        on_limit_exceeded: called once, from the monitor's thread, when the memory exceeds the limit; a cheap reading
            over the limit is confirmed by an exact one first.
        tree: reads the processes; chosen by ``open_tree`` if None.
    """

    def __init__(
        self,
        pid: int,
        group: MemoryCgroup | None = None,
        *,
        cores: int = 1,
        interval: float = 0.2,
        row_seconds: float = 2.0,
        limit_mib: float = math.inf,
        on_limit_exceeded: Callable[[], None] | None = None,
        tree: process_tree.Tree | None = None,
    ) -> None:
        self.rows: deque[ResourceSample] = deque()  # the runner pops rows from the left to show them
        self._points = DownsampledSeries[MemoryPoint](interval, _MOST_POINTS)
        self._resources = DownsampledSeries[ResourceSample](row_seconds, _MOST_ROWS)
        self.peak_mib = self.workers_mib = self.shm_mib = self.shm_share = math.nan
        self._group = group
        self._tree = tree or process_tree.open_tree(pid)
        self._gpus = GpuMonitor()
        self._interval, self._row_seconds = interval, row_seconds
        self._limit_mib, self._on_limit_exceeded = limit_mib, on_limit_exceeded
        self._exact = _PssCorrection(self._tree, _EXACT_SHARE["workers" if group else "total"])
        self._main_peak = 0
        self._shm_before = _Shm.now().used
        self._next_tree = 0.0
        self._next_row = time.monotonic() + row_seconds  # the first rates need an interval
        self._rates = Rates(self._tree, cores)
        self._gpu: list[GpuUsage] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="roofscale-monitor", daemon=True)

    def __enter__(self) -> "Monitor":
        self._sample()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._add_row()
        self._gpus.close()

    @property
    def points(self) -> tuple[MemoryPoint, ...]:
        """The memory curve so far."""
        return tuple(self._points.values)

    @property
    def resources(self) -> tuple[ResourceSample, ...]:
        """The other resources over time so far."""
        return tuple(self._resources.values)

    @property
    def source(self) -> str:
        """The source of the memory readings, in words."""
        if self._group:
            return f"cgroup v{self._group.version} usage less inactive page cache"
        if self._exact.known:
            return "resident sets of the process tree, corrected by PSS"
        return "resident sets of the process tree summed (shared pages counted in each process)"

    def summary(self) -> dict[str, float]:
        """Return the metrics of the whole run by their names in METRICS; complete once the ``with`` block has ended."""
        kernel = self._group.kernel_peak() if self._group else None
        metrics = {
            "memory/peak_mib": self.peak_mib,
            "memory/kernel_peak_mib": kernel / MIB if kernel is not None else math.nan,
            "memory/workers_mib": self.workers_mib,
            "memory/shm_mib": self.shm_mib,
            "memory/shm_share": self.shm_share,
            **self._rates.overall(),
        }
        if self._gpu:
            metrics |= {
                "gpu/utilisation": _mean([use.utilisation for use in self._gpu]),
                "gpu/power_w": _mean([use.power_w for use in self._gpu]),
                "gpu/memory_peak_mib": max(use.memory_bytes for use in self._gpu) / MIB,
            }
        return metrics

    def _watch(self) -> None:
        while not self._stop.wait(self._interval):
            self._sample()

    def _sample(self) -> None:
        now = time.monotonic()
        resident = self._tree.resident()
        if resident.lost or now >= self._next_tree:
            self._next_tree = now + _TREE_SECONDS
            if self._tree.refresh():
                self._exact.expire()
                resident = self._tree.resident()
        if resident.main and not resident.lost:  # a sum without a process that just ended would be too low
            self._note_memory(resident)
        if now >= self._next_row:
            self._next_row = now + self._row_seconds
            self._add_row()

    def _note_memory(self, resident: process_tree.Rss) -> None:
        if not self._exact.update():
            return
        shm = _Shm.now()
        mib, shm_mib = self._memory_mib(resident, shm)
        if mib > self._limit_mib and self._on_limit_exceeded:
            self._exact.update(now=True)
            mib, _ = self._memory_mib(resident, shm)
            if mib > self._limit_mib:
                self._on_limit_exceeded()
                self._on_limit_exceeded = None
        self._points.add(MemoryPoint(time.time(), mib))
        # VmHWM grew since the last sample: the main process had a peak between the two, which is added.
        missed = max(0, resident.main_peak - resident.main) / MIB if resident.main_peak > self._main_peak > 0 else 0.0
        self._main_peak = max(self._main_peak, resident.main_peak)
        self.shm_mib = nan_max(self.shm_mib, shm_mib)
        self.shm_share = nan_max(self.shm_share, shm.share)
        if not mib + missed <= self.peak_mib:  # also true while the peak is NaN
            self.peak_mib = mib + missed
            workers = resident.workers_private if self._exact.workers is None else self._exact.workers
            self.workers_mib = workers / MIB

    def _memory_mib(self, resident: process_tree.Rss, shm: "_Shm") -> tuple[float, float]:
        if self._group:
            with contextlib.suppress(OSError):
                use = self._group.use()
                return use.working / MIB, use.shm / MIB
        return (resident.total + self._exact.correction) / MIB, max(0, shm.used - self._shm_before) / MIB

    def _add_row(self) -> None:
        metrics = self._rates.since_last()
        if self._points.values:
            metrics["memory/used_mib"] = self._points.values[-1].mib
        if gpu := self._gpus.use(self._tree.pids()):
            self._gpu.append(gpu)
            metrics |= {
                "gpu/utilisation": gpu.utilisation,
                "gpu/power_w": gpu.power_w,
                "gpu/memory_used_mib": gpu.memory_bytes / MIB,
            }
        row = ResourceSample(time.time(), metrics)
        self.rows.append(row)
        self._resources.add(row)


class DownsampledSeries(Generic[Timed]):
    """A series over time of bounded length: when it exceeds ``most`` values, every second one is dropped.

    Args:
        seconds: smallest distance between values; doubles with each thinning.
        most: largest number of values.
    """

    def __init__(self, seconds: float, most: int) -> None:
        self.values: list[Timed] = []
        self._seconds, self._most = seconds, most

    def add(self, value: Timed) -> None:
        """Append a value unless it is too close to the last."""
        if self.values and value.time - self.values[-1].time < 0.9 * self._seconds:
            return
        self.values.append(value)
        if len(self.values) > self._most:
            del self.values[1::2]
            self._seconds *= 2


class _PssCorrection:
    """The correction from summed resident sets to true memory use, updated from PSS now and then.

    It is the memory that the processes share, so it holds for one set of processes only. It also shrinks while a forked
    process writes to pages that it shares with its parent, although the resident sets stay the same.
    """

    def __init__(self, tree: process_tree.Tree, core_share: float) -> None:
        self.known = False
        self.correction = 0  # bytes to add to the sum of resident sets; negative if pages are shared
        self.workers: int | None = None  # bytes of the descendants; None if not known
        self._tree, self._core_share = tree, core_share
        self._due = -math.inf
        self._settling = list(_SETTLING_SECONDS)

    def expire(self) -> None:
        """Make the next ``update`` read PSS at once, and again soon, because the set of processes changed."""
        self._due = -math.inf
        self._settling = list(_SETTLING_SECONDS)

    def update(self, *, now: bool = False) -> bool:
        """Read PSS if it is due, or ``now``; return False if a process ended meanwhile and the reading is void."""
        started = time.monotonic()
        if not now and started < self._due:
            return True
        exact = self._tree.proportional()
        resident = self._tree.resident()
        if resident.lost:
            return False
        ended = time.monotonic()
        budget = (ended - started) / self._core_share
        self._due = ended + (self._settling.pop(0) if self._settling else max(_STEADY_SECONDS, budget))
        if exact:
            self.known = True
            self.correction = exact.total - resident.total
            self.workers = exact.workers
        return True


@dataclass(frozen=True)
class _Shm:
    """The use of /dev/shm by all processes of the machine."""

    used: int  # bytes; 0 if the folder does not exist
    share: float  # of its size; NaN if the folder does not exist

    @classmethod
    def now(cls) -> "_Shm":
        try:
            shm = os.statvfs("/dev/shm")
        except OSError:
            return cls(0, math.nan)
        used = shm.f_blocks - shm.f_bfree
        return cls(used * shm.f_frsize, used / shm.f_blocks if shm.f_blocks else math.nan)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
