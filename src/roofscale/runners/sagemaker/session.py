"""The state that all jobs of one command share: settings, connection, and the answer to Ctrl-C."""

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
    """The shared state of a command's jobs, each of which is followed by a thread of its own."""

    settings: SageMakerSettings
    stop_request: StopRequest = field(default_factory=StopRequest)
    connect: "Callable[[SageMakerSettings, Wait], Service] | None" = None  # replaced by tests
    ask: Callable[[str], str] = input
    running: set[str] = field(default_factory=set)  # names of the jobs that are followed
    lock: threading.RLock = field(default_factory=threading.RLock)  # held to read and then change shared state
    _cloud: "Service | None" = None
    _stop: bool | None = None  # whether Ctrl-C stops the jobs; None: not decided yet

    @property
    def cloud(self) -> "Service":
        """Return the connection, made once: boto3 clients are thread-safe, but slow and large to make."""
        with self.lock:
            if self._cloud is None:
                self._cloud = (self.connect or connect)(self.settings, self.wait)
            return self._cloud

    def wait(self, seconds: float) -> bool:
        """Wait until the time is over or the user interrupts; return whether the user has interrupted.

        While jobs are being stopped, only a second interrupt counts. One from before the call counts too: it may have
        come during a request that had no answer.
        """
        until = time.monotonic() + seconds
        while not self._interrupted() and (remaining := until - time.monotonic()) > 0:
            time.sleep(min(0.1, remaining))
        return self._interrupted()

    def _interrupted(self) -> bool:
        return self.stop_request.count > (1 if self._stop else 0)

    def should_stop_jobs(self) -> bool:
        """Whether Ctrl-C stops the running jobs (else they run on); decided once for all of them."""
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


def connect(settings: SageMakerSettings, wait: "Wait" = lambda seconds: True) -> "Service":
    """Return a connection to the service, by default one that retries nothing; see ``aws_errors.Wait``."""
    if settings.local_mode:
        from roofscale.runners.sagemaker.local_mode import LocalModeClient

        return LocalModeClient(settings)
    from roofscale.runners.sagemaker.jobs_api import SageMakerClient  # boto3 is large, and local mode needs none

    return SageMakerClient(settings, wait)
