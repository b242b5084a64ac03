"""What a run does once before it trains, where its knobs say so: copy AIRS tiles, look for roofs in their windows."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from roofscale.config import RunConfig
from roofscale.data.airs import AirsSource
from roofscale.data.cache import Chore
from roofscale.data.roof_share import drawn_metrics, roof_shares
from roofscale.data.sources import DataSplit
from roofscale.data.tile_cache import copies_of, slow_tiles

CACHE = Path("data/cache")  # all in it can be made again


def make_ready(
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

    def chore() -> Chore:
        return Chore(max(1, config.num_workers), say, lambda: not stopping())

    if config.tile_cache_gib:
        folder, slow = cache / "airs-tiles", list(dict.fromkeys([*slow_tiles(train), *slow_tiles(val)]))
        copies = copies_of(slow, folder, config.tile_cache_gib * 2**30, chore()) if slow else {}
        say(f"{len(slow)} AIRS tiles have a layout that windows are slow to read from, {len(copies)} of them a copy")
        train, val = train.with_copies(copies), val.with_copies(copies)
    if config.roof_sampling:
        share_N = roof_shares(train, cache / "airs-roof-shares", chore())
        train, metrics = dataclasses.replace(train, roof_share_N=share_N), drawn_metrics(share_N, config.roof_sampling)
        say(_in_words(config.roof_sampling, metrics))
    return {**splits, "airs": DataSplit(train, val)}, metrics


def _in_words(roof_sampling: float, metrics: Mapping[str, float]) -> str:
    return (
        f"roof_sampling={roof_sampling:g}: of the AIRS windows {metrics['data/with_roof']:.0%} have a roof, of those "
        f"drawn {metrics['data/drawn_with_roof']:.0%}; roof is {metrics['data/roof_share']:.1%} of their px, and "
        f"{metrics['data/drawn_roof_share']:.1%} of those drawn"
    )
