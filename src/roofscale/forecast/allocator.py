"""Simulation of PyTorch's CUDA caching allocator: the memory that it reserves for a series of requests.

The rules are those of ``c10/cuda/CUDACachingAllocator.cpp`` and of PyTorch's notes on CUDA memory management: requests
are rounded up to 512 bytes and served from the smallest free block that holds them; a block is split if enough of it
remains; free neighbours are merged; memory is reserved in segments of 2 MiB for small requests, 20 MiB for middling
ones and multiples of 2 MiB for large ones; blocks are reused within their stream only. ``_get_free_block``,
``_alloc_block`` and ``_should_split`` are named as in that source. Nothing here imports torch.
"""

import bisect
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field

from roofscale.errors import ConfigError, did_you_mean

MIB = 2**20
SMALLEST_BLOCK = 512
SMALL_REQUEST = MIB  # up to this size requests share segments of their own
SMALL_SEGMENT = 2 * MIB
LARGE_SEGMENT = 20 * MIB
MIDDLING_REQUEST = 10 * MIB  # from this size on a request gets a segment of its own size
LARGE_ROUNDING = 2 * MIB
_ADDRESS_SPACING = 2**50  # bytes between the starts of expandable segments: more than any of them grows to


@dataclass(frozen=True)
class Settings:
    """Options of ``PYTORCH_CUDA_ALLOC_CONF`` that change how much memory is reserved."""

    expandable_segments: bool = False
    max_split_size_mb: float = math.inf  # larger blocks are never split, and serve only requests of about their size
    roundup_power2_divisions: int = 1  # requests are rounded up to this many steps between powers of two

    @classmethod
    def parse(cls, text: str) -> "Settings":
        """Parse the variable's value, such as ``expandable_segments:True,max_split_size_mb:128``.

        Raises:
            ConfigError: an option is not simulated, or its value is invalid.
        """
        options: dict[str, bool | float | int] = {}
        for option in filter(None, map(str.strip, text.split(","))):
            name, _, value = option.partition(":")
            try:
                options[name] = _READERS[name](value)
            except (KeyError, ValueError) as error:
                known = ", ".join(_READERS)
                raise ConfigError(
                    f"PYTORCH_CUDA_ALLOC_CONF: {option!r} cannot be simulated; known: {known}, spelled name:value."
                    f"{did_you_mean(name, _READERS)}"
                ) from error
        return cls(**options)  # type: ignore[arg-type]  # the names are those of the fields

    def rounded(self, size: int) -> int:
        """Return the block size in bytes for a request of ``size`` bytes."""
        if size < SMALLEST_BLOCK:
            return SMALLEST_BLOCK
        divisions = self.roundup_power2_divisions
        if divisions > 1 and size > SMALLEST_BLOCK * divisions:
            step = 2 ** (size.bit_length() - 1) // divisions  # of the power of two at or below the size
            return -(-size // step) * step if size & (size - 1) else size
        return -(-size // SMALLEST_BLOCK) * SMALLEST_BLOCK


def _power_of_two(text: str) -> int:
    value = int(text)
    if value < 1 or value & (value - 1):
        raise ValueError(text)
    return value


_READERS: Mapping[str, Callable[[str], bool | float | int]] = {
    "expandable_segments": {"True": True, "False": False}.__getitem__,
    "max_split_size_mb": float,
    "roundup_power2_divisions": _power_of_two,
}


@dataclass(eq=False)
class _Block:
    size: int  # bytes
    address: int
    stream: Hashable
    small: bool  # of the pool for small requests
    before: "_Block | None" = None  # neighbours in the same segment
    after: "_Block | None" = None
    free: bool = True

    @property
    def key(self) -> tuple[int, int]:
        """Sort key of free blocks: the smallest first, then the lowest address."""
        return self.size, self.address


_Pool = list[tuple[tuple[int, int], _Block]]  # free blocks by their key; no two keys are equal


@dataclass
class CachingAllocator:
    """One GPU's allocator without a memory limit, so that a run's whole need is seen even if the GPU is too small.

    Args:
        settings: options as PYTORCH_CUDA_ALLOC_CONF would set them.
    """

    settings: Settings = Settings()
    allocated: int = field(default=0, init=False)  # bytes in blocks handed out
    reserved: int = field(default=0, init=False)  # bytes of all segments
    _free: dict[tuple[Hashable, bool], _Pool] = field(default_factory=lambda: defaultdict(list), init=False)
    _used: dict[int, _Block] = field(default_factory=dict, init=False)
    _tails: dict[tuple[Hashable, bool], _Block] = field(default_factory=dict, init=False)  # ends of expandable segments
    _next_address: int = field(default=0, init=False)

    def malloc(self, name: int, size: int, stream: Hashable = 0) -> None:
        """Allocate a block for ``size`` bytes; ``free`` releases it by ``name``."""
        size = self.settings.rounded(size)
        small = size <= SMALL_REQUEST
        block = self._get_free_block(size, stream, small) or self._alloc_block(size, stream, small)
        if self._should_split(block, size):
            self._split(block, size)
        block.free = False
        self._used[name] = block
        self.allocated += block.size

    def free(self, name: int) -> None:
        """Release a block and merge it with its free neighbours."""
        block = self._used.pop(name)
        self.allocated -= block.size
        block.free = True
        for neighbour in (block.before, block.after):
            if neighbour is not None and neighbour.free:
                self._remove_free(neighbour)
                block = self._merge(block, neighbour)
        self._insert_free(block)

    def _get_free_block(self, size: int, stream: Hashable, small: bool) -> _Block | None:
        """Remove and return the smallest free block that may serve a request, None if there is none."""
        pool = self._free[stream, small]
        index = bisect.bisect_left(pool, (size, -1), key=lambda entry: entry[0])
        if index == len(pool):
            return None
        block = pool[index][1]
        # Blocks over the limit are never split: they serve neither small requests nor ones that would waste much.
        largest_split = self.settings.max_split_size_mb * MIB
        if size < largest_split <= block.size or (size >= largest_split and block.size >= size + LARGE_SEGMENT):
            return None
        return pool.pop(index)[1]

    def _alloc_block(self, size: int, stream: Hashable, small: bool) -> _Block:
        if self.settings.expandable_segments:
            return self._alloc_expandable_block(size, stream, small)
        if small:
            segment = SMALL_SEGMENT
        elif size < MIDDLING_REQUEST:
            segment = LARGE_SEGMENT
        else:
            segment = -(-size // LARGE_ROUNDING) * LARGE_ROUNDING
        self.reserved += segment
        block = _Block(segment, self._next_address, stream, small)
        self._next_address += segment
        return block

    def _alloc_expandable_block(self, size: int, stream: Hashable, small: bool) -> _Block:
        """Grow the one segment of this stream and pool by whole pages; a free last block is part of the new one."""
        page = SMALL_SEGMENT if small else LARGE_SEGMENT
        tail = self._tails.get((stream, small))
        available = tail.size if tail is not None and tail.free else 0
        added = -(-(size - available) // page) * page
        self.reserved += added
        if tail is not None and tail.free:
            self._remove_free(tail)
            tail.size += added
            return tail
        address = tail.address + tail.size if tail is not None else _ADDRESS_SPACING * (len(self._tails) + 1)
        block = _Block(added, address, stream, small, before=tail)
        if tail is not None:
            tail.after = block
        self._tails[stream, small] = block
        return block

    def _should_split(self, block: _Block, size: int) -> bool:
        remaining = block.size - size
        if block.small or self.settings.expandable_segments:
            return remaining >= SMALLEST_BLOCK
        return size < self.settings.max_split_size_mb * MIB and remaining > SMALL_REQUEST

    def _split(self, block: _Block, size: int) -> None:
        remainder = _Block(block.size - size, block.address + size, block.stream, block.small, block, block.after)
        if block.after is not None:
            block.after.before = remainder
        if self._tails.get((block.stream, block.small)) is block:
            self._tails[block.stream, block.small] = remainder
        block.size, block.after = size, remainder
        self._insert_free(remainder)

    def _merge(self, block: _Block, neighbour: _Block) -> _Block:
        first, second = (neighbour, block) if neighbour is block.before else (block, neighbour)
        first.size += second.size
        first.after = second.after
        if second.after is not None:
            second.after.before = first
        if self._tails.get((first.stream, first.small)) is second:
            self._tails[first.stream, first.small] = first
        return first

    def _insert_free(self, block: _Block) -> None:
        bisect.insort(self._free[block.stream, block.small], (block.key, block), key=lambda entry: entry[0])

    def _remove_free(self, block: _Block) -> None:
        pool = self._free[block.stream, block.small]
        pool.pop(bisect.bisect_left(pool, block.key, key=lambda entry: entry[0]))
