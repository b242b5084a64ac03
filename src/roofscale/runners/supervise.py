"""Supervision of one training process, from its start until all its processes have ended."""

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
    """Observer of a run in progress, such as a progress bar; called from the runner's own thread."""

    run_id: str  # of the MLflow run that it logs to; empty if it logs to none

    def event(self, event: Event) -> None:
        """Receive one event of the training process, within about 0.1 s after it was written."""
        ...

    def resources(self, sample: ResourceSample) -> None:
        """Receive the resources that the run used over the last two seconds."""
        ...


class SilentListener:
    """Listener that ignores everything."""

    run_id = ""

    def event(self, event: Event) -> None:
        """Ignore the event."""

    def resources(self, sample: ResourceSample) -> None:
        """Ignore the sample."""


class Listeners:
    """Listener that forwards to several listeners."""

    def __init__(self, *listeners: Listener) -> None:
        self._listeners = listeners
        self.run_id = next((listener.run_id for listener in listeners if listener.run_id), "")

    def event(self, event: Event) -> None:
        """Forward an event to every listener."""
        for listener in self._listeners:
            listener.event(event)

    def resources(self, sample: ResourceSample) -> None:
        """Forward a resource sample to every listener."""
        for listener in self._listeners:
            listener.resources(sample)


@dataclass
class StopRequest:
    """Request to stop a run, from a signal or another thread."""

    count: int = 0

    def request(self) -> None:
        """Request a stop: the first call asks for a checkpoint and an orderly exit, the second kills the run."""
        self.count += 1

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Turn SIGTERM and SIGINT into stop requests, instead of ending this process, until the block ends."""
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
    """Supervisor of a child process: forwards its events and resources, and enforces timeout and stop requests.

    The child leads a process group of its own: a signal to the group also reaches its loader processes, and Ctrl-C in
    the terminal reaches only this process.

    Args:
        timeout_seconds: after this time the child is sent SIGTERM.
        grace_seconds: time for a checkpoint between SIGTERM and SIGKILL.
        is_torchrun: whether the child is torchrun, and the training processes are its children.
    """

    def __init__(
        self,
        child: "subprocess.Popen[bytes]",
        limit: MemoryLimit,
        tail: EventTail,
        listener: Listener,
        stop_request: StopRequest,
        *,
        timeout_seconds: float,
        grace_seconds: float,
        is_torchrun: bool = False,
    ) -> None:
        self.watchdog = self.timed_out = self.interrupted = False
        self.end: Event | None = None  # the child's own report of its outcome
        self._child, self._limit, self._tail, self._listener = child, limit, tail, listener
        self._stop_request = stop_request
        self._deadline = time.monotonic() + timeout_seconds
        self._grace_seconds = grace_seconds
        self._is_torchrun = is_torchrun
        self._kill_at: float | None = None

    def kill_over_limit(self) -> None:
        """Kill the child because it is over its memory limit; the monitor calls this from its own thread.

        Not left to the next poll of ``watch``: within 0.1 s the machine itself may run out of memory.
        """
        self.watchdog = True
        self.kill()

    def watch(self, monitor: Monitor) -> None:
        """Supervise until the child has ended.

        It is then still a zombie (the caller waits for it), and its loader processes may still run.
        """
        while not _has_ended(self._child):
            self.forward(monitor)
            self._end_if_due()
            time.sleep(_POLL_SECONDS)

    def forward(self, monitor: Monitor) -> None:
        """Forward new events and resource samples to the listener."""
        for event in self._tail.read():
            if event["event"] == "end":
                self.end = self.end or event  # of several processes, the first to end is the cause
            self._listener.event(event)
        while monitor.rows:
            self._listener.resources(monitor.rows.popleft())

    def kill(self) -> None:
        """Kill the child's process group, those of torchrun's children, and every process in the run's cgroup."""
        if self._child.returncode is not None:  # already waited for: its pid may have been reused
            return
        for process in torchrun.processes(self._child.pid) if self._is_torchrun else ():
            with contextlib.suppress(ProcessLookupError):  # each leads a group of its own
                os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS raises the latter for a zombie
            os.killpg(self._child.pid, signal.SIGKILL)
        self._limit.kill()

    def _end_if_due(self) -> None:
        """Stop the child if its time is up or a stop was requested; kill it after the grace period."""
        now = time.monotonic()
        if self._limit.group and self._limit.oom_kills():
            self.kill()  # cgroup v1 kills one process only; the others would hang or report a misleading error
        if self._kill_at is None:
            self.interrupted = self._stop_request.count > 0
            self.timed_out = not self.interrupted and now > self._deadline
            if self.interrupted or self.timed_out:
                self._kill_at = now + self._grace_seconds
                self._ask_to_stop()
        elif now > self._kill_at or self._stop_request.count > 1:
            self.kill()

    def _ask_to_stop(self) -> None:
        """Send SIGTERM to the training processes.

        Not to torchrun, which would forward it to their loader processes, and these are needed up to the checkpoint.
        """
        training = torchrun.processes(self._child.pid) if self._is_torchrun else []
        for process in training or [self._child]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGTERM)


def _has_ended(child: "subprocess.Popen[bytes]") -> bool:
    """Whether the child has ended.

    Where the system allows, the child is left a zombie: its counters stay readable, and its pid is not reused.
    """
    if hasattr(os, "waitid"):
        return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    return child.poll() is not None
