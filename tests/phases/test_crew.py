"""Several things at a time: how many, in which thread, and what becomes of the others when one ends badly."""

import signal
import threading
import time

import pytest

from roofscale.phases.climb import Stopped
from roofscale.phases.crew import Crew

SOON = 20.0  # seconds; nobody waits so long where all is well


def test_one_at_a_time_is_done_by_whoever_asks() -> None:
    crew = Crew()
    with crew.at_work():
        assert crew.start(threading.get_ident).result() == threading.get_ident()


def test_as_many_as_are_wanted_and_no_more() -> None:
    crew, together = Crew(3), threading.Barrier(3)
    now, most = [], []

    def work() -> None:
        now.append(1)
        most.append(len(now))
        together.wait(SOON)  # breaks unless three are here at once
        now.pop()

    with crew.at_work():
        for future in [crew.start(work) for _ in range(6)]:
            future.result()
    assert max(most) == 3


def test_everybody_works_to_the_end_and_the_first_error_is_told() -> None:
    done = []

    def work() -> None:
        done.append(1)
        if len(done) == 2:
            raise ValueError("second")

    with pytest.raises(ValueError, match="second"):
        Crew(4).everybody(work)
    assert len(done) == 4


@pytest.mark.parametrize(("error", "asked"), [(ValueError("broken"), 1), (Stopped("no instance free"), 0)])
def test_an_error_stops_the_others_and_a_run_that_was_stopped_does_not(error: Exception, asked: int) -> None:
    crew = Crew(2)
    ended, queued = [], []

    def long() -> None:
        until = time.monotonic() + (SOON if asked else 0.2)
        while time.monotonic() < until and not crew.interrupt.count:
            time.sleep(0.01)
        ended.append(crew.interrupt.count)

    def block() -> None:
        with crew.at_work():
            for work in (long, long, lambda: queued.append(1)):
                crew.start(work)
            raise error

    with pytest.raises(type(error)):
        block()
    assert ended == [asked, asked], "the block ends when all have"
    assert not queued, "what has not begun does not begin any more"


def test_ctrl_c_reaches_all() -> None:
    crew, heard = Crew(2), threading.Barrier(3)
    before = signal.getsignal(signal.SIGINT)  # ignored, where a shell has started this in the background

    def work() -> None:
        while not crew.interrupt.count:
            time.sleep(0.01)
        heard.wait(SOON)

    with crew.at_work():
        for _ in range(2):
            crew.start(work)
        signal.raise_signal(signal.SIGINT)
        heard.wait(SOON)
    assert signal.getsignal(signal.SIGINT) == before
