"""What a run does once before it trains, where its knobs say so: copy AIRS tiles, look for roofs in their windows."""

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

CACHE = Path("data/cache")  # all in it can be made again


def prepare_airs(
    config: RunConfig,
    splits: Mapping[str, DataSplit],
    cache: Path,
    say: Callable[[str], None],
    stopping: Callable[[], bool] = lambda: False,
) -> tuple[Mapping[str, DataSplit], dict[str, float]]:
    """The splits with copies of tiles and roof shares of windows, and metrics of what will be drawn.

    It uses as many threads as the run has loader processes, and ends early where ``stopping`` says so, as the run then
    does, too.
    """
    airs = splits.get("airs")
    if airs is None or not (config.tile_cache_gib or config.roof_sampling):
        return splits, {}
    train, val = airs.train, airs.val
    assert isinstance(train, AirsSource)
    assert isinstance(val, AirsSource)
    metrics: dict[str, float] = {}

    def chore() -> CacheTask:
        return CacheTask(max(1, config.num_workers), say, lambda: not stopping())

    if config.tile_cache_gib:
        folder, slow = cache / "airs-tiles", list(dict.fromkeys([*slow_tiles(train), *slow_tiles(val)]))
        copies = cached_tiles(slow, folder, config.tile_cache_gib * 2**30, chore()) if slow else {}
        say(f"{len(slow)} AIRS tiles have a layout that windows are slow to read from, {len(copies)} of them a copy")
        train, val = train.with_copies(copies), val.with_copies(copies)
    if config.roof_sampling:
        share_N = roof_shares(train, cache / "airs-roof-shares", chore())
        train, metrics = (
            dataclasses.replace(train, roof_share_N=share_N),
            sampling_metrics(share_N, config.roof_sampling),
        )
        say(_in_words(config.roof_sampling, metrics))
    return {**splits, "airs": DataSplit(train, val)}, metrics


def _in_words(roof_sampling: float, metrics: Mapping[str, float]) -> str:
    return (
        f"roof_sampling={roof_sampling:g}: of the AIRS windows {metrics['data/with_roof']:.0%} have a roof, of those "
        f"drawn {metrics['data/drawn_with_roof']:.0%}; roof is {metrics['data/roof_share']:.1%} of their px, and "
        f"{metrics['data/drawn_roof_share']:.1%} of those drawn"
    )


_log = logging.getLogger(__name__)

_Known = dict[str, dict[str, float]]


def roof_shares(source: AirsSource, folder: Path, chore: CacheTask) -> npt.NDArray[np.float32]:
    """The roof share of each window of a source, as kept in a folder or else from the labels.

    A label that cannot be read, or was not before the chore ended, counts as average: its windows are drawn, and named
    as broken, as often as without weights.
    """
    share_N = np.full(len(source), np.nan, np.float32)
    with exclusive_lock(folder, chore) as alone, ThreadPoolExecutor(chore.threads) as pool:
        if alone:
            file = folder / f"{source.window_px}.json"
            known = _load(file)
            jobs = []
            for tile in source.tiles_taken():
                of_tile = known.setdefault(stat_hash(source.tiles[tile].label), {})
                jobs.append(pool.submit(_look, source, np.flatnonzero(source.tile_N == tile), of_tile))
            for done, job in enumerate(jobs):
                if not chore.report_progress("looking for roofs in AIRS tiles", done, len(jobs)):
                    pool.shutdown(cancel_futures=True)
                    break
                indices_W, share_W = job.result()
                share_N[indices_W] = share_W
            write_json(file, known)
    mean = np.nanmean(share_N) if np.isfinite(share_N).any() else 0.0
    return np.where(np.isnan(share_N), np.float32(mean), share_N)


def sampling_metrics(share_N: npt.NDArray[np.float32], roof_sampling: float) -> dict[str, float]:
    """What sampling by roof changes in an epoch's windows: their mean roof share, and how many have any roof."""
    draws_N = expected_draws(share_N, roof_sampling) / len(share_N)
    roofed_N = share_N > 0
    return {
        "data/roof_share": float(share_N.mean()),
        "data/with_roof": float(roofed_N.mean()),
        "data/drawn_roof_share": float(draws_N @ share_N),
        "data/drawn_with_roof": float(draws_N @ roofed_N),
    }


def _look(
    source: AirsSource, indices_W: npt.NDArray[np.int64], known: dict[str, float]
) -> tuple[npt.NDArray[np.int64], list[float]]:
    """The shares of one tile's windows; what was not known is added to ``known``."""
    windows = {int(index): source.window(int(index)) for index in indices_W}
    places = {index: f"{where.row} {where.col}" for index, where in windows.items()}
    missing = [index for index in windows if places[index] not in known]
    try:
        if missing:
            with geotiff.open_raster(windows[missing[0]].tile.label) as label:
                whole = source.window_px**2 if max(label.shape) >= source.window_px else math.prod(label.shape)
                # Row by row: of strips, GDAL keeps those decompressed that neighbours share.
                for index in sorted(missing, key=lambda index: windows[index][1:]):
                    roof_HW = label.read(1, window=source.clipped(windows[index], label.shape))
                    known[places[index]] = round(np.count_nonzero(roof_HW) / whole, 6)
    except FileError as problem:
        _log.warning("roof share not known: %s", problem)  # whoever reads the window will say so, or leave it out
    return indices_W, [known.get(places[int(index)], np.nan) for index in indices_W]


def _load(file: Path) -> _Known:
    try:
        known: _Known = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or damaged: they are read anew
        return {}
    return known
