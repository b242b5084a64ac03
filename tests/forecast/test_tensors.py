"""What a step's tensors take of the host: known traces, the allocator's threshold, and peaks that were measured."""

import dataclasses
import math

import pytest

from roofscale.config import RunConfig
from roofscale.forecast.host_memory import MemoryProfile
from roofscale.forecast.step_tensors import peak_mib, tensors_mib
from roofscale.forecast.trace import Storage, Trace

MIB = 2**20
WEIGHTS = Storage(100 * MIB, "parameters", "")
SMALL = Storage(0, "activations", "", per_sample=8 * MIB)
LARGE = Storage(0, "activations", "", per_sample=40 * MIB)
TRACE = Trace((WEIGHTS, SMALL, LARGE, SMALL), (0, 1, 2, 1, 3, 2, 3))

# Measured peaks, MiB, by batch, each the mean of one to four runs: U-Net at 512 px, channels_last, no workers.
MEASURED = {
    ("resnet34", "bf16"): {1: 961, 2: 1275, 3: 1533, 4: 1642, 6: 2147, 8: 2538, 16: 4260},
    ("resnet34", "fp32"): {1: 1169, 2: 1580, 4: 2513, 8: 4075},
    ("mobilenetv2_100", "bf16"): {1: 790, 2: 1192, 4: 1910, 6: 2405, 8: 3179},
}


def test_the_peak_counts_what_is_alive_at_once_and_gaps_between_small_blocks() -> None:
    assert peak_mib(TRACE, 3) == pytest.approx(100 + 24 + 120 + 24 / 4)
    assert peak_mib(TRACE, 4) == pytest.approx(100 + 32 + 160)  # of 32 MiB each: mapped on their own
    assert peak_mib(TRACE, 4, largest_on_heap=33 * MIB) == pytest.approx(100 + 32 + 160 + 32 / 4)
    assert peak_mib(TRACE, 4, largest_on_heap=0) == pytest.approx(100 + 32 + 160)


def test_gaps_do_not_grow_beyond_what_was_ever_seen() -> None:
    crowded = Trace((dataclasses.replace(SMALL, per_sample=4 * MIB),) * 300, (*range(300), *range(300)))
    assert peak_mib(crowded, 1) == pytest.approx(300 * 4 + 200)


def test_gaps_grow_with_the_tensors_if_large_blocks_are_on_the_heap_too() -> None:
    crowded = Trace((dataclasses.replace(SMALL, per_sample=4 * MIB),) * 300, (*range(300), *range(300)))
    assert peak_mib(crowded, 1, math.inf) == pytest.approx(300 * 4 * 1.25)


@pytest.mark.parametrize("malloc", ["MALLOC_MMAP_MAX_=0", "GLIBC_TUNABLES=glibc.malloc.mmap_max=0"])
def test_a_process_that_maps_nothing_has_more_on_the_heap(malloc: str) -> None:
    assert tensors_mib(RunConfig(), "fp32", malloc, 4) > 1.05 * tensors_mib(RunConfig(), "fp32", "", 4)
    assert tensors_mib(RunConfig(), "fp32", "MALLOC_MMAP_MAX_=8", 4) == tensors_mib(RunConfig(), "fp32", "", 4)


@pytest.mark.parametrize("malloc", ["MALLOC_MMAP_THRESHOLD_=65536", "GLIBC_TUNABLES=glibc.malloc.mmap_threshold=65536"])
def test_a_threshold_that_is_set_leaves_less_on_the_heap(malloc: str) -> None:
    small = RunConfig(encoder="resnet18", image_size=64)
    assert tensors_mib(small, "fp32", malloc, 4) < 0.9 * tensors_mib(small, "fp32", "MALLOC_ARENA_MAX=2", 4)
    assert tensors_mib(small, "fp32", "", 4) == tensors_mib(small, "fp32", "MALLOC_ARENA_MAX=2", 4)


@pytest.mark.parametrize(("encoder", "precision"), MEASURED)
def test_measured_peaks_lie_above_the_tensors_by_what_interpreter_and_libraries_take(encoder, precision) -> None:
    kind = MemoryProfile.of(RunConfig(encoder=encoder), precision, 2)
    measured = MEASURED[encoder, precision]
    base = {batch: mib - kind.tensors_mib(batch) for batch, mib in measured.items()}
    middle = sum(base.values()) / len(base)
    assert 250 < middle < 420
    assert all(abs(base[batch] - middle) < 0.05 * mib for batch, mib in measured.items())
