"""Thread pool for work that waits for something elsewhere, such as training jobs; it honours stop requests."""

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
    """Up to ``max_jobs`` threads at a time; with one, work is done at once in the caller's thread.

    Ctrl-C and SIGTERM reach all jobs through ``interrupt``, which the runners hold too.
    """

    max_jobs: int = 1
    interrupt: StopRequest = field(default_factory=StopRequest)
    _executor: ThreadPoolExecutor | None = field(default=None, init=False)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run submitted work until the block ends, then wait for the jobs under way; queued ones are dropped.

        An error in the block stops the jobs as Ctrl-C would. ``RunInterrupted`` stops none: a fault of the service
        affects one run, and a stop request of the user has already reached all.
        """
        if self.max_jobs == 1 or self._executor:
            yield
            return
        with self.interrupt.on_signals(), ThreadPoolExecutor(self.max_jobs, "run") as executor:
            self._executor = executor
            try:
                yield
            except RunInterrupted:
                raise
            except BaseException:
                self.interrupt.request()
                raise
            finally:
                self._executor = None
                executor.shutdown(wait=False, cancel_futures=True)

    def submit(self, work: Callable[[], _T]) -> "Future[_T]":
        """Start work as soon as a thread is free."""
        if self._executor:
            return self._executor.submit(work)
        future: Future[_T] = Future()
        future.set_result(work())
        return future
