"""CPU, disk and network use of a process tree over a stretch of time."""

import math
import time
from dataclasses import dataclass

import psutil

from roofscale.monitoring.process_tree import Tree

MIB = 2**20


@dataclass(frozen=True)
class Counters:
    """Running totals, from which rates are differences."""

    time: float  # monotonic seconds
    cpu: float  # seconds
    io_wait: float  # seconds of the machine, over all its cores
    idle: float  # seconds of the machine with nothing to compute, waits for I/O included
    machine: float  # seconds of all kinds of the machine, over all its cores
    disk: tuple[float, float]  # bytes read, written
    network: tuple[float, float]  # bytes received, sent


class Rates:
    """CPU, disk and network use over a stretch of time, as differences of counters that never go back."""

    def __init__(self, tree: Tree, cores: int) -> None:
        self._tree, self._cores = tree, cores
        self._first = self._last = self._read(None)

    def since_last(self) -> dict[str, float]:
        """Rates since the last call, in METRICS names."""
        before, self._last = self._last, self._read(self._last)
        return self._between(before, self._last)

    def overall(self) -> dict[str, float]:
        """Rates from the first look to the last."""
        return self._between(self._first, self._last)

    def _read(self, before: Counters | None) -> Counters:
        times = psutil.cpu_times()
        disk = self._tree.disk_bytes()
        links = [link for name, link in psutil.net_io_counters(pernic=True).items() if not name.startswith("lo")]
        now = Counters(
            time=time.monotonic(),
            cpu=self._tree.cpu_seconds(),
            io_wait=getattr(times, "iowait", math.nan),
            idle=times.idle + getattr(times, "iowait", 0.0),
            machine=sum(times[:8]),  # the ninth and tenth, guests, are inside user and nice already
            disk=(float(disk[0]), float(disk[1])) if disk else before.disk if before else (math.nan, math.nan),
            network=(float(sum(link.bytes_recv for link in links)), float(sum(link.bytes_sent for link in links))),
        )
        return _never_back(now, before) if before else now

    def _between(self, a: Counters, b: Counters) -> dict[str, float]:
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


def _never_back(now: Counters, before: Counters) -> Counters:
    """Between a process's death and the wait for it, its share is missing from the sums for a moment."""
    return Counters(
        now.time,
        max(now.cpu, before.cpu),
        now.io_wait,
        now.idle,
        now.machine,
        (nan_max(now.disk[0], before.disk[0]), nan_max(now.disk[1], before.disk[1])),
        now.network,
    )


def nan_max(a: float, b: float) -> float:
    """The larger of two values; the other where one is NaN."""
    return b if math.isnan(a) else a if math.isnan(b) else max(a, b)
