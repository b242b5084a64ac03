"""The allocator's simulation against PyTorch's published rules, and against what must hold whatever is asked of it."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofscale.errors import ConfigError
from roofscale.forecast.allocator import MIB, CachingAllocator, Settings


def reserved_after(*sizes: int, settings: Settings = Settings()) -> int:  # noqa: B008  # frozen
    allocator = CachingAllocator(settings)
    for name, size in enumerate(sizes):
        allocator.malloc(name, size)
    return allocator.reserved


@pytest.mark.parametrize(
    ("size", "segment"),
    [(1, 2 * MIB), (MIB, 2 * MIB), (MIB + 1, 20 * MIB), (10 * MIB - 512, 20 * MIB), (10 * MIB, 10 * MIB),
     (10 * MIB + 1, 12 * MIB), (33 * MIB, 34 * MIB)],
)  # fmt: skip
def test_memory_is_fetched_in_the_published_segments(size: int, segment: int) -> None:
    assert reserved_after(size) == segment


def test_requests_are_counted_in_512_bytes() -> None:
    allocator = CachingAllocator()
    allocator.malloc(0, 1)
    allocator.malloc(1, 513)
    assert allocator.allocated == 512 + 1024


def test_small_requests_share_a_segment_and_large_ones_do_not_enter_it() -> None:
    assert reserved_after(*[MIB] * 2) == 2 * MIB
    assert reserved_after(*[MIB] * 3) == 4 * MIB
    assert reserved_after(512, 2 * MIB) == 22 * MIB


def test_a_freed_block_is_reused_and_a_neighbour_joined() -> None:
    allocator = CachingAllocator()
    for name in range(4):
        allocator.malloc(name, 5 * MIB)  # the four fill one segment
    allocator.free(1)
    allocator.free(2)
    allocator.malloc(9, 10 * MIB - 512)  # only fits if the two were joined
    assert allocator.reserved == 20 * MIB


def test_a_large_block_with_little_left_over_is_given_out_whole() -> None:
    allocator = CachingAllocator()
    allocator.malloc(0, 20 * MIB)
    allocator.free(0)
    allocator.malloc(1, 19 * MIB)  # 1 MiB is left, not more than SMALL_REQUEST
    assert (allocator.allocated, allocator.reserved) == (20 * MIB, 20 * MIB)
    allocator.free(1)
    allocator.malloc(2, 19 * MIB - 512)
    assert allocator.allocated == 19 * MIB - 512


def test_the_smallest_block_that_fits_is_taken() -> None:
    allocator = CachingAllocator()
    for name, size in enumerate((40, 30, 20)):
        allocator.malloc(name, size * MIB)
    for name in range(3):
        allocator.free(name)
    allocator.malloc(3, 19 * MIB)
    allocator.malloc(4, 29 * MIB)
    allocator.malloc(5, 39 * MIB)
    assert allocator.reserved == 90 * MIB


def test_blocks_are_reused_within_their_stream_only() -> None:
    allocator = CachingAllocator()
    allocator.malloc(0, 20 * MIB, stream="compute")
    allocator.free(0)
    allocator.malloc(1, 20 * MIB, stream="copy")
    assert allocator.reserved == 40 * MIB
    allocator.malloc(2, 20 * MIB, stream="compute")
    assert allocator.reserved == 40 * MIB


def test_a_block_above_max_split_size_is_kept_whole_for_its_like() -> None:
    settings = Settings.parse("max_split_size_mb:64")
    allocator = CachingAllocator(settings)
    allocator.malloc(0, 100 * MIB)
    allocator.free(0)
    allocator.malloc(1, 30 * MIB)  # may not split it
    assert allocator.reserved == 130 * MIB
    allocator.malloc(2, 90 * MIB)  # of its kind, and no more than 20 MiB smaller
    assert allocator.reserved == 130 * MIB


def test_rounding_by_divisions_of_powers_of_two() -> None:
    settings = Settings.parse("roundup_power2_divisions:4")
    assert settings.rounded(1200 * 1024) == 1280 * 1024  # between 1024 and 2048 KiB: 1024, 1280, 1536, 1792
    assert settings.rounded(1024 * 1024) == 1024 * 1024
    assert settings.rounded(700) == 1024  # too small for divisions


def test_expandable_segments_grow_instead_of_leaving_holes() -> None:
    growing = [20 * MIB, 24 * MIB, 30 * MIB, 36 * MIB]

    def reserved(settings: Settings) -> int:
        allocator = CachingAllocator(settings)
        for name, size in enumerate(growing):
            allocator.malloc(name, size)
            allocator.free(name)
        return allocator.reserved

    assert reserved(Settings()) == sum(growing)
    assert reserved(Settings.parse("expandable_segments:True")) == 40 * MIB


@pytest.mark.parametrize(
    "text", ["max_split_size:3", "expandable_segments:maybe", "roundup_power2_divisions:3", "backend:cudaMallocAsync"]
)
def test_a_setting_that_cannot_be_simulated_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="cannot be simulated"):
        Settings.parse(text)


REQUESTS = st.lists(st.tuples(st.booleans(), st.integers(1, 64 * MIB)), max_size=60)
SETTINGS = st.sampled_from(["", "expandable_segments:True", "max_split_size_mb:32", "roundup_power2_divisions:8"])


@given(REQUESTS, SETTINGS)
def test_nothing_is_lost_or_given_out_twice(requests: list[tuple[bool, int]], text: str) -> None:
    settings = Settings.parse(text)
    allocator = CachingAllocator(settings)
    alive: dict[int, int] = {}
    for name, (frees, size) in enumerate(requests):
        if frees and alive:
            oldest = next(iter(alive))
            allocator.free(oldest)
            del alive[oldest]
        else:
            allocator.malloc(name, size)
            alive[name] = settings.rounded(size)
        spans = sorted((b.address, b.address + b.size) for b in allocator._used.values())
        assert all(one[1] <= two[0] for one, two in itertools.pairwise(spans)), "two blocks overlap"
        assert sum(alive.values()) <= allocator.allocated <= allocator.reserved
        free = sum(entry[1].size for pool in allocator._free.values() for entry in pool)
        assert allocator.allocated + free == allocator.reserved, "bytes were lost"
    for name in list(alive):
        allocator.free(name)
    assert allocator.allocated == 0
