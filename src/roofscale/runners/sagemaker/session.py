"""What all jobs of one command share: the settings, one connection, and what becomes of them at Ctrl-C."""

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from roofscale.runners.sagemaker.settings import SageMakerSettings
from roofscale.runners.supervise import StopRequest

if TYPE_CHECKING:
    from roofscale.runners.sagemaker.aws_errors import Wait
    from roofscale.runners.sagemaker.jobs_api import SageMakerClient
    from roofscale.runners.sagemaker.local_mode import LocalModeClient

    Service = SageMakerClient | LocalModeClient


@dataclass
class Session:
    """The launcher's side of all jobs that one command has under way, each followed by a thread of its own."""

    settings: SageMakerSettings
    interrupt: StopRequest = field(default_factory=StopRequest)
    connect: "Callable[[SageMakerSettings, Wait], Service] | None" = None  # to AWS; a test's stand-in
    ask: Callable[[str], str] = input
    patient: bool = True  # whether a service that does not answer is waited for
    running: set[str] = field(default_factory=set)  # names of jobs
    lock: threading.RLock = field(default_factory=threading.RLock)  # of whoever reads and then changes what is shared
    _cloud: "Service | None" = None
    _stop: bool | None = None  # what was decided of all jobs; None: nothing yet

    @property
    def cloud(self) -> "Service":
        """The one connection; clients of boto3 may be shared by threads, but are slow and large to make."""
        with self.lock:
            if self._cloud is None:
                self._cloud = (self.connect or _connect)(self.settings, self.wait)
            return self._cloud

    def wait(self, seconds: float) -> bool:
        """Wait, but no longer than until somebody wants to stop; whether somebody does, beyond a stop under way.

        A wish from before counts too: it may have come while a service was asked that does not answer.
        """
        if not self.patient:
            return True
        until = time.monotonic() + seconds
        while not self._wants_out() and (left := until - time.monotonic()) > 0:
            time.sleep(min(0.1, left))
        return self._wants_out()

    def _wants_out(self) -> bool:
        return self.interrupt.count > (1 if self._stop else 0)

    def should_stop_jobs(self) -> bool:
        """Whether running jobs are to be stopped, rather than left to themselves; decided once for all of them."""
        with self.lock:
            if self._stop is None:
                self._stop = self._decide()
            return self._stop

    def _decide(self) -> bool:
        if self.settings.on_interrupt != "ask" or not sys.stdin.isatty():
            return self.settings.on_interrupt != "detach"
        jobs = f"job {', '.join(self.running)}" if len(self.running) == 1 else f"{len(self.running)} jobs"
        try:
            answer = self.ask(f"\nStop {jobs} (s), or leave running and wait later (d)? [s] ")
        except EOFError:
            answer = ""
        return not answer.strip().lower().startswith("d")


def _connect(settings: SageMakerSettings, wait: "Wait") -> "Service":
    if settings.local_mode:
        from roofscale.runners.sagemaker.local_mode import LocalModeClient

        return LocalModeClient(settings)
    from roofscale.runners.sagemaker.jobs_api import SageMakerClient  # boto3: only those who run there pay for it

    return SageMakerClient(settings, wait)
