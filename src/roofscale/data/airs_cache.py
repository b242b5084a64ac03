"""The cache of AIRS tile copies in a layout that windows are fast to read from, and the locking of cache folders.

A copy's name contains a hash of the state of its originals, so that changed data is copied again.
"""

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

BANDS = 4  # of a copy: red, green, blue, roof
BLOCK_PX = 512  # side of a copy's blocks: an aligned window of 1024 px covers four of them, one of 512 px a single one
# A tile is slow if the blocks that a window touches hold more than this many times its px: at the pace of phase 5,
# decoding them takes half the time that loader processes have for a sample.
_MAX_DECODED_RATIO = 3.0
_SPARE_BYTES = 2**30  # left free on the disk, for checkpoints
_POLL_SECONDS = 0.5
_REPORT_SECONDS = 10.0


class CacheTask:
    """Work on a cache before training: the number of threads, the reporter, and the condition to continue.

    Args:
        threads: number of tiles to process at once.
        say: called with progress messages for the user.
        keep_on: called between tiles; False ends the work early.
    """

    def __init__(self, threads: int, say: Callable[[str], None], keep_on: Callable[[], bool] = lambda: True) -> None:
        self.threads, self.say, self.keep_on = threads, say, keep_on
        self._started = self._last_report = time.monotonic()

    def report_progress(self, what: str, done: int, count: int) -> bool:
        """Report progress if ten seconds have passed since the last report; return whether to continue."""
        now = time.monotonic()
        if now - self._last_report > _REPORT_SECONDS:
            self._last_report = now
            remaining = f", about {(now - self._started) * (count / done - 1):.0f} s to go" if done else ""
            self.say(f"{what}: {done} of {count}{remaining}")
        return self.keep_on()


@contextlib.contextmanager
def exclusive_lock(folder: Path, task: CacheTask) -> Iterator[bool]:
    """Create a folder and lock it, waiting for another process that has the lock.

    Yields whether the lock was obtained; False if ``task`` ends first. The system releases the lock of a process that
    is killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock", poll_interval=_POLL_SECONDS)
    with contextlib.suppress(Timeout):
        lock.acquire(blocking=False)
    if not lock.is_locked:
        task.say(f"another run is at work in {folder}; waiting for it")
        with contextlib.suppress(Timeout):
            lock.acquire(cancel_check=lambda: not task.keep_on())
    try:
        yield lock.is_locked
    finally:
        lock.release()


def stat_hash(*files: Path) -> str:
    """Return twenty hex digits that identify the state of files: path, size and time of the last change."""
    digest = hashlib.sha256()
    for file in files:
        try:
            state = file.stat()
        except OSError:  # reading the file raises the error for the user
            digest.update(f"{file} missing\n".encode(errors="surrogateescape"))
        else:
            digest.update(f"{file.resolve()} {state.st_size} {state.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:20]


def slow_tiles(source: AirsSource) -> list[Tile]:
    """Return the tiles of a source that windows are slow to read from, by the block layout of image or label.

    Of compressed blocks of 256 px, little more than the window is decompressed. Compressed strips as wide as a tile of
    AIRS cost ten times as much (windows of 1024 px, benchmarks/results/2026-11-24/tile_formats.json).
    """
    return [
        tile
        for tile in (source.tiles[number] for number in source.tiles_taken())
        if any(_decoded_ratio(file, source.window_px) > _MAX_DECODED_RATIO for file in (tile.image, tile.label))
    ]


def _decoded_ratio(file: Path, window_px: int) -> float:
    """Return the px that are decompressed for one window over the px of the window; 0 if not compressed."""
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


def cached_tiles(tiles: Sequence[Tile], folder: Path, most_bytes: float, task: CacheTask) -> dict[Tile, Path]:
    """Make the missing copies of tiles as far as they fit into the cache, and return all copies that exist.

    A tile without a copy is read from its original. No copy of these tiles is removed for another one: an epoch reads
    all tiles in a new order, so it would only be made again. Copies of other runs are removed to make room, least
    recently used first.

    Args:
        tiles: the tiles to copy, in this order.
        folder: the cache; of several processes that call this at once, one at a time works in it.
        most_bytes: the largest size of the cache.
        task: number of threads, reporter and condition to continue; copies made before an early end are used.
    """
    copies = {tile: folder / f"{tile.id}-{stat_hash(tile.image, tile.label)}.tif" for tile in tiles}
    with exclusive_lock(folder, task) as locked:
        if locked:
            for partial in folder.glob("*.partial"):
                partial.unlink()  # left by a process that was killed: with the lock held, no other one writes here
            for copy in copies.values():
                if copy.is_file():
                    os.utime(copy)  # the time of last use, by which copies are removed
            _make_room(0, folder, copies.values(), most_bytes)
            _make_missing(copies, folder, most_bytes, task)
    return {tile: copy for tile, copy in copies.items() if copy.is_file()}


def _make_missing(copies: Mapping[Tile, Path], folder: Path, most_bytes: float, task: CacheTask) -> None:
    """Make the missing copies, as many at once as there are threads."""
    missing = [(tile, copy) for tile, copy in copies.items() if not copy.is_file()]
    with ThreadPoolExecutor(task.threads) as pool:
        for done in range(0, len(missing), task.threads):
            if not task.report_progress("copying AIRS tiles", done, len(missing)):
                return
            batch = missing[done : done + task.threads]
            if not _make_room(sum(_max_copy_bytes(tile) for tile, _ in batch), folder, copies.values(), most_bytes):
                reason = _space_message(folder, most_bytes)
                task.say(f"{len(missing) - done} of {len(copies)} AIRS tiles get no copy: {reason}")
                return
            list(pool.map(_copy, *zip(*batch, strict=True)))


def _copy(tile: Tile, copy: Path) -> None:
    """Copy one tile, strip by strip; a broken tile gets no copy, and reading its original raises the error."""
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
    except (FileError, RasterioError, OSError):  # if the disk is full, training reads the originals
        partial.unlink(missing_ok=True)


def _profile(height: int, width: int) -> dict[str, Any]:
    layout = {"tiled": True, "blockxsize": BLOCK_PX, "blockysize": BLOCK_PX, "interleave": "pixel"}
    packed = {"compress": "zstd", "zstd_level": 1, "predictor": 2}
    return {"driver": "GTiff", "dtype": "uint8", "height": height, "width": width, "count": BANDS, **layout, **packed}


def _strips(height: int, width: int) -> Iterator[Window]:
    for row in range(0, height, BLOCK_PX):
        yield Window(0, row, width, min(BLOCK_PX, height - row))


def _max_copy_bytes(tile: Tile) -> int:
    """Return the largest possible size of a tile's copy: that of its pixels without compression."""
    height, width = read_footprint(tile.image).shape or (0, 0)
    return height * width * BANDS


def _make_room(need: int, folder: Path, wanted: Collection[Path], most_bytes: float) -> bool:
    """Remove copies that are not wanted until ``need`` more bytes fit, and return whether they do.

    If ``need`` is 0, wanted copies are removed too, the last first, until the cache is within its bound: the user may
    have lowered it.
    """
    stats = {file: file.stat() for file in folder.glob("*.tif")}
    used = sum(stat.st_size for stat in stats.values())
    others = sorted(stats.keys() - set(wanted), key=lambda file: stats[file].st_mtime)
    for file in [*others, *([] if need else [file for file in reversed(list(wanted)) if file in stats])]:
        if used + need <= most_bytes:
            break
        file.unlink()
        used -= stats[file].st_size
    return used + need <= most_bytes and shutil.disk_usage(folder).free - need > _SPARE_BYTES


def _space_message(folder: Path, most_bytes: float) -> str:
    used = sum(file.stat().st_size for file in folder.glob("*.tif"))
    free = shutil.disk_usage(folder).free
    return (
        f"{folder} holds {used / 2**30:.1f} GiB of at most {most_bytes / 2**30:g}, and {free / 2**30:.1f} GiB are free "
        "on its disk; raise tile_cache_gib, or make room."
    )
