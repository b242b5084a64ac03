"""Samples what a training run uses, from outside it: memory, CPU, disk, network and GPU of its whole process tree.

Memory is read several times a second, because a peak is short; the rest every two seconds. Three sources, best first,
and the source is a fact of the measurement:

1. the run's own cgroup: usage less inactive page cache. What the kernel itself holds against the limit.
2. resident sets summed (cheap, but a shared page counts several times) plus a correction, found now and then from the
   proportional set sizes (exact, but 16 ms of CPU a GB each time).
3. resident sets summed, where neither is to be had (macOS).
"""

import contextlib
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType

import psutil

from roofscale.cgroup import MemoryCgroup
from roofscale.measurement import MemoryPoint
from roofscale.train import proctree
from roofscale.train.gpu import Gpus, GpuUse

MIB = 2**20
# Exact looks together may take this share of one core, less where a cgroup knows the total and only the workers' part
# is asked for; the time to the next follows from what the last one cost.
_EXACT_SHARE = {"total": 0.005, "workers": 0.001}
_SETTLING_SECONDS = (3.0,)  # between exact looks after processes came or went, whatever they cost
_STEADY_SECONDS = 10.0  # at least, between them otherwise
_TREE_SECONDS = 1.0  # between looks for new processes
_MOST_POINTS = 4096  # of the memory curve; beyond it every second one is dropped


@dataclass(frozen=True)
class ResourceSample:
    """What was in use over the seconds since the last sample; NaN where the system does not tell."""

    time: float  # epoch seconds
    metrics: Mapping[str, float]  # names from METRICS


class Monitor:
    """Watches process ``pid`` and its descendants from a thread of its own until the ``with`` block ends.

    Args:
        group: the cgroup that holds the process and nothing else; None = sum up the process tree.
        cores: what CPU utilisation is a share of.
        interval: seconds between looks at the memory.
        row_seconds: seconds between rows.
        limit_mib, on_over: ``on_over`` is called from the monitor's thread, once, as soon as the memory passes the
            limit; a cheap reading over the limit is confirmed by an exact one first.
        tree: how to look at the processes, if not by the best means that the system has.
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
        on_over: Callable[[], None] | None = None,
        tree: proctree.Tree | None = None,
    ) -> None:
        self.rows: deque[ResourceSample] = deque()  # taken away from the left by whoever shows them
        self.points: list[MemoryPoint] = []
        self.peak_mib = self.workers_mib = self.shm_mib = math.nan
        self._group = group
        self._tree = tree or proctree.watch(pid)
        self._gpus = Gpus()
        self._interval, self._row_seconds, self._limit_mib, self._on_over = interval, row_seconds, limit_mib, on_over
        self._exact = _Exact(self._tree, _EXACT_SHARE["workers" if group else "total"])
        self._main_peak = 0
        self._shm_before = _shm_used()
        self._point_seconds = interval
        self._next_tree = self._next_row = 0.0
        self._rates = _Rates(self._tree, cores)
        self._gpu: list[GpuUse] = []
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
    def source(self) -> str:
        """Where the memory figures come from, for a person."""
        if self._group:
            return f"cgroup v{self._group.version} usage less inactive page cache"
        if self._exact.known:
            return "resident sets of the process tree, corrected by PSS"
        return "resident sets of the process tree summed (shared pages counted in each process)"

    def summary(self) -> dict[str, float]:
        """The whole run in METRICS names; call it when the run is over."""
        kernel = self._group.kernel_peak() if self._group else None
        metrics = {
            "memory/peak_mib": self.peak_mib,
            "memory/kernel_peak_mib": kernel / MIB if kernel is not None else math.nan,
            "memory/workers_mib": self.workers_mib,
            "memory/shm_mib": self.shm_mib,
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
        if resident.main and not resident.lost:  # a sum over half of them would say nothing
            self._note_memory(resident)
        if now >= self._next_row:
            self._next_row = now + self._row_seconds
            self._add_row()

    def _note_memory(self, resident: proctree.Resident) -> None:
        if not self._exact.look():
            return
        mib, shm_mib = self._memory_mib(resident)
        if mib > self._limit_mib and self._on_over:
            self._exact.look(now=True)
            mib, _ = self._memory_mib(resident)
            if mib > self._limit_mib:
                self._on_over()
                self._on_over = None
        self._keep(MemoryPoint(time.time(), mib))
        # The kernel remembers the main process's largest size: a peak between two samples shows in it.
        missed = max(0, resident.main_peak - resident.main) / MIB if resident.main_peak > self._main_peak > 0 else 0.0
        self._main_peak = max(self._main_peak, resident.main_peak)
        self.shm_mib = _larger(self.shm_mib, shm_mib)
        if not mib + missed <= self.peak_mib:
            self.peak_mib = mib + missed
            workers = resident.workers_private if self._exact.workers is None else self._exact.workers
            self.workers_mib = workers / MIB

    def _memory_mib(self, resident: proctree.Resident) -> tuple[float, float]:
        if self._group:
            with contextlib.suppress(OSError):
                use = self._group.use()
                return use.working / MIB, use.shm / MIB
        return (resident.total + self._exact.correction) / MIB, max(0, _shm_used() - self._shm_before) / MIB

    def _keep(self, point: MemoryPoint) -> None:
        if self.points and point.time - self.points[-1].time < 0.9 * self._point_seconds:
            return
        self.points.append(point)
        if len(self.points) > _MOST_POINTS:
            del self.points[1::2]
            self._point_seconds *= 2

    def _add_row(self) -> None:
        metrics = self._rates.since_last()
        if self.points:
            metrics["memory/used_mib"] = self.points[-1].mib
        if gpu := self._gpus.use(self._tree.pids()):
            self._gpu.append(gpu)
            metrics |= {
                "gpu/utilisation": gpu.utilisation,
                "gpu/power_w": gpu.power_w,
                "gpu/memory_used_mib": gpu.memory_bytes / MIB,
            }
        self.rows.append(ResourceSample(time.time(), metrics))


class _Exact:
    """Turns summed resident sets into true use by a correction that is renewed from PSS now and then.

    The correction is what the processes share, so it holds for one set of processes only; and while a fork goes on to
    write to the pages that it shares with its parent, the resident sets stay as they are but less and less is shared.
    """

    def __init__(self, tree: proctree.Tree, core_share: float) -> None:
        self.known = False
        self.correction = 0  # bytes to add to the resident sets' sum; negative where pages are shared
        self.workers: int | None = None  # bytes of the descendants; None = not known
        self._tree, self._core_share = tree, core_share
        self._due = -math.inf
        self._settling = list(_SETTLING_SECONDS)

    def expire(self) -> None:
        """The set of processes is another: look at once, and again soon."""
        self._due = -math.inf
        self._settling = list(_SETTLING_SECONDS)

    def look(self, *, now: bool = False) -> bool:
        """Look exactly where it is due, or at once; False where it was due and processes went away meanwhile."""
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
class _Counters:
    """Running totals, from which rates are differences."""

    time: float  # monotonic seconds
    cpu: float  # seconds
    io_wait: float  # seconds of the machine, over all its cores
    idle: float  # seconds of the machine with nothing to compute, waits for I/O included
    machine: float  # seconds of all kinds of the machine, over all its cores
    disk: tuple[float, float]  # bytes read, written
    network: tuple[float, float]  # bytes received, sent


class _Rates:
    """CPU, disk and network use over a stretch of time, as differences of counters that never go back."""

    def __init__(self, tree: proctree.Tree, cores: int) -> None:
        self._tree, self._cores = tree, cores
        self._first = self._last = self._read(None)

    def since_last(self) -> dict[str, float]:
        before, self._last = self._last, self._read(self._last)
        return self._between(before, self._last)

    def overall(self) -> dict[str, float]:
        return self._between(self._first, self._last)

    def _read(self, before: _Counters | None) -> _Counters:
        times = psutil.cpu_times()
        disk = self._tree.disk_bytes()
        links = [link for name, link in psutil.net_io_counters(pernic=True).items() if not name.startswith("lo")]
        now = _Counters(
            time=time.monotonic(),
            cpu=self._tree.cpu_seconds(),
            io_wait=getattr(times, "iowait", math.nan),
            idle=times.idle + getattr(times, "iowait", 0.0),
            machine=sum(times[:8]),  # the ninth and tenth, guests, are inside user and nice already
            disk=(float(disk[0]), float(disk[1])) if disk else before.disk if before else (math.nan, math.nan),
            network=(float(sum(link.bytes_recv for link in links)), float(sum(link.bytes_sent for link in links))),
        )
        return _never_back(now, before) if before else now

    def _between(self, a: _Counters, b: _Counters) -> dict[str, float]:
        seconds = b.time - a.time
        if seconds <= 0:
            return {}
        machine = max(b.machine - a.machine, 1e-9)
        busy = b.machine - a.machine - (b.idle - a.idle)
        return {
            "cpu/utilisation": (b.cpu - a.cpu) / (seconds * self._cores),
            "cpu/others": max(0.0, busy - (b.cpu - a.cpu)) / machine,
            "cpu/io_wait": (b.io_wait - a.io_wait) / machine,
            "disk/read_mib_s": (b.disk[0] - a.disk[0]) / MIB / seconds,
            "disk/write_mib_s": (b.disk[1] - a.disk[1]) / MIB / seconds,
            "network/received_mib_s": (b.network[0] - a.network[0]) / MIB / seconds,
            "network/sent_mib_s": (b.network[1] - a.network[1]) / MIB / seconds,
        }


def _never_back(now: _Counters, before: _Counters) -> _Counters:
    """Between a process's death and the wait for it, its share is missing from the sums for a moment."""
    return _Counters(
        now.time,
        max(now.cpu, before.cpu),
        now.io_wait,
        now.idle,
        now.machine,
        (_larger(now.disk[0], before.disk[0]), _larger(now.disk[1], before.disk[1])),
        now.network,
    )


def _shm_used() -> int:
    try:
        shm = os.statvfs("/dev/shm")
    except OSError:
        return 0
    return (shm.f_blocks - shm.f_bfree) * shm.f_frsize


def _larger(a: float, b: float) -> float:
    return b if math.isnan(a) else a if math.isnan(b) else max(a, b)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
