"""Control groups (v1 and v2) of the Linux kernel: the one of this process, and its memory and CPU limits and counters.

Read only. The files are documented in the kernel's admin-guide/cgroup-v1/memory.rst and admin-guide/cgroup-v2.rst.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_USED = {1: "memory.usage_in_bytes", 2: "memory.current"}
_PEAK = {1: "memory.max_usage_in_bytes", 2: "memory.peak"}
_KILLS = {1: "memory.oom_control", 2: "memory.events"}
_UNLIMITED_V1 = 2**62  # v1 reports 2**63 less a page, whose size varies, for no limit
# In v1 the plain counters leave out child groups, which the total_ ones include; in v2 all include them.
_STAT_PREFIX = {1: "total_", 2: ""}


@dataclass(frozen=True)
class MemoryUse:
    """The memory use of a cgroup at one moment, bytes."""

    working: int  # usage less inactive page cache, which the kernel reclaims before it kills a process
    shm: int  # shared memory and tmpfs pages, part of ``working``


@dataclass(frozen=True)
class MemoryCgroup:
    """One cgroup with a memory controller."""

    path: Path
    version: int  # 1 or 2

    def use(self) -> MemoryUse:
        """Read the current memory use.

        Raises:
            OSError: the cgroup no longer exists.
        """
        stat = _table(self.path / "memory.stat")
        prefix = _STAT_PREFIX[self.version]
        used = int((self.path / _USED[self.version]).read_text())
        return MemoryUse(max(0, used - stat.get(f"{prefix}inactive_file", 0)), stat.get(f"{prefix}shmem", 0))

    def kernel_peak(self) -> int | None:
        """Read the kernel's peak usage, bytes, page cache included; None if it has none (v2 before Linux 5.19)."""
        return _number(self.path / _PEAK[self.version])

    def oom_kills(self) -> int:
        """Read the number of processes in this cgroup that the kernel's OOM killer has killed."""
        with contextlib.suppress(OSError):
            return _table(self.path / _KILLS[self.version]).get("oom_kill", 0)
        return 0

    def limit(self) -> int | None:
        """Read the smallest memory limit of this group and its ancestors, bytes; None if unlimited."""
        if self.version == 1:
            limit = _table(self.path / "memory.stat").get("hierarchical_memory_limit", _UNLIMITED_V1)
            return limit if limit < _UNLIMITED_V1 else None
        above = (_number(folder / "memory.max") for folder in (self.path, *self.path.parents))
        return min((limit for limit in above if limit is not None), default=None)

    def processes(self) -> list[int]:
        """Return the ids of the processes in this cgroup."""
        with contextlib.suppress(OSError):
            return [int(line) for line in (self.path / "cgroup.procs").read_text().split()]
        return []


def own_memory(proc: Path = Path("/proc")) -> MemoryCgroup | None:
    """Return the memory cgroup of this process; None if there is none (macOS, a v2 root without the controller)."""
    for folder, version in _own(proc, "memory"):
        if (folder / _USED[version]).exists():
            return MemoryCgroup(folder, version)
    return None


def machine_oom_kills(proc: Path = Path("/proc")) -> int:
    """Read the number of processes of all users that the OOM killer has killed since the machine started."""
    with contextlib.suppress(OSError):
        return _table(proc / "vmstat").get("oom_kill", 0)
    return 0


def cpu_quota(proc: Path = Path("/proc")) -> float | None:
    """Read the CPU quota of this process's cgroup, in cores; None if it sets none."""
    for folder, version in _own(proc, "cpu"):
        if version == 2:
            with contextlib.suppress(OSError, ValueError):
                quota, period = (folder / "cpu.max").read_text().split()
                return int(quota) / int(period)  # 'max', which is no quota, raises ValueError
        else:
            quota_us, period_us = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
            if quota_us is not None and quota_us > 0 and period_us:  # -1 is no quota
                return quota_us / period_us
    return None


def _own(proc: Path, controller: str) -> Iterator[tuple[Path, int]]:
    """Yield (folder, version) of this process's cgroups that may have ``controller``, v1 before v2."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
        mounts = (proc / "self/mountinfo").read_text().splitlines()
    except OSError:
        return
    for line in sorted(lines, key=lambda entry: entry.startswith("0::")):
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            yield from ((folder, 1) for folder in _mounted(mounts, "cgroup", controller, path))
        elif not controllers:
            yield from ((folder, 2) for folder in _mounted(mounts, "cgroup2", "", path))


def _mounted(mounts: list[str], kind: str, option: str, path: str) -> Iterator[Path]:
    """Yield the folders at which cgroup ``path`` of a hierarchy is mounted (fields of mountinfo, see proc(5))."""
    for line in mounts:
        before, _, after = line.partition(" - ")
        filesystem, _, options = after.split(" ", 2)
        if filesystem != kind or (option and option not in options.split(",")):
            continue
        root, mount_point = before.split(" ")[3:5]
        inside = Path(path)
        relative = inside.relative_to(root) if inside.is_relative_to(root) else Path()
        yield Path(mount_point) / relative


def _table(file: Path) -> dict[str, int]:
    pairs = (line.split() for line in file.read_text().splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # absent, or 'max'
        return None
