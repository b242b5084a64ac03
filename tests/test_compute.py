"""Compute sizes: names, this machine, and what a run is held to."""

import dataclasses
import gzip
import json
import math
from pathlib import Path

import moto
import psutil
import pytest
import yaml

from roofscale import cgroup, compute
from roofscale.errors import ConfigError

SHIPPED = [name for name in compute.names() if name != compute.LOCAL]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_compute_is_whole(name: str) -> None:
    size = compute.get(name)
    assert size.vcpus >= 1
    assert size.memory_gib >= 1
    assert bool(size.gpu) == (size.gpu_count > 0) == (size.gpu_memory_gib > 0)
    if size.usd_per_hour is not None:
        assert 0 < size.usd_per_hour < 100
        assert size.price_date
        assert size.price_region


def test_a_larger_size_of_a_family_costs_no_less() -> None:
    for smaller, larger in (("ml.m5.large", "ml.m5.xlarge"), ("ml.g5.xlarge", "ml.g5.2xlarge")):
        assert (compute.get(smaller).usd_per_hour or math.nan) < (compute.get(larger).usd_per_hour or math.nan)


def test_sizes_and_disks_are_those_that_ec2_lists() -> None:
    file = Path(moto.__file__).with_name("ec2") / "resources/instance_types.json.gz"
    listed = json.loads(gzip.decompress(file.read_bytes()))
    known = [compute.get(name) for name in SHIPPED if name.removeprefix("ml.") in listed]
    assert len(known) == len(SHIPPED) - 1, "p3 is listed no longer"
    for size in known:
        theirs = listed[size.name.removeprefix("ml.")]
        assert size.vcpus == theirs["VCpuInfo"]["DefaultVCpus"]
        assert size.memory_gib * 1024 == theirs["MemoryInfo"]["SizeInMiB"]
        assert size.disk_gb == theirs.get("InstanceStorageInfo", {}).get("TotalSizeInGB", 0), size.name


def test_usable_gpu_memory_is_less_than_the_label() -> None:
    labels = {"T4": 16e9, "A10G": 24e9, "L4": 24e9, "V100": 16 * 2**30, "A100": 40 * 2**30}
    for size in map(compute.get, SHIPPED):
        assert size.gpu_memory_gib * compute.GIB < labels.get(size.gpu, math.inf)


def test_wrong_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"compute=ml\.m5\.xlrage.*Did you mean 'ml\.m5\.xlarge'"):
        compute.get("ml.m5.xlrage")


@pytest.mark.parametrize("name", ["local:", "local:much", "local:0", "local:-1", "local:nan", "local:inf"])
def test_wrong_local_memory_is_refused_with_an_example(name: str) -> None:
    with pytest.raises(ConfigError, match=r"expected GiB of memory after the colon, such as local:4"):
        compute.get(name)


def test_local_is_this_machine() -> None:
    size = compute.get("local")
    assert 0 < size.memory_gib <= psutil.virtual_memory().total / compute.GIB
    assert 1 <= size.vcpus <= (psutil.cpu_count() or 1)
    assert size.usd_per_hour is None


def test_local_with_memory_changes_the_memory_only() -> None:
    held = compute.get("local:0.5")
    assert held.memory_gib == 0.5
    assert dataclasses.replace(held, name="local", memory_gib=0) == dataclasses.replace(compute.machine(), memory_gib=0)


def test_a_cgroup_limit_and_quota_make_this_machine_smaller(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "memory.stat").write_text("hierarchical_memory_limit 1073741824\n")
    monkeypatch.setattr(cgroup, "own_memory", lambda: cgroup.MemoryCgroup(tmp_path, 1))
    monkeypatch.setattr(cgroup, "cpu_quota", lambda: 0.5)
    assert compute.machine().memory_gib == 1
    assert compute.machine().vcpus == 1


def test_allowance_is_the_smaller_of_compute_and_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "machine", lambda: compute.Compute("local", vcpus=8, memory_gib=32))
    laptop = compute.resource_limits(compute.get("ml.m5.xlarge"))
    assert (laptop.memory_bytes, laptop.cores, laptop.note) == (16 * compute.GIB, 4, "")
    monkeypatch.setattr(compute, "machine", lambda: compute.Compute("local", vcpus=2, memory_gib=15.5))
    small = compute.resource_limits(compute.get("ml.m5.xlarge"))
    assert (small.memory_bytes, small.cores) == (int(15.5 * compute.GIB), 2)
    assert "15.5 of 16 GiB and 2 of 4 vCPU of ml.m5.xlarge" in small.note


def test_another_file_may_be_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"defaults": {}, "computes": {"desk": {"vcpus": 16, "memory_gib": 64}}}))
    assert compute.get("desk", file).vcpus == 16
    assert compute.names(file) == ("local", "desk")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("computes: [1]", "cannot be read as a list of computes"),
        ("{defaults: {}, computes: {a: {vcpus: 1}}}", "cannot be read as a list of computes"),
        ("{defaults: {}, computes: {a: {vcpu: 1, memory_gib: 2}}}", "Did you mean 'vcpus'"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        compute.get("a", file)
