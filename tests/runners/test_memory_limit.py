"""The memory limit: what is written to which cgroup, and what happens where that is not permitted.

A stand-in folder takes the kernel's place, except where a test says so. Unlike the kernel, an ordinary file system
makes the files that are written to, and keeps a folder that has any.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from roofscale import cgroup
from roofscale.cgroup import MemoryCgroup
from roofscale.runners import memory_limit as limits
from roofscale.runners.memory_limit import MemoryLimit

GIB = 2**30


@pytest.fixture(autouse=True)
def _removal_gives_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits.time, "sleep", lambda seconds: None)


def written(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir()}


def test_v1_limit_is_written_to_a_child_and_nowhere_else(tmp_path: Path) -> None:
    with MemoryLimit(GIB, MemoryCgroup(tmp_path, 1)) as limit:
        assert limit.group
        assert limit.group.path.parent == tmp_path
        assert written(limit.group.path) == {"memory.limit_in_bytes": str(GIB)}
        assert list(tmp_path.iterdir()) == [limit.group.path]
        assert limit.description == "cgroup v1, 1 GiB"
        assert limit.watchdog_mib == float("inf")


def test_v2_limit_leaves_no_way_round_through_swap(tmp_path: Path) -> None:
    (tmp_path / "cgroup.subtree_control").write_text("cpu memory\n")
    with MemoryLimit(GIB, MemoryCgroup(tmp_path, 2)) as limit:
        assert limit.group
        files = {"memory.max": str(GIB), "memory.oom.group": "1", "memory.swap.max": "0"}
        assert written(limit.group.path) == files
        assert limit.description == "cgroup v2, 1 GiB"
    assert (tmp_path / "cgroup.subtree_control").read_text() == "cpu memory\n"


def test_without_a_cgroup_the_watchdog_takes_over() -> None:
    with MemoryLimit(GIB, None) as limit:
        assert limit.group is None
        assert limit.watchdog_mib == pytest.approx(0.9 * 1024)
        assert limit.description.startswith("watchdog at 90% of 1 GiB; no memory cgroup")
        assert limit.oom_kills() == 0


def test_a_refusal_falls_back_to_the_watchdog_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: object) -> None:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(limits, "_set_limit", busy)
    with MemoryLimit(GIB, MemoryCgroup(tmp_path, 1)) as limit:
        assert limit.group is None
        assert limit.description.endswith("no cgroup can be made here: Device or resource busy")
    assert list(tmp_path.iterdir()) == []


def test_a_v2_cgroup_without_the_controller_falls_back(tmp_path: Path) -> None:
    with MemoryLimit(GIB, MemoryCgroup(tmp_path / "not there", 2)) as limit:
        assert limit.group is None


def test_only_leftovers_of_dead_processes_and_of_our_name_are_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name in (f"roofscale-{dead.pid}-0", f"roofscale-{os.getpid()}-999", "roofscale-x", f"other-{dead.pid}-0"):
        (tmp_path / name).mkdir()
    full = tmp_path / f"roofscale-{dead.pid}-1"
    full.mkdir()
    (full / "cgroup.procs").write_text("")  # stands for a cgroup with a process inside: it cannot be removed
    with MemoryLimit(GIB, MemoryCgroup(tmp_path, 1)) as limit:
        assert limit.group
        left = {path.name for path in tmp_path.iterdir()} - {limit.group.path.name}
    assert left == {f"roofscale-{os.getpid()}-999", "roofscale-x", f"other-{dead.pid}-0", full.name}


def test_kills_are_counted_from_the_start(tmp_path: Path) -> None:
    (tmp_path / "memory.events").write_text("oom_kill 5\n")
    with MemoryLimit(GIB, MemoryCgroup(tmp_path / "not writable", 2)) as limit:
        assert limit.oom_kills() == 0
    parent = MemoryCgroup(tmp_path, 2)  # without subtree_control: falls back, but its count can be read
    with MemoryLimit(GIB, parent) as limit:
        assert limit.group is None
        (tmp_path / "memory.events").write_text("oom_kill 7\n")
        assert limit.oom_kills() == 2


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_the_real_kernel_takes_it_and_lets_go_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # it takes the kernel a moment
    own = cgroup.own_memory()
    with MemoryLimit(GIB, own) as limit:
        if limit.group is None:
            pytest.skip(f"no memory cgroup can be made here ({limit.description})")
        path = limit.group.path
        assert limit.group.limit() == GIB
        sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (path / "cgroup.procs").write_text(str(sleeper.pid))
        assert limit.group.processes() == [sleeper.pid]
    assert sleeper.wait(timeout=10) == -9
    assert not path.exists()
