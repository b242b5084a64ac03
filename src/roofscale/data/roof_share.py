"""How much of each AIRS window is roof: read once from the labels and kept, for ``roof_sampling``.

Kept is one file for each window_px: for each label, by its state, the share of each window looked at, by its corner.
"""

import json
import logging
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from roofscale.data import geotiff
from roofscale.data.airs import AirsSource
from roofscale.data.cache import Chore, alone_in, file_state
from roofscale.data.order import expected_draws
from roofscale.data.problem import FileProblem
from roofscale.files import write_json

_log = logging.getLogger(__name__)

_Known = dict[str, dict[str, float]]


def roof_shares(source: AirsSource, folder: Path, chore: Chore) -> npt.NDArray[np.float32]:
    """The roof share of each window of a source, as kept in a folder or else from the labels.

    A label that cannot be read, or was not before the chore ended, counts as average: its windows are drawn, and named
    as broken, as often as without weights.
    """
    share_N = np.full(len(source), np.nan, np.float32)
    with alone_in(folder, chore) as alone, ThreadPoolExecutor(chore.threads) as pool:
        if alone:
            file = folder / f"{source.window_px}.json"
            known = _load(file)
            jobs = []
            for tile in source.tiles_taken():
                of_tile = known.setdefault(file_state(source.tiles[tile].label), {})
                jobs.append(pool.submit(_look, source, np.flatnonzero(source.tile_N == tile), of_tile))
            for done, job in enumerate(jobs):
                if not chore.goes_on("looking for roofs in AIRS tiles", done, len(jobs)):
                    pool.shutdown(cancel_futures=True)
                    break
                indices_W, share_W = job.result()
                share_N[indices_W] = share_W
            write_json(file, known)
    mean = np.nanmean(share_N) if np.isfinite(share_N).any() else 0.0
    return np.where(np.isnan(share_N), np.float32(mean), share_N)


def drawn_metrics(share_N: npt.NDArray[np.float32], roof_sampling: float) -> dict[str, float]:
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
            with geotiff.opened(windows[missing[0]].tile.label) as label:
                whole = source.window_px**2 if max(label.shape) >= source.window_px else math.prod(label.shape)
                # Row by row: of strips, GDAL keeps those decompressed that neighbours share.
                for index in sorted(missing, key=lambda index: windows[index][1:]):
                    roof_HW = label.read(1, window=source.clipped(windows[index], label.shape))
                    known[places[index]] = round(np.count_nonzero(roof_HW) / whole, 6)
    except FileProblem as problem:
        _log.warning("roof share not known: %s", problem)  # whoever reads the window will say so, or leave it out
    return indices_W, [known.get(places[int(index)], np.nan) for index in indices_W]


def _load(file: Path) -> _Known:
    try:
        known: _Known = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or damaged: they are read anew
        return {}
    return known
