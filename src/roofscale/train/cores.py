"""The number of CPU threads of a training process with ``threads=0``: as many as other processes leave cores free.

Threads that share cores with other processes wait for each other at the end of every operation;
``benchmarks/busy_machine.py`` measures what that costs.
"""

import contextlib
import os
import time
from collections.abc import Callable

import psutil
import torch

from roofscale.monitoring import process_tree

_LOOK_SECONDS = 3.0  # between looks; the kernel counts CPU time in hundredths
_LASTING_SECONDS = 6.0  # a change of the free cores counts once it has lasted for so long
# Share of a core that must be free for a thread to pay: with less, the other threads wait longer for it than it saves
# them. Adding a thread needs a larger share than keeping one, so that the number does not oscillate.
_TO_KEEP, _TO_ADD = 0.70, 0.85


class Others:
    """CPU seconds of all other processes on the cores that this process may use.

    This process, its children and the launcher are left out; the launcher because it only computes while this process
    starts, and idles during training.
    """

    def __init__(self) -> None:
        self._tree, self._launcher = process_tree.open_tree(os.getpid()), psutil.Process(os.getppid())
        has = hasattr(os, "sched_getaffinity")
        self._allowed = sorted(os.sched_getaffinity(0)) if has else range(psutil.cpu_count() or 1)
        self.cores = len(self._allowed)

    def __call__(self) -> float:
        """Return the CPU seconds since the machine started; only differences between calls mean something."""
        self._tree.refresh()
        own, times = self._tree.cpu_seconds(), psutil.cpu_times(percpu=True)
        with contextlib.suppress(psutil.Error):  # it has ended, or belongs to another user
            own += sum(self._launcher.cpu_times()[:2])
        idle = sum(times[core].idle + getattr(times[core], "iowait", 0.0) for core in self._allowed)
        # The first eight fields, as guest times are part of user and nice already. Steal time, taken by the hypervisor,
        # counts as used.
        return float(sum(sum(times[core][:8]) for core in self._allowed) - idle - own)


class Threads:
    """The number of CPU threads, chosen before training and changed when the number of free cores has changed for long.

    Call it from the training thread: OpenMP keeps the number per thread.

    Args:
        others: measures the other processes' CPU time.
        clock: monotonic seconds.
    """

    def __init__(self, others: Others | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.now = self._most = torch.get_num_threads()  # the compute's cores: the launcher set OMP_NUM_THREADS
        self._free = float(self._most)
        self._others, self._clock = others or Others(), clock
        self._seconds = self._others()
        self._looked = self._agreed = clock()

    def settle(self, earlier: int) -> str:
        """Set the number by the cores free since construction; return those as text, such as ``3.2 of 4``.

        Args:
            earlier: threads that the run's first process started with. A resumed one takes the same number, so that it
                ends bit for bit where an uninterrupted run does; 0 if this is the first.
        """
        self._look()
        self._set(min(earlier, self._most) or self._wanted())
        return f"{self._free:.1f} of {self._most}"

    def follow(self) -> str:
        """Adapt the number to a change that has lasted; return a note about it, empty if nothing changed.

        Cheap enough for every step: it looks only every few seconds.
        """
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
