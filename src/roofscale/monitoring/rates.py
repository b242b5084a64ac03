"""Rates of CPU, disk and network use of a process tree, from cumulative counters."""

import math
import time
from dataclasses import dataclass

import psutil

from roofscale.compute import MIB
from roofscale.monitoring.process_tree import Tree


@dataclass(frozen=True)
class Counters:
    """Cumulative counters at one moment; rates are their differences over time."""

    time: float  # monotonic seconds
    cpu: float  # CPU seconds of the process tree
    io_wait: float  # seconds of the machine's cores in I/O wait; NaN if the system does not count it
    idle: float  # seconds of the machine's cores without work, I/O wait included
    machine: float  # seconds of the machine's cores, of every kind
    disk: tuple[float, float]  # bytes read and written by the process tree
    network: tuple[float, float]  # bytes received and sent by the machine


class Rates:
    """CPU, disk and network rates of a process tree and its machine.

    Args:
        tree: the processes.
        cores: of the compute; CPU utilisation is a share of their time.
    """

    def __init__(self, tree: Tree, cores: int) -> None:
        self._tree, self._cores = tree, cores
        self._first = self._last = self._read(None)

    def since_last(self) -> dict[str, float]:
        """Return the rates since the last call, or since construction, by their names in METRICS."""
        before, self._last = self._last, self._read(self._last)
        return self._between(before, self._last)

    def overall(self) -> dict[str, float]:
        """Return the rates from construction to the last call of ``since_last``."""
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
            machine=sum(times[:8]),  # without guest times, which user and nice include
            disk=(float(disk[0]), float(disk[1])) if disk else before.disk if before else (math.nan, math.nan),
            network=(float(sum(link.bytes_recv for link in links)), float(sum(link.bytes_sent for link in links))),
        )
        return _monotonic(now, before) if before else now

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


def _monotonic(now: Counters, before: Counters) -> Counters:
    """Return counters that are at no point below the earlier ones.

    The sums drop for a moment when a process has ended and its parent has not waited for it yet.
    """
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
    """Return the larger of two values, ignoring a NaN."""
    return b if math.isnan(a) else a if math.isnan(b) else max(a, b)
