"""Runs several things at a time where they wait for something elsewhere, such as training jobs: each in a thread."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from roofscale.phases.climb import Stopped
from roofscale.runners.supervise import Interrupt

_T = TypeVar("_T")


@dataclass
class Crew:
    """Up to ``most`` things at a time; one is done where it is asked for, in the caller's thread.

    Ctrl-C and SIGTERM reach everybody at work through ``interrupt``, which the runners have too.
    """

    most: int = 1
    interrupt: Interrupt = field(default_factory=Interrupt)
    _pool: ThreadPoolExecutor | None = field(default=None, init=False)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Let things run until the block ends, and then until those under way have ended.

        An error in the block stops them, as Ctrl-C would. ``Stopped`` does not: where it came from a fault of the
        service, the others are none the worse; and where somebody asked for it, they have heard.
        """
        if self.most == 1 or self._pool:
            yield
            return
        with self.interrupt.on_signals(), ThreadPoolExecutor(self.most, "run") as pool:
            self._pool = pool
            try:
                yield
            except Stopped:
                raise
            except BaseException:
                self.interrupt.ask()
                raise
            finally:
                self._pool = None
                pool.shutdown(wait=False, cancel_futures=True)

    def start(self, work: Callable[[], _T]) -> "Future[_T]":
        """Begin something as soon as a place is free."""
        if self._pool:
            return self._pool.submit(work)
        done: Future[_T] = Future()
        done.set_result(work())
        return done

    def everybody(self, work: Callable[[], None]) -> None:
        """Let every one of the crew do the same, to the end.

        Raises:
            Exception: the first that was raised, once all have ended.
        """
        with self.at_work():
            begun = [self.start(work) for _ in range(self.most)]
            errors = [future.exception() for future in begun]
        for error in filter(None, errors):
            raise error
