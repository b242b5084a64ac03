"""Control groups read from stand-in files in both versions' layouts."""

from pathlib import Path

import pytest

from roofscale import cgroup
from roofscale.cgroup import MemoryCgroup, MemoryUse

UNLIMITED_V1 = 9223372036854771712


def stand_in(root: Path, lines: str, mounts: str) -> Path:
    """A /proc whose own process is in the cgroups that ``lines`` say."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(lines)
    (root / "proc/self/mountinfo").write_text(mounts)
    return root / "proc"


def mount(folder: Path, kind: str, options: str, root: str = "/") -> str:
    return f"31 23 0:28 {root} {folder} rw,relatime shared:9 - {kind} {kind} rw,{options}\n"


def test_v1_is_found_below_its_mount_and_read(tmp_path: Path) -> None:
    group = tmp_path / "memory/job"
    group.mkdir(parents=True)
    (group / "memory.usage_in_bytes").write_text("1000\n")
    (group / "memory.stat").write_text("shmem 1\ninactive_file 2\ntotal_inactive_file 300\ntotal_shmem 40\n")
    (group / "memory.max_usage_in_bytes").write_text("1500\n")
    (group / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    proc = stand_in(tmp_path, "4:memory:/job\n2:cpu,cpuacct:/\n0::/\n", mount(tmp_path / "memory", "cgroup", "memory"))
    own = cgroup.own_memory(proc)
    assert own == MemoryCgroup(group, 1)
    assert own.use() == MemoryUse(working=700, shm=40)
    assert own.kernel_peak() == 1500
    assert own.oom_kills() == 3


def test_v2_is_found_in_a_container_and_read(tmp_path: Path) -> None:
    group = tmp_path / "unified"
    group.mkdir()
    (group / "memory.current").write_text("1000\n")
    (group / "memory.stat").write_text("anon 600\ninactive_file 250\nshmem 20\n")
    (group / "memory.events").write_text("low 0\nhigh 0\nmax 7\noom 1\noom_kill 2\n")
    (group / "memory.max").write_text("max\n")
    proc = stand_in(tmp_path, "0::/docker/abc\n", mount(group, "cgroup2", "nsdelegate", root="/docker/abc"))
    own = cgroup.own_memory(proc)
    assert own == MemoryCgroup(group, 2)
    assert own.use() == MemoryUse(working=750, shm=20)
    assert own.kernel_peak() is None  # no memory.peak before Linux 5.19
    assert own.oom_kills() == 2
    assert own.limit() is None


def test_v2_limit_is_the_smallest_up_the_tree(tmp_path: Path) -> None:
    group = tmp_path / "outer/inner"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max")
    (group.parent / "memory.max").write_text("4096")
    assert MemoryCgroup(group, 2).limit() == 4096


def test_hybrid_prefers_the_hierarchy_that_has_the_controller(tmp_path: Path) -> None:
    for folder in ("memory", "unified"):
        (tmp_path / folder).mkdir()
    (tmp_path / "memory/memory.usage_in_bytes").write_text("1")
    mounts = mount(tmp_path / "unified", "cgroup2", "") + mount(tmp_path / "memory", "cgroup", "memory")
    proc = stand_in(tmp_path, "0::/\n4:memory:/\n", mounts)
    assert cgroup.own_memory(proc) == MemoryCgroup(tmp_path / "memory", 1)


@pytest.mark.parametrize("lines", ["", "0::/\n", "4:memory:/\n"])
def test_no_memory_cgroup_is_none(tmp_path: Path, lines: str) -> None:
    assert cgroup.own_memory(stand_in(tmp_path, lines, "")) is None
    assert cgroup.own_memory(tmp_path / "nothing") is None


def test_cpu_quota_in_both_versions(tmp_path: Path) -> None:
    for folder in ("cpu", "unified"):
        (tmp_path / folder).mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("150000\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    v1 = stand_in(tmp_path / "1", "2:cpu,cpuacct:/\n", mount(tmp_path / "cpu", "cgroup", "cpu,cpuacct"))
    v2 = stand_in(tmp_path / "2", "0::/\n", mount(tmp_path / "unified", "cgroup2", ""))
    assert cgroup.cpu_quota(v1) == 1.5
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("-1\n")
    assert cgroup.cpu_quota(v1) is None
    assert cgroup.cpu_quota(v2) is None
    (tmp_path / "unified/cpu.max").write_text("max 100000\n")
    assert cgroup.cpu_quota(v2) is None
    (tmp_path / "unified/cpu.max").write_text("50000 100000\n")
    assert cgroup.cpu_quota(v2) == 0.5


def test_a_group_that_is_gone_reads_as_empty(tmp_path: Path) -> None:
    gone = MemoryCgroup(tmp_path / "gone", 1)
    assert gone.oom_kills() == 0
    assert gone.kernel_peak() is None
    assert gone.processes() == []
    with pytest.raises(OSError, match=r"memory\.stat"):
        gone.use()
