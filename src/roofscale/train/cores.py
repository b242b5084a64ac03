"""How many threads a training process computes with, where its config leaves that open: as many as others leave cores.

Threads that share cores with somebody else's wait for each other at the end of every operation
(``benchmarks/busy_machine.py`` has what that costs).
"""

import contextlib
import os
import time
from collections.abc import Callable

import psutil
import torch

from roofscale.monitoring import process_tree

_LOOK_SECONDS = 3.0  # between looks; the kernel counts CPU time in hundredths
_LASTING_SECONDS = 6.0  # a change that is seen for so long is no passing one
# The share of a core that others must leave for a thread to be worth it: with less, the others wait longer for it than
# it saves them. A thread more must find more, so that the number does not go to and fro.
_TO_KEEP, _TO_ADD = 0.70, 0.85


class Others:
    """CPU seconds of everybody but this process and its children, on the cores that it may use.

    The launcher does not count either: it is busy with imports of its own while this process starts, and idle then.
    """

    def __init__(self) -> None:
        self._tree, self._launcher = process_tree.open_tree(os.getpid()), psutil.Process(os.getppid())
        has = hasattr(os, "sched_getaffinity")
        self._allowed = sorted(os.sched_getaffinity(0)) if has else range(psutil.cpu_count() or 1)
        self.cores = len(self._allowed)

    def __call__(self) -> float:
        """So far."""
        self._tree.refresh()
        own, times = self._tree.cpu_seconds(), psutil.cpu_times(percpu=True)
        with contextlib.suppress(psutil.Error):  # gone, or not ours to look at
            own += sum(self._launcher.cpu_times()[:2])
        idle = sum(times[core].idle + getattr(times[core], "iowait", 0.0) for core in self._allowed)
        # The first eight, as guests are inside user and nice already; what the hypervisor took is not free either.
        return float(sum(sum(times[core][:8]) for core in self._allowed) - idle - own)


class Threads:
    """Settles the number of threads at the start of a process, and moves it when what is free has changed for long.

    To be used in the thread that trains: OpenMP has a number for each.
    """

    def __init__(self, others: Others | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.now = self._most = torch.get_num_threads()  # the compute's cores: the launcher set OMP_NUM_THREADS
        self._free = float(self._most)
        self._others, self._clock = others or Others(), clock
        self._seconds = self._others()
        self._looked = self._agreed = clock()

    def settle(self, earlier: int) -> str:
        """Choose by what was free since this was made; how many of the compute's cores that was, for a person.

        Args:
            earlier: threads that the run's first process began with, and so a resumed one, to end bit for bit where
                that would have; 0: this is the first.
        """
        self._look()
        self._set(min(earlier, self._most) or self._wanted())
        return f"{self._free:.1f} of {self._most}"

    def follow(self) -> str:
        """Look, every few seconds, and go by what has lasted; what to say of a change, empty where there is none."""
        if self._clock() - self._looked < _LOOK_SECONDS:
            return ""
        self._look()
        if self._wanted() == self.now:
            self._agreed = self._looked
        if self._looked - self._agreed < _LASTING_SECONDS:
            return ""
        self._set(self._wanted())
        return f"{self._free:.1f} of {self._most} cores free: goes on with {self.now} thread{'s' * (self.now != 1)}"

    def _look(self) -> None:
        before, looked = self._seconds, self._looked
        self._seconds, self._looked = self._others(), self._clock()
        busy = max(0.0, self._seconds - before) / max(self._looked - looked, 1e-9)
        self._free = min(max(0.0, self._others.cores - busy), float(self._most))

    def _wanted(self) -> int:
        keep, add = int(self._free + 1 - _TO_KEEP), int(self._free + 1 - _TO_ADD)
        return max(1, add, min(keep, self.now))

    def _set(self, number: int) -> None:
        torch.set_num_threads(number)
        self.now, self._agreed = number, self._looked
