"""The job pool: how many jobs run at a time, in which thread, and what an error in one does to the others."""

import signal
import threading
import time

import pytest

from roofscale.runners import RunInterrupted
from roofscale.runners.job_pool import JobPool

SOON = 20.0  # seconds; nobody waits so long where all is well


def test_a_pool_of_one_works_in_the_thread_of_the_caller() -> None:
    pool = JobPool()
    with pool.running():
        assert pool.submit(threading.get_ident).result() == threading.get_ident()


def test_max_jobs_run_at_a_time_and_no_more() -> None:
    pool, together = JobPool(3), threading.Barrier(3)
    now, counts = [], []

    def work() -> None:
        now.append(1)
        counts.append(len(now))
        together.wait(SOON)  # breaks unless three are here at once
        now.pop()

    with pool.running():
        for future in [pool.submit(work) for _ in range(6)]:
            future.result()
    assert max(counts) == 3


@pytest.mark.parametrize(("error", "asked"), [(ValueError("broken"), 1), (RunInterrupted("no instance free"), 0)])
def test_an_error_stops_the_others_and_a_run_that_was_stopped_does_not(error: Exception, asked: int) -> None:
    pool = JobPool(2)
    ended, queued = [], []

    def long() -> None:
        until = time.monotonic() + (SOON if asked else 0.2)
        while time.monotonic() < until and not pool.stop_request.count:
            time.sleep(0.01)
        ended.append(pool.stop_request.count)

    def block() -> None:
        with pool.running():
            for work in (long, long, lambda: queued.append(1)):
                pool.submit(work)
            raise error

    with pytest.raises(type(error)):
        block()
    assert ended == [asked, asked], "the block ends when all have"
    assert not queued, "what has not begun does not begin any more"


def test_ctrl_c_reaches_all() -> None:
    pool, heard = JobPool(2), threading.Barrier(3)
    before = signal.getsignal(signal.SIGINT)  # ignored, where a shell has started this in the background

    def work() -> None:
        while not pool.stop_request.count:
            time.sleep(0.01)
        heard.wait(SOON)

    with pool.running():
        for _ in range(2):
            pool.submit(work)
        signal.raise_signal(signal.SIGINT)
        heard.wait(SOON)
    assert signal.getsignal(signal.SIGINT) == before
