"""The process beside a launcher: what it is asked, what it may raise, and how it ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.runners.errands import die, die_once, refuse, whoami

from roofscale.errors import ConfigError, RoofscaleError
from roofscale.runners.beside import Helper, beside


@pytest.fixture
def helper() -> Iterator[Helper]:
    one = Helper(idle_seconds=30)
    yield one
    one.close()


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 20
    while not gone(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_work_is_done_elsewhere_and_its_errors_come_back(helper: Helper, capfd: pytest.CaptureFixture[str]) -> None:
    elsewhere = helper.ask(whoami)
    assert elsewhere != os.getpid()
    with pytest.raises(ConfigError, match="batch_size=0"):
        helper.ask(refuse)
    assert helper.ask(whoami, more=1) == elsewhere + 1, "the same one, as before the error"
    assert capfd.readouterr().out == ""


def test_another_one_is_started_where_it_was_killed_but_not_for_ever(helper: Helper, tmp_path: Path) -> None:
    first = helper.ask(whoami)
    assert helper.ask(die_once, tmp_path / "died") != first
    with pytest.raises(RoofscaleError, match="killed twice; expected about a gigabyte"):
        helper.ask(die)
    assert helper.ask(whoami)


def test_it_ends_when_it_is_idle_and_the_next_work_starts_another() -> None:
    helper = Helper(idle_seconds=0.2)
    first = helper.ask(whoami)
    wait_until_gone(first)
    assert helper.ask(whoami) != first
    helper.close()


def test_it_does_not_outlive_whoever_asked_it() -> None:
    script = (
        "import os, signal\n"
        "from tests.runners.errands import whoami\n"
        "from roofscale.runners.beside import Helper\n"
        "print(Helper().ask(whoami), flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL
    wait_until_gone(int(done.stdout))


def test_who_holds_pytorch_does_the_work_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", sys)
    assert beside(whoami)() == os.getpid()
