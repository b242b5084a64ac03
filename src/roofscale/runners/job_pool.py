"""Thread pool for work that waits for another machine, such as training jobs; it honours stop requests."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from roofscale.runners import RunInterrupted
from roofscale.runners.supervise import StopRequest

_T = TypeVar("_T")


@dataclass
class JobPool:
    """Pool of up to ``max_jobs`` threads; with one, work runs at once in the caller's thread.

    Ctrl-C and SIGTERM reach all jobs through ``stop_request``, which the runners share.
    """

    max_jobs: int = 1
    stop_request: StopRequest = field(default_factory=StopRequest)
    _executor: ThreadPoolExecutor | None = field(default=None, init=False)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run submitted work until the block ends, then wait for the running jobs and drop queued ones.

        An error in the block stops the jobs as Ctrl-C does. ``RunInterrupted`` stops none: a fault of the service
        affects one run, and a stop request of the user has already reached all.
        """
        if self.max_jobs == 1 or self._executor:
            yield
            return
        with self.stop_request.on_signals(), ThreadPoolExecutor(self.max_jobs, "run") as executor:
            self._executor = executor
            try:
                yield
            except RunInterrupted:
                raise
            except BaseException:
                self.stop_request.request()
                raise
            finally:
                self._executor = None
                executor.shutdown(wait=False, cancel_futures=True)

    def submit(self, work: Callable[[], _T]) -> "Future[_T]":
        """Queue work for the next free thread; outside ``running``, or with one thread, run it at once.

        Raises:
            Exception: an error of work that was run at once; other errors are in the future.
        """
        if self._executor:
            return self._executor.submit(work)
        future: Future[_T] = Future()
        future.set_result(work())
        return future
