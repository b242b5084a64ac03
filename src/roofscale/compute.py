"""Where a run executes and how much it has: sizes and prices from ``compute.yaml``, and this machine's own.

Spellings of ``compute=``: a name of compute.yaml (``ml.m5.xlarge``), ``local`` for all that this machine gives, or
``local:4`` for this machine held to 4 GiB of memory.
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
GIB = 2**30
MIB = 2**20
_FILE = Path(__file__).with_name("compute.yaml")


@dataclass(frozen=True)
class Compute:
    """One place to run."""

    name: str
    vcpus: int
    memory_gib: float
    gpu: str = ""  # model, empty = none
    gpu_count: int = 0
    gpu_memory_gib: float = 0.0  # usable, of each GPU; less than the vendor's label says
    disk_gb: int = 0  # of its own, all together; 0 = none, and as large a volume as is asked for
    usd_per_hour: float | None = None  # on demand; None = not known, or nothing to pay
    price_date: str = ""  # ISO date at which that price was listed
    price_region: str = ""


@dataclass(frozen=True)
class ResourceLimits:
    """What a run on this machine is held to, so that it sees no more than its compute has."""

    memory_bytes: int
    cores: int
    note: str = ""  # one line where the machine has less than the compute, else empty


def get(name: str, path: Path | None = None) -> Compute:
    """Look up a compute by the name that ``compute=`` takes; ``path`` is another file in compute.yaml's format.

    Raises:
        ConfigError: an unknown name, a memory that is no positive number, or a file that does not fit.
    """
    base, colon, memory = name.partition(":")
    if base == LOCAL:
        return _held_local(name, memory) if colon else machine()
    known = _read(path or _FILE)
    if name not in known:
        raise ConfigError(
            f"compute={name}: not a compute that Roofscale knows.{did_you_mean(name, [LOCAL, *known])} "
            "local:4 means this machine held to 4 GiB; other sizes can be added to compute.yaml."
        )
    return known[name]


def names(path: Path | None = None) -> tuple[str, ...]:
    """All names, ``local`` first."""
    return (LOCAL, *_read(path or _FILE))


def machine() -> Compute:
    """This machine: physical memory and cores, or what its cgroup and CPU affinity leave of them."""
    own = cgroup.own_memory()
    limit = own.limit() if own else None
    total = psutil.virtual_memory().total
    return Compute(name=LOCAL, vcpus=_cores(), memory_gib=min(total, limit or total) / GIB)


def resource_limits(wanted: Compute) -> ResourceLimits:
    """What this machine can give of ``wanted``: the smaller of the two, with a note where that is less."""
    here = machine()
    lacking = []
    if wanted.memory_gib > here.memory_gib:
        lacking.append(f"{here.memory_gib:.1f} of {wanted.memory_gib:g} GiB")
    if wanted.vcpus > here.vcpus:
        lacking.append(f"{here.vcpus} of {wanted.vcpus} vCPU")
    note = f"this machine gives only {' and '.join(lacking)} of {wanted.name}" if lacking else ""
    memory = min(wanted.memory_gib, here.memory_gib)
    return ResourceLimits(memory_bytes=int(memory * GIB), cores=min(wanted.vcpus, here.vcpus), note=note)


def shm_free_mib(wanted: Compute) -> float | None:
    """What /dev/shm has left, MiB; None where ``wanted`` is not this machine, or where there is no such folder."""
    if not wanted.name.startswith(LOCAL):
        return None
    try:
        shm = os.statvfs("/dev/shm")
    except OSError:
        return None
    return shm.f_bavail * shm.f_frsize / MIB


def _held_local(name: str, memory: str) -> Compute:
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
