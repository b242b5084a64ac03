"""Watches one training process from its start until nothing of it is left."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol

import psutil

from roofscale.measurement import ResourceSample
from roofscale.monitoring.sampler import Monitor
from roofscale.runners import torchrun
from roofscale.runners.events import Event, EventTail
from roofscale.runners.memory_limit import MemoryLimit

_POLL_SECONDS = 0.1


class Listener(Protocol):
    """Whoever wants to see a run while it goes on, such as a progress bar; called from the runner's own thread."""

    def event(self, event: Event) -> None:
        """One event of the training process, soon after it was written."""
        ...

    def resources(self, sample: ResourceSample) -> None:
        """What the run used over the last two seconds."""
        ...


class SilentListener:
    """A listener that shows nothing."""

    def event(self, event: Event) -> None:
        """Ignore it."""

    def resources(self, sample: ResourceSample) -> None:
        """Ignore it."""


class Listeners:
    """Several listeners as one."""

    def __init__(self, *listeners: Listener) -> None:
        self._listeners = listeners

    def event(self, event: Event) -> None:
        """Hand on an event."""
        for listener in self._listeners:
            listener.event(event)

    def resources(self, sample: ResourceSample) -> None:
        """Hand on a resource sample."""
        for listener in self._listeners:
            listener.resources(sample)


@dataclass
class StopRequest:
    """A request to stop, from a signal or another thread."""

    count: int = 0

    def request(self) -> None:
        """Ask; the first time for a checkpoint and an orderly end, the second time for an end at once."""
        self.count += 1

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Let SIGTERM and SIGINT ask, instead of ending this process, as long as the block lasts."""
        if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
            yield
            return

        def handle(_number: int, _frame: FrameType | None) -> None:
            self.request()

        before: dict[int, Any] = {n: signal.signal(n, handle) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Supervisor:
    """Forwards a child's events and resources, and ends it when it has to end.

    The child leads a process group of its own: what is sent to the group reaches its loader processes too, and Ctrl-C
    in the terminal reaches only this process.

    Args:
        timeout_seconds: after this long the child is asked to stop.
        grace_seconds: how long it then has for a checkpoint before it is killed.
        together: the child is torchrun, and those that train are its children.
    """

    def __init__(
        self,
        child: "subprocess.Popen[bytes]",
        limit: MemoryLimit,
        tail: EventTail,
        listener: Listener,
        interrupt: StopRequest,
        *,
        timeout_seconds: float,
        grace_seconds: float,
        together: bool = False,
    ) -> None:
        self.watchdog = self.timed_out = self.interrupted = False
        self.end: Event | None = None  # the child's own account of how it ended
        self._child, self._limit, self._tail, self._listener = child, limit, tail, listener
        self._interrupt = interrupt
        self._deadline = time.monotonic() + timeout_seconds
        self._grace_seconds = grace_seconds
        self._together = together
        self._kill_at: float | None = None

    def over_limit(self) -> None:
        """The watchdog's call, from the monitor's thread: end it now, the machine has no time to lose."""
        self.watchdog = True
        self.kill()

    def watch(self, monitor: Monitor) -> None:
        """Watch until the child has ended; it is not yet waited for then, and its loader processes may linger."""
        while not _has_ended(self._child):
            self.forward(monitor)
            self._end_if_due()
            time.sleep(_POLL_SECONDS)

    def forward(self, monitor: Monitor) -> None:
        """Hand what is new to the listener."""
        for event in self._tail.read():
            if event["event"] == "end":
                self.end = self.end or event  # of several processes the first, which the others only follow
            self._listener.event(event)
        while monitor.rows:
            self._listener.resources(monitor.rows.popleft())

    def kill(self) -> None:
        """Kill the child's process group, its children with theirs, and whatever else is in its cgroup."""
        if self._child.returncode is not None:  # waited for: its id may be somebody else's by now
            return
        for process in torchrun.processes(self._child.pid) if self._together else ():
            with contextlib.suppress(ProcessLookupError):  # each leads a group of its own
                os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says the latter of a zombie
            os.killpg(self._child.pid, signal.SIGKILL)
        self._limit.kill()

    def _end_if_due(self) -> None:
        now = time.monotonic()
        if self._limit.group and self._limit.oom_kills():
            self.kill()  # a cgroup of version 1 loses one process; the rest would hang or blame something else
        if self._kill_at is None:
            self.interrupted = self._interrupt.count > 0
            self.timed_out = not self.interrupted and now > self._deadline
            if self.interrupted or self.timed_out:
                self._kill_at = now + self._grace_seconds
                self._ask_to_stop()
        elif now > self._kill_at or self._interrupt.count > 1:
            self.kill()

    def _ask_to_stop(self) -> None:
        """Ask those that train: torchrun would ask their loader processes too, which are still needed."""
        training = torchrun.processes(self._child.pid) if self._together else []
        for process in training or [self._child]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGTERM)


def _has_ended(child: "subprocess.Popen[bytes]") -> bool:
    """Whether it has, leaving it a zombie where the system can: its counters stay readable, its id stays taken."""
    if hasattr(os, "waitid"):
        return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    return child.poll() is not None
