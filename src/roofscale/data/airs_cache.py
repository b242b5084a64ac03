"""A folder of what can be made again from the data: who is at work in it, and names that change with the data."""

import contextlib
import hashlib
import math
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from filelock import FileLock, Timeout
from rasterio.errors import RasterioError
from rasterio.windows import Window

from roofscale.data import geotiff
from roofscale.data.airs import AirsSource, Tile, check_label_values
from roofscale.data.file_error import FileError
from roofscale.data.leaks import read_footprint

_POLL_SECONDS = 0.5
_SAY_SECONDS = 10.0


class CacheTask:
    """Work on a cache before training: its threads, whom it tells how far it is, and what may end it early."""

    def __init__(self, threads: int, say: Callable[[str], None], keep_on: Callable[[], bool] = lambda: True) -> None:
        self.threads, self.say, self.keep_on = threads, say, keep_on
        self._began = self._said = time.monotonic()

    def report_progress(self, what: str, done: int, count: int) -> bool:
        """Tell how far it is, every ten seconds; return whether to go on."""
        now = time.monotonic()
        if now - self._said > _SAY_SECONDS:
            self._said = now
            left = f", about {(now - self._began) * (count / done - 1):.0f} s to go" if done else ""
            self.say(f"{what}: {done} of {count}{left}")
        return self.keep_on()


@contextlib.contextmanager
def exclusive_lock(folder: Path, chore: CacheTask) -> Iterator[bool]:
    """Make a folder, and wait until no other process is at work in it; yields False where the chore ends before that.

    The lock ends with its process, however that ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock", poll_interval=_POLL_SECONDS)
    with contextlib.suppress(Timeout):
        lock.acquire(blocking=False)
    if not lock.is_locked:
        chore.say(f"another run is at work in {folder}; waiting for it")
        with contextlib.suppress(Timeout):
            lock.acquire(cancel_check=lambda: not chore.keep_on())
    try:
        yield lock.is_locked
    finally:
        lock.release()


def stat_hash(*files: Path) -> str:
    """Twenty hex digits that name files as they are now: where they lie, size and time of the last change."""
    digest = hashlib.sha256()
    for file in files:
        try:
            state = file.stat()
        except OSError:  # whoever reads it will say so
            digest.update(f"{file} missing\n".encode(errors="surrogateescape"))
        else:
            digest.update(f"{file.resolve()} {state.st_size} {state.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:20]


BANDS = 4  # red, green, blue, roof
BLOCK_PX = 512  # a window of 1024 is four of them, one of 512 a single one
_MOST_DECODED = 3.0  # times a window's px; at phase 5's pace that is half of what loader processes have for a sample
_SPARE_BYTES = 2**30  # left free on the disk, for checkpoints


def slow_tiles(source: AirsSource) -> list[Tile]:
    """The tiles that a source takes windows from which cost more than they should, by the layout of image or label.

    Blocks of 256 px, compressed, cost what their windows hold. Compressed strips as wide as a tile of AIRS cost ten
    times that (windows of 1024 px, benchmarks/results/tile_formats.json).
    """
    return [
        tile
        for tile in (source.tiles[number] for number in source.tiles_taken())
        if any(_decoded(file, source.window_px) > _MOST_DECODED for file in (tile.image, tile.label))
    ]


def _decoded(file: Path, window_px: int) -> float:
    """Px that are decompressed for a whole window, over those that it has; 0 where nothing is."""
    try:
        with geotiff.open_raster(file) as dataset:
            if dataset.compression is None:
                return 0.0
            sides = [
                int(min(math.ceil(window_px / block) * block, size))
                for block, size in zip(dataset.block_shapes[0], dataset.shape, strict=True)
            ]
            return math.prod(sides) / window_px**2
    except FileError:
        return 0.0


def cached_tiles(tiles: Sequence[Tile], folder: Path, most_bytes: float, chore: CacheTask) -> dict[Tile, Path]:
    """The copies of tiles, after making those that are missing as far as they fit; the others are read as they are.

    Each stays, as an epoch reads all tiles in a new order: to drop one for another would only make it again. Copies
    that this run has no use for go first, the longest unused before others.

    Args:
        tiles: whose copies are wanted, in the order in which they are made.
        folder: the cache; several processes may ask for it at once, and one at a time works in it.
        most_bytes: how large it may become.
        chore: tiles copied at once, and so on; what is there when it ends early is used.
    """
    copies = {tile: folder / f"{tile.id}-{stat_hash(tile.image, tile.label)}.tif" for tile in tiles}
    with exclusive_lock(folder, chore) as alone:
        if alone:
            for partial in folder.glob("*.partial"):
                partial.unlink()  # of a process that was killed, as nobody else is at work here
            for copy in copies.values():
                if copy.is_file():
                    os.utime(copy)
            _fits(0, folder, copies.values(), most_bytes)
            _make(copies, folder, most_bytes, chore)
    return {tile: copy for tile, copy in copies.items() if copy.is_file()}


def _make(copies: Mapping[Tile, Path], folder: Path, most_bytes: float, chore: CacheTask) -> None:
    """Make what is missing, as many at once as there are threads."""
    missing = [(tile, copy) for tile, copy in copies.items() if not copy.is_file()]
    with ThreadPoolExecutor(chore.threads) as pool:
        for done in range(0, len(missing), chore.threads):
            if not chore.report_progress("copying AIRS tiles", done, len(missing)):
                return
            some = missing[done : done + chore.threads]
            if not _fits(sum(_at_most(tile) for tile, _ in some), folder, copies.values(), most_bytes):
                chore.say(f"{len(missing) - done} of {len(copies)} AIRS tiles get no copy: {_room(folder, most_bytes)}")
                return
            list(pool.map(_copy, *zip(*some, strict=True)))


def _copy(tile: Tile, copy: Path) -> None:
    """Copy one tile, strip by strip; one with a fault gets no copy, as whoever reads the tile will name the fault."""
    partial = copy.with_suffix(".partial")
    try:
        with geotiff.open_raster(tile.image) as image, geotiff.open_raster(tile.label) as label:
            bands = geotiff.rgb_bands(tile.image, image)
            geotiff.check_band(tile.label, label)
            geotiff.check_same_size(tile.image, image.shape, tile.label, label.shape)
            with rasterio.open(partial, "w", **_profile(*image.shape)) as written:
                for window in _strips(*image.shape):
                    roof_1HW = label.read(window=window)
                    check_label_values(tile.label, int(roof_1HW.max()))
                    written.write(np.concatenate([image.read(bands, window=window), roof_1HW]), window=window)
        partial.replace(copy)
    except (FileError, RasterioError, OSError):  # the disk may be full, too: then it is trained on the originals
        partial.unlink(missing_ok=True)


def _profile(height: int, width: int) -> dict[str, Any]:
    layout = {"tiled": True, "blockxsize": BLOCK_PX, "blockysize": BLOCK_PX, "interleave": "pixel"}
    packed = {"compress": "zstd", "zstd_level": 1, "predictor": 2}
    return {"driver": "GTiff", "dtype": "uint8", "height": height, "width": width, "count": BANDS, **layout, **packed}


def _strips(height: int, width: int) -> Iterator[Window]:
    for row in range(0, height, BLOCK_PX):
        yield Window(0, row, width, min(BLOCK_PX, height - row))


def _at_most(tile: Tile) -> int:
    """What a copy may take: pixels that cannot be compressed."""
    height, width = read_footprint(tile.image).shape or (0, 0)
    return height * width * BANDS


def _fits(need: int, folder: Path, wanted: Collection[Path], most_bytes: float) -> bool:
    """Whether ``need`` bytes more fit, after removing what is not wanted as far as needed.

    With nothing needed, what is wanted is removed as well where there is too much: somebody has lowered the bound.
    """
    there = {file: file.stat() for file in folder.glob("*.tif")}
    used = sum(state.st_size for state in there.values())
    others = sorted(there.keys() - set(wanted), key=lambda file: there[file].st_mtime)
    for file in [*others, *([] if need else [file for file in reversed(list(wanted)) if file in there])]:
        if used + need <= most_bytes:
            break
        file.unlink()
        used -= there[file].st_size
    return used + need <= most_bytes and shutil.disk_usage(folder).free - need > _SPARE_BYTES


def _room(folder: Path, most_bytes: float) -> str:
    used = sum(file.stat().st_size for file in folder.glob("*.tif"))
    free = shutil.disk_usage(folder).free
    return (
        f"{folder} holds {used / 2**30:.1f} GiB of at most {most_bytes / 2**30:g}, and {free / 2**30:.1f} GiB are free "
        "on its disk; raise tile_cache_gib, or make room."
    )
