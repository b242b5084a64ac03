"""A simulation of PyTorch's CUDA caching allocator: what it reserves of the GPU for a series of requests.

The rules are those of ``c10/cuda/CUDACachingAllocator.cpp`` and of PyTorch's notes on CUDA memory management: requests
are rounded to 512 bytes and served from the smallest free block that holds them; a block is split where enough is left
over; free neighbours are joined; memory is fetched in segments of 2 MiB for small requests, 20 MiB for middling ones
and multiples of 2 MiB for large ones; blocks are reused within their stream only. Nothing here imports torch.
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
_ROOM_TO_GROW = 2**50  # between the first addresses of expandable segments: more than any of them comes to


@dataclass(frozen=True)
class Settings:
    """What ``PYTORCH_CUDA_ALLOC_CONF`` can say that changes what is reserved."""

    expandable_segments: bool = False
    max_split_size_mb: float = math.inf  # larger blocks are never split, and serve only requests of about their size
    roundup_power2_divisions: int = 1  # requests are rounded up to this many steps between powers of two

    @classmethod
    def parse(cls, text: str) -> "Settings":
        """Read the variable's spelling, such as ``expandable_segments:True,max_split_size_mb:128``.

        Raises:
            ConfigError: an option that is not simulated, or a value that does not fit.
        """
        found: dict[str, bool | float | int] = {}
        for option in filter(None, map(str.strip, text.split(","))):
            name, _, value = option.partition(":")
            try:
                found[name] = _READERS[name](value)
            except (KeyError, ValueError) as error:
                known = ", ".join(_READERS)
                raise ConfigError(
                    f"PYTORCH_CUDA_ALLOC_CONF: {option!r} cannot be simulated; known: {known}, spelled name:value."
                    f"{did_you_mean(name, _READERS)}"
                ) from error
        return cls(**found)  # type: ignore[arg-type]  # the names are those of the fields

    def rounded(self, size: int) -> int:
        """Bytes that a request of ``size`` bytes is counted as."""
        if size < SMALLEST_BLOCK:
            return SMALLEST_BLOCK
        divisions = self.roundup_power2_divisions
        if divisions > 1 and size > SMALLEST_BLOCK * divisions:
            step = 2 ** (size.bit_length() - 1) // divisions
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
    size: int
    address: int
    stream: Hashable
    small: bool
    before: "_Block | None" = None  # neighbours in the same segment
    after: "_Block | None" = None
    free: bool = True

    @property
    def key(self) -> tuple[int, int]:
        """The order in which free blocks are looked through: the smallest first, then the lowest."""
        return self.size, self.address


_Pool = list[tuple[tuple[int, int], _Block]]  # free blocks by their key; no two keys are equal


@dataclass
class CachingAllocator:
    """One GPU's allocator, with no end of memory: what a run would need is asked, not what it would do without.

    Args:
        settings: as PYTORCH_CUDA_ALLOC_CONF would set them.
    """

    settings: Settings = Settings()
    allocated: int = field(default=0, init=False)  # bytes in blocks handed out
    reserved: int = field(default=0, init=False)  # bytes fetched from the GPU
    _free: dict[tuple[Hashable, bool], _Pool] = field(default_factory=lambda: defaultdict(list), init=False)
    _used: dict[int, _Block] = field(default_factory=dict, init=False)
    _tails: dict[tuple[Hashable, bool], _Block] = field(default_factory=dict, init=False)  # ends of expandable segments
    _next_address: int = field(default=0, init=False)

    def malloc(self, name: int, size: int, stream: Hashable = 0) -> None:
        """Hand out a block for ``size`` bytes, to be freed by ``name``."""
        size = self.settings.rounded(size)
        small = size <= SMALL_REQUEST
        block = self._take(size, stream, small) or self._fetch(size, stream, small)
        if self._splits(block, size):
            self._split(block, size)
        block.free = False
        self._used[name] = block
        self.allocated += block.size

    def free(self, name: int) -> None:
        """Take a block back and join it to its free neighbours."""
        block = self._used.pop(name)
        self.allocated -= block.size
        block.free = True
        for neighbour in (block.before, block.after):
            if neighbour is not None and neighbour.free:
                self._withdraw(neighbour)
                block = self._join(block, neighbour)
        self._offer(block)

    def _take(self, size: int, stream: Hashable, small: bool) -> _Block | None:
        """The smallest free block that a request may have, withdrawn."""
        pool = self._free[stream, small]
        place = bisect.bisect_left(pool, (size, -1), key=lambda entry: entry[0])
        if place == len(pool):
            return None
        block = pool[place][1]
        largest_split = self.settings.max_split_size_mb * MIB
        if size < largest_split <= block.size or (size >= largest_split and block.size >= size + LARGE_SEGMENT):
            return None
        return pool.pop(place)[1]

    def _fetch(self, size: int, stream: Hashable, small: bool) -> _Block:
        if self.settings.expandable_segments:
            return self._expand(size, stream, small)
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

    def _expand(self, size: int, stream: Hashable, small: bool) -> _Block:
        """Lengthen the one segment of this stream and pool by whole pages, from its last block where that is free."""
        page = SMALL_SEGMENT if small else LARGE_SEGMENT
        tail = self._tails.get((stream, small))
        have = tail.size if tail is not None and tail.free else 0
        more = -(-(size - have) // page) * page
        self.reserved += more
        if tail is not None and tail.free:
            self._withdraw(tail)
            tail.size += more
            return tail
        address = tail.address + tail.size if tail is not None else _ROOM_TO_GROW * (len(self._tails) + 1)
        block = _Block(more, address, stream, small, before=tail)
        if tail is not None:
            tail.after = block
        self._tails[stream, small] = block
        return block

    def _splits(self, block: _Block, size: int) -> bool:
        left = block.size - size
        if block.small or self.settings.expandable_segments:
            return left >= SMALLEST_BLOCK
        return size < self.settings.max_split_size_mb * MIB and left > SMALL_REQUEST

    def _split(self, block: _Block, size: int) -> None:
        rest = _Block(block.size - size, block.address + size, block.stream, block.small, block, block.after)
        if block.after is not None:
            block.after.before = rest
        if self._tails.get((block.stream, block.small)) is block:
            self._tails[block.stream, block.small] = rest
        block.size, block.after = size, rest
        self._offer(rest)

    def _join(self, block: _Block, neighbour: _Block) -> _Block:
        first, second = (neighbour, block) if neighbour is block.before else (block, neighbour)
        first.size += second.size
        first.after = second.after
        if second.after is not None:
            second.after.before = first
        if self._tails.get((first.stream, first.small)) is second:
            self._tails[first.stream, first.small] = first
        return first

    def _offer(self, block: _Block) -> None:
        bisect.insort(self._free[block.stream, block.small], (block.key, block), key=lambda entry: entry[0])

    def _withdraw(self, block: _Block) -> None:
        pool = self._free[block.stream, block.small]
        pool.pop(bisect.bisect_left(pool, block.key, key=lambda entry: entry[0]))
