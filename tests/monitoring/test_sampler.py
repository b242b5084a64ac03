"""The monitor against processes that hold, share, read, write and compute a known amount."""

import itertools
import math
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from roofscale.cgroup import MemoryCgroup
from roofscale.measurement import METRICS, MemoryPoint
from roofscale.monitoring import process_tree, rates
from roofscale.monitoring import sampler as monitors
from roofscale.monitoring.nvml import GpuMonitor
from roofscale.monitoring.sampler import Monitor
from roofscale.runners.memory_limit import MemoryLimit

pytestmark = pytest.mark.alone

MIB = 2**20
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
Start = Callable[[str], "subprocess.Popen[str]"]

HOLD = """
import sys
held = bytearray({mib} << 20)
held[::4096] = b'x' * (len(held) >> 12)
"""
# Four children that hold nothing of their own: all they have, they share with their parent since the fork.
FORKS = (
    HOLD
    + """
import os, time
for _ in range(4):
    if os.fork() == 0:
        time.sleep(600)
"""
)
READY = "\nprint('ready', flush=True); sys.stdin.read()\n"


@pytest.fixture
def start() -> Iterator[Start]:
    """Runs code in a process until it says it is ready; then it waits for the end of its input."""
    started: list[subprocess.Popen[str]] = []

    def go(code: str) -> "subprocess.Popen[str]":
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", "import sys\n" + code + READY],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        assert started[-1].stdout
        assert started[-1].stdout.readline() == "ready\n"
        return started[-1]

    yield go
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def watch(pid: int, seconds: float = 0.5, **options: Any) -> Monitor:
    with Monitor(pid, interval=0.05, **options) as monitor:
        time.sleep(seconds)
    return monitor


def test_peak_of_a_known_allocation(start: Start) -> None:
    monitor = watch(start(HOLD.format(mib=200)).pid)
    summary = monitor.summary()
    assert 200 < summary["memory/peak_mib"] < 230
    assert summary["memory/workers_mib"] == 0
    assert set(summary) <= set(METRICS)
    assert len(monitor.points) > 3


@LINUX
def test_pages_shared_by_forks_count_once(start: Start) -> None:
    monitor = watch(start(FORKS.format(mib=200)).pid)
    summary = monitor.summary()
    assert 200 < summary["memory/peak_mib"] < 260, "summed resident sets would say 1000"
    assert monitor.source.endswith("corrected by PSS")
    assert 100 < summary["memory/workers_mib"] < 210, "four fifths of what is shared falls to the four"


@LINUX
def test_the_kernels_high_water_mark_catches_a_peak_between_samples(start: Start) -> None:
    before = process_tree.open_tree(start("").pid).resident()
    after = process_tree.open_tree(start(HOLD.format(mib=150) + "del held\n").pid).resident()
    assert before.main_peak < 100 * MIB
    assert after.main < 100 * MIB
    assert after.main_peak > 150 * MIB


def test_a_peak_between_two_samples_is_in_the_summary() -> None:
    monitor = Monitor(1, tree=FakeTree([(100, 100), (100, 400), (100, 400)]))
    for _ in range(3):
        monitor._sample()
    assert monitor.peak_mib == 400


class FakeTree(process_tree.PortableTree):
    """Says (resident MiB, high-water MiB) in turn, and PSS as a share of the first."""

    def __init__(self, says: list[tuple[int, int]], exact: float | None = None) -> None:
        super().__init__(0)
        self.says, self.exact, self.now = says, exact, (0, 0)

    def refresh(self) -> bool:
        return False

    def resident(self) -> process_tree.Rss:
        self.now = self.says.pop(0) if len(self.says) > 1 else self.says[0]
        return process_tree.Rss(self.now[0] * MIB, self.now[0] * MIB, self.now[1] * MIB, 0)

    def proportional(self) -> process_tree.Pss | None:
        return None if self.exact is None else process_tree.Pss(int(self.now[0] * MIB * self.exact), 0)


@pytest.mark.parametrize(("exact", "killed"), [(1.0, True), (0.5, False), (None, True)])
def test_the_watchdog_believes_only_an_exact_reading(exact: float | None, killed: bool) -> None:
    calls: list[int] = []
    tree = FakeTree([(100, 0), (200, 0), (210, 0), (220, 0)], exact)
    monitor = Monitor(1, limit_mib=150, on_limit_exceeded=lambda: calls.append(1), tree=tree)
    monitor._exact._due = math.inf  # no regular exact look comes to its help
    for _ in range(4):
        monitor._sample()
    assert calls == [1] * killed


@LINUX
def test_counters_of_a_tree_with_a_dead_child_do_not_go_back(start: Start, tmp_path_factory: Any) -> None:
    file = tmp_path_factory.mktemp("io") / "written"
    work = f"f = open({str(file)!r}, 'wb'); f.write(b'x' * (8 << 20)); f.flush(); os.fsync(f.fileno())"
    busy = "\nimport os, time\nt = time.process_time()\nwhile time.process_time() - t < 0.3: pass\n"
    code = f"import subprocess\nsubprocess.run([sys.executable, '-c', {busy + work!r}])"
    finished = start(code)
    tree = process_tree.open_tree(finished.pid)
    tree.refresh()
    assert tree.pids() == {finished.pid}
    rounding = 2 / os.sysconf("SC_CLK_TCK")  # user and system time are each cut down to whole ticks
    assert tree.cpu_seconds() >= 0.3 - rounding, "the dead child's CPU time counts"
    disk = tree.disk_bytes()
    assert disk
    if disk[1] == 0:
        pytest.skip("this file system counts no writes")
    assert 8 * MIB <= disk[1] < 12 * MIB, "the dead child's writes count, once"


def test_cpu_utilisation_of_one_busy_core(start: Start) -> None:
    process = start("import threading\ndef spin():\n  while True: pass\n"
                    "threading.Thread(target=spin, daemon=True).start()\n")  # fmt: skip
    busy = watch(process.pid, 1.0, cores=2).summary()["cpu/utilisation"]
    assert 0.05 < busy < 0.6, "one of two cores at most, whatever else the machine does"


def test_rows_come_at_their_own_pace_and_speak_in_known_names(start: Start) -> None:
    monitor = watch(start(HOLD.format(mib=50)).pid, 1.0, row_seconds=0.3)
    assert 3 <= len(monitor.rows) <= 6
    assert len(monitor.resources) >= 3
    assert all(row in monitor.rows for row in monitor.resources)
    assert {name for row in monitor.rows for name in row.metrics} <= set(METRICS)
    assert monitor.rows[-1].metrics["memory/used_mib"] > 50
    assert "cpu/utilisation" in monitor.rows[-1].metrics


def test_a_process_that_is_gone_ends_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    monitor = watch(process.pid, 0.2)
    assert math.isnan(monitor.summary()["memory/peak_mib"])


def test_the_memory_curve_of_a_long_run_is_thinned_not_cut() -> None:
    curve = monitors.DownsampledSeries[MemoryPoint](0.2, 64)
    for tick in range(2000):
        curve.add(MemoryPoint(time=tick * 0.2, mib=tick))
    assert 20 <= len(curve.values) <= 64
    assert curve.values[0].mib == 0
    assert curve.values[-1].mib > 1900
    gaps = [b.time - a.time for a, b in itertools.pairwise(curve.values)]
    assert max(gaps) < 2.5 * min(gaps)


def test_a_cgroup_is_believed_before_all_else(tmp_path: Any, start: Start) -> None:
    (tmp_path / "memory.current").write_text(str(700 * MIB))
    (tmp_path / "memory.stat").write_text(f"inactive_file {200 * MIB}\nshmem {30 * MIB}\n")
    (tmp_path / "memory.peak").write_text(str(800 * MIB))
    monitor = watch(start("").pid, 0.2, group=MemoryCgroup(tmp_path, 2))
    summary = monitor.summary()
    assert summary["memory/peak_mib"] == 500
    assert summary["memory/shm_mib"] == 30
    assert summary["memory/kernel_peak_mib"] == 800
    assert "cgroup v2" in monitor.source


@LINUX
def test_cgroup_and_pss_agree_on_a_real_process(start: Start) -> None:
    from roofscale import cgroup

    with MemoryLimit(2**30, cgroup.own_memory()) as limit:
        if limit.group is None:
            pytest.skip(f"no memory cgroup can be made here ({limit.description})")
        join = f"import os\nopen({str(limit.group.path / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n"
        process = start(join + FORKS.format(mib=300))
        by_cgroup = watch(process.pid, 0.3, group=limit.group).summary()["memory/peak_mib"]
        by_pss = watch(process.pid, 0.3).summary()["memory/peak_mib"]
    assert by_pss == pytest.approx(by_cgroup, rel=0.1)


def test_without_proc_the_tree_is_read_through_psutil(start: Start) -> None:
    tree = process_tree.PortableTree(start(FORKS.format(mib=50)).pid)
    assert tree.refresh()
    assert len(tree.pids()) == 5
    assert tree.resident().main > 50 * MIB
    assert tree.proportional() is None
    assert tree.disk_bytes() is None
    assert tree.cpu_seconds() > 0


class NvmlError(Exception):
    pass


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A stand-in for NVIDIA's library with two GPUs; process 41 holds 3 and 2 GiB, process 99 is somebody else's."""
    module: Any = types.ModuleType("pynvml")
    process = types.SimpleNamespace
    module.running = [[process(pid=41, usedGpuMemory=3 << 30), process(pid=99, usedGpuMemory=5 << 30)],
                      [process(pid=41, usedGpuMemory=2 << 30)]]  # fmt: skip
    module.NVMLError = NvmlError
    module.nvmlInit = module.nvmlShutdown = lambda: None
    module.nvmlDeviceGetCount = lambda: 2
    module.nvmlDeviceGetHandleByIndex = lambda index: index
    module.nvmlDeviceGetUtilizationRates = lambda handle: process(gpu=(80, 40)[handle])
    module.nvmlDeviceGetPowerUsage = lambda handle: 100_000
    module.nvmlDeviceGetMemoryInfo = lambda handle: process(used=9 << 30)
    module.nvmlDeviceGetComputeRunningProcesses = lambda handle: module.running[handle]
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return module


def test_gpu_use_is_of_the_tree(nvml: Any) -> None:
    use = GpuMonitor().use([40, 41])
    assert use
    assert use.utilisation == pytest.approx(0.6)
    assert use.power_w == 200
    assert use.memory_bytes == 5 << 30


def test_in_a_container_the_whole_gpu_counts(nvml: Any) -> None:
    use = GpuMonitor().use([1])
    assert use
    assert use.memory_bytes == 18 << 30


def test_a_gpu_that_stops_answering_or_is_not_there_is_left_out(nvml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = GpuMonitor()
    assert gpus

    def fail(*_: object) -> None:
        raise NvmlError("GPU is lost")

    monkeypatch.setattr(nvml, "nvmlDeviceGetPowerUsage", fail)
    assert gpus.use([41]) is None
    monkeypatch.setattr(nvml, "nvmlInit", fail)
    assert not GpuMonitor()
    assert GpuMonitor().use([41]) is None


def test_gpu_figures_reach_rows_and_summary(nvml: Any, start: Start) -> None:
    process = start("")
    nvml.running = [[types.SimpleNamespace(pid=process.pid, usedGpuMemory=4 << 30)]] * 2
    monitor = watch(process.pid, 0.3, row_seconds=0.1)
    summary = monitor.summary()
    assert summary["gpu/memory_peak_mib"] == 8192
    assert summary["gpu/utilisation"] == pytest.approx(0.6)
    assert monitor.rows[-1].metrics["gpu/memory_used_mib"] == 8192


@LINUX
def test_figures_hold_while_workers_come_and_go(start: Start) -> None:
    """Forks of a 300 MiB process hold next to nothing of their own, at every moment of their lives."""
    code = HOLD.format(mib=300) + (
        "import os, time, threading\n"
        "def come_and_go():\n"
        "  for _ in range(3):\n"
        "    time.sleep(0.4)\n"
        "    pids = []\n"
        "    while len(pids) < 3 and 0 not in pids: pids.append(os.fork())\n"
        "    if 0 in pids: time.sleep(0.4); os._exit(0)\n"
        "    for p in pids: os.waitpid(p, 0)\n"
        "threading.Thread(target=come_and_go, daemon=True).start()\n"
    )
    monitor = watch(start(code).pid, 3.0)
    assert max(point.mib for point in monitor.points) < 400
    assert min(point.mib for point in monitor.points) > 290


def test_time_that_went_to_other_work_is_told_from_ours_and_from_idle() -> None:
    before = rates.Counters(0.0, 0.0, 0.0, 0.0, 0.0, (0.0, 0.0), (0.0, 0.0))
    after = rates.Counters(10.0, 8.0, 1.0, 6.0, 20.0, (0.0, 0.0), (0.0, 0.0))  # two cores, ten seconds
    watched = rates.Rates.__new__(rates.Rates)
    watched._cores = 2
    found = watched._between(before, after)
    assert found["cpu/others"] == pytest.approx((20 - 6 - 8) / 20)
    assert found["cpu/utilisation"] == pytest.approx(0.4)
    assert found["cpu/io_wait"] == pytest.approx(0.05)
