"""How many threads a process computes with, on a machine whose other work is made up."""

import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest
import torch

from roofscale.train.cores import Others, Threads


class Machine(Others):
    """Four cores of which others keep some busy, and a clock."""

    cores = 4

    def __init__(self) -> None:
        self.now = self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def clock(self) -> float:
        return self.now

    def passes(self, seconds: float, busy: float) -> None:
        self.now += seconds
        self.seconds += seconds * busy


@pytest.fixture
def machine() -> Iterator[Machine]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield Machine()
    torch.set_num_threads(before)


def settled(machine: Machine, busy: float, earlier: int = 0) -> Threads:
    threads = Threads(machine, machine.clock)
    machine.passes(5, busy)
    threads.settle(earlier)
    assert torch.get_num_threads() == threads.now
    return threads


@pytest.mark.parametrize(("busy", "number"), [(0.0, 4), (0.2, 4), (0.5, 3), (1.0, 3), (2.6, 1), (4.0, 1)])
def test_it_starts_with_as_many_as_others_leave_cores_and_one_at_the_least(
    machine: Machine, busy: float, number: int
) -> None:
    assert settled(machine, busy).now == number


def test_the_share_of_the_compute_that_is_free_is_told(machine: Machine) -> None:
    threads = Threads(machine, machine.clock)
    machine.passes(5, 1.25)
    assert threads.settle(earlier=0) == "2.8 of 4"


def test_a_change_counts_once_it_has_lasted_and_is_told(machine: Machine) -> None:
    threads = settled(machine, 0.0)
    machine.passes(3.5, 2.0)
    assert not threads.follow()
    assert threads.now == 4, "three seconds may be passing"
    machine.passes(3.5, 2.0)
    assert threads.follow() == "2.0 of 4 cores free: goes on with 2 threads"
    assert torch.get_num_threads() == 2
    for _ in range(2):
        machine.passes(3.5, 0.0)
        said = threads.follow()
    assert said == "4.0 of 4 cores free: goes on with 4 threads"


def test_what_comes_and_goes_changes_nothing(machine: Machine) -> None:
    threads = settled(machine, 0.0)
    for _ in range(5):
        for busy in (2.0, 0.0):
            machine.passes(3.5, busy)
            assert not threads.follow()
    assert threads.now == 4


def test_a_share_at_the_edge_does_not_move_it_to_and_fro(machine: Machine) -> None:
    threads = settled(machine, 1.0)
    for _ in range(4):
        machine.passes(3.5, 0.25)  # enough to keep a fourth thread, too little to add one
        assert not threads.follow()
    assert threads.now == 3


def test_a_resumed_run_begins_with_the_threads_of_its_first_process(machine: Machine) -> None:
    threads = settled(machine, 2.0, earlier=4)
    assert threads.now == 4
    machine.passes(7.0, 2.0)
    assert threads.follow(), "until the machine has shown itself busy in training, too"
    assert threads.now == 2


def test_what_the_process_and_its_children_do_is_not_others(monkeypatch: pytest.MonkeyPatch) -> None:
    times = psutil.cpu_times(percpu=True)
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: times)  # a machine that stands still
    others = Others()
    before = others()
    spin = "import time\nwhile time.process_time() < 0.6: pass"  # the kernel counts in hundredths of a second
    subprocess.run([sys.executable, "-c", spin], check=True)
    assert before - others() >= 0.5
