"""The preparation of AIRS before training, if the config asks for it: copies of tiles, and roof shares of windows."""

import dataclasses
import json
import logging
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from roofscale.config import RunConfig
from roofscale.data import geotiff
from roofscale.data.airs import AirsSource
from roofscale.data.airs_cache import CacheTask, cached_tiles, exclusive_lock, slow_tiles, stat_hash
from roofscale.data.file_error import FileError
from roofscale.data.sampling import expected_draws
from roofscale.data.sources import DataSplit
from roofscale.files import write_json

CACHE = Path("data/cache")  # everything in it can be made again from the data

_log = logging.getLogger(__name__)

_Known = dict[str, dict[str, float]]  # stat_hash of a label: {"<row> <col>" of a window: its roof share}


def prepare_airs(
    config: RunConfig,
    splits: Mapping[str, DataSplit],
    cache: Path,
    say: Callable[[str], None],
    stopping: Callable[[], bool] = lambda: False,
) -> tuple[Mapping[str, DataSplit], dict[str, float]]:
    """Return the splits with tile copies and roof shares as the config asks for, and metrics of the roof sampling.

    Args:
        config: the run's; it also determines the number of threads, one for each loader process.
        splits: the run's data sets; only AIRS is changed.
        cache: the folder for copies and roof shares.
        say: called with progress messages for the user.
        stopping: whether the run is to stop; the preparation then ends early.
    """
    airs = splits.get("airs")
    if airs is None or not (config.tile_cache_gib or config.roof_sampling):
        return splits, {}
    train, val = airs.train, airs.val
    assert isinstance(train, AirsSource)
    assert isinstance(val, AirsSource)
    metrics: dict[str, float] = {}

    def new_task() -> CacheTask:
        return CacheTask(max(1, config.num_workers), say, lambda: not stopping())

    if config.tile_cache_gib:
        folder, slow = cache / "airs-tiles", list(dict.fromkeys([*slow_tiles(train), *slow_tiles(val)]))
        copies = cached_tiles(slow, folder, config.tile_cache_gib * 2**30, new_task()) if slow else {}
        say(f"{len(slow)} AIRS tiles have a layout that windows are slow to read from, {len(copies)} of them a copy")
        train, val = train.with_copies(copies), val.with_copies(copies)
    if config.roof_sampling:
        share_N = roof_shares(train, cache / "airs-roof-shares", new_task())
        train, metrics = (
            dataclasses.replace(train, roof_share_N=share_N),
            sampling_metrics(share_N, config.roof_sampling),
        )
        say(_sampling_message(config.roof_sampling, metrics))
    return {**splits, "airs": DataSplit(train, val)}, metrics


def _sampling_message(roof_sampling: float, metrics: Mapping[str, float]) -> str:
    return (
        f"roof_sampling={roof_sampling:g}: of the AIRS windows {metrics['data/with_roof']:.0%} have a roof, of those "
        f"drawn {metrics['data/drawn_with_roof']:.0%}; roof is {metrics['data/roof_share']:.1%} of their px, and "
        f"{metrics['data/drawn_roof_share']:.1%} of those drawn"
    )


def roof_shares(source: AirsSource, folder: Path, task: CacheTask) -> npt.NDArray[np.float32]:
    """Return the roof share (roof px over px) of each window of a source, from the cache or else from the labels.

    Windows of a label that cannot be read, or was not read before ``task`` ended, get the mean share: they are drawn
    as often as without weights, and reported as broken if they are.
    """
    share_N = np.full(len(source), np.nan, np.float32)
    with exclusive_lock(folder, task) as locked, ThreadPoolExecutor(task.threads) as pool:
        if locked:
            file = folder / f"{source.window_px}.json"
            known = _read_known(file)
            jobs = []
            for tile in source.tiles_taken():
                of_tile = known.setdefault(stat_hash(source.tiles[tile].label), {})
                jobs.append(pool.submit(_tile_roof_shares, source, np.flatnonzero(source.tile_N == tile), of_tile))
            for done, job in enumerate(jobs):
                if not task.report_progress("looking for roofs in AIRS tiles", done, len(jobs)):
                    pool.shutdown(cancel_futures=True)
                    break
                indices_W, share_W = job.result()
                share_N[indices_W] = share_W
            write_json(file, known)
    mean = np.nanmean(share_N) if np.isfinite(share_N).any() else 0.0
    return np.where(np.isnan(share_N), np.float32(mean), share_N)


def sampling_metrics(share_N: npt.NDArray[np.float32], roof_sampling: float) -> dict[str, float]:
    """Return mean roof share and share of windows with any roof, of all windows and of those drawn in an epoch."""
    draws_N = expected_draws(share_N, roof_sampling) / len(share_N)
    roofed_N = share_N > 0
    return {
        "data/roof_share": float(share_N.mean()),
        "data/with_roof": float(roofed_N.mean()),
        "data/drawn_roof_share": float(draws_N @ share_N),
        "data/drawn_with_roof": float(draws_N @ roofed_N),
    }


def _tile_roof_shares(
    source: AirsSource, indices_W: npt.NDArray[np.int64], known: dict[str, float]
) -> tuple[npt.NDArray[np.int64], list[float]]:
    """Return the indices and roof shares of one tile's windows; shares read from the label are added to ``known``."""
    windows = {int(index): source.window(int(index)) for index in indices_W}
    corners = {index: f"{window.row} {window.col}" for index, window in windows.items()}
    missing = [index for index in windows if corners[index] not in known]
    try:
        if missing:
            with geotiff.open_raster(windows[missing[0]].tile.label) as label:
                # A window at the tile's edge is padded to its full size; a tile smaller than a window is not.
                area_px = source.window_px**2 if max(label.shape) >= source.window_px else math.prod(label.shape)
                # Row by row, so that GDAL's block cache serves neighbours that share a strip.
                for index in sorted(missing, key=lambda index: windows[index][1:]):
                    roof_HW = label.read(1, window=source.clipped(windows[index], label.shape))
                    known[corners[index]] = round(np.count_nonzero(roof_HW) / area_px, 6)
    except FileError as problem:
        _log.warning("roof share not known: %s", problem)  # a loader process then raises it, or skips the sample
    return indices_W, [known.get(corners[int(index)], np.nan) for index in indices_W]


def _read_known(file: Path) -> _Known:
    try:
        known: _Known = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or damaged: the labels are read again
        return {}
    return known
