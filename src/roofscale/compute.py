"""Computes: the instances and machines that runs execute on, with their sizes and prices.

Values of ``compute=``: a name of ``compute.yaml`` (``ml.m5.xlarge``), ``local`` for all of this machine, or ``local:4``
for this machine limited to 4 GiB of memory.
"""

import dataclasses
import math
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import yaml

from roofscale import cgroup
from roofscale.errors import ConfigError, did_you_mean

LOCAL = "local"
GPU_EXAMPLE = "ml.g5.xlarge"  # a compute with a GPU, for messages
GIB = 2**30
MIB = 2**20
_FILE = Path(__file__).with_name("compute.yaml")


@dataclass(frozen=True)
class Compute:
    """An instance type or a machine that runs execute on."""

    name: str  # value of ``compute=``
    vcpus: int
    memory_gib: float
    gpu: str = ""  # model, empty = none
    gpu_count: int = 0
    gpu_memory_gib: float = 0.0  # usable memory of each GPU; less than the vendor's nominal size
    disk_gb: int = 0  # total of its local disks; 0 = none, a volume of the requested size is attached instead
    usd_per_hour: float | None = None  # on-demand price; None if not known or free
    price_date: str = ""  # ISO date of that price
    price_region: str = ""  # AWS region of that price


@dataclass(frozen=True)
class ResourceLimits:
    """The limits of a run on this machine, so that it can use no more than its compute has."""

    memory_bytes: int
    cores: int
    note: str = ""  # one line if the machine has less than the compute, else empty


def get(name: str, path: Path | None = None) -> Compute:
    """Look up a compute.

    Args:
        name: a value of ``compute=``.
        path: a file in compute.yaml's format that replaces Roofscale's own.

    Raises:
        ConfigError: an unknown name, a memory that is no positive number, or a file in another format.
    """
    base, colon, memory = name.partition(":")
    if base == LOCAL:
        return _limited_local(name, memory) if colon else machine()
    computes = _read(path or _FILE)
    if name not in computes:
        raise ConfigError(
            f"compute={name}: not a compute that Roofscale knows.{did_you_mean(name, [LOCAL, *computes])} "
            "local:4 means this machine held to 4 GiB; other sizes can be added to compute.yaml."
        )
    return computes[name]


def names(path: Path | None = None) -> tuple[str, ...]:
    """Return the names of all computes, ``local`` first."""
    return (LOCAL, *_read(path or _FILE))


def machine() -> Compute:
    """Measure this machine: its memory and cores, as far as cgroup and CPU affinity allow this process to use them."""
    own = cgroup.own_memory()
    limit = own.limit() if own else None
    total = psutil.virtual_memory().total
    return Compute(name=LOCAL, vcpus=_cores(), memory_gib=min(total, limit or total) / GIB)


def resource_limits(wanted: Compute) -> ResourceLimits:
    """Compute a run's limits on this machine: the smaller of what it has and what ``wanted`` has."""
    here = machine()
    missing = []
    if wanted.memory_gib > here.memory_gib:
        missing.append(f"{here.memory_gib:.1f} of {wanted.memory_gib:g} GiB")
    if wanted.vcpus > here.vcpus:
        missing.append(f"{here.vcpus} of {wanted.vcpus} vCPU")
    note = f"this machine gives only {' and '.join(missing)} of {wanted.name}" if missing else ""
    memory = min(wanted.memory_gib, here.memory_gib)
    return ResourceLimits(memory_bytes=int(memory * GIB), cores=min(wanted.vcpus, here.vcpus), note=note)


def shm_free_mib(wanted: Compute) -> float | None:
    """Read the free space of /dev/shm, MiB; None if ``wanted`` is not this machine, or the folder does not exist."""
    if not wanted.name.startswith(LOCAL):
        return None
    try:
        shm = os.statvfs("/dev/shm")
    except OSError:
        return None
    return shm.f_bavail * shm.f_frsize / MIB


def _limited_local(name: str, memory: str) -> Compute:
    try:
        gib = float(memory)
    except ValueError:
        gib = math.nan
    if not (math.isfinite(gib) and gib > 0):
        raise ConfigError(f"compute={name}: expected GiB of memory after the colon, such as local:4 or local:0.5.")
    return dataclasses.replace(machine(), name=name, memory_gib=gib)


def _cores() -> int:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup.cpu_quota()
    return max(1, min(allowed, math.ceil(quota))) if quota else allowed


@cache
def _read(path: Path) -> dict[str, Compute]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {name: _entry(name, {**raw["defaults"], **sizes}) for name, sizes in raw["computes"].items()}
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path}: cannot be read as a list of computes ({error!r}); expected the layout of Roofscale's own "
            "compute.yaml: defaults, and under computes a name with its sizes."
        ) from error


def _entry(name: str, sizes: dict[str, Any]) -> Compute:
    known = {field.name for field in dataclasses.fields(Compute)} - {"name"}
    for key in sizes:
        if key not in known:
            raise ConfigError(f"compute {name}: {key!r} is no property of a compute.{did_you_mean(key, known)}")
    return Compute(name=name, **{**sizes, "price_date": str(sizes.get("price_date", ""))})
