"""What a run does once before it trains, where its knobs say so: copy AIRS tiles, look for roofs in their windows."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from roofscale.config import RunConfig
from roofscale.data.airs import AirsSource
from roofscale.data.cache import Chore
from roofscale.data.roof_share import drawn_metrics, roof_shares
from roofscale.data.sources import DataSplit
from roofscale.data.tile_cache import copies_of

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
    if "airs" not in splits or not (config.tile_cache_gib or config.roof_sampling):
        return splits, {}
    train, val = splits["airs"].train, splits["airs"].val
    assert isinstance(train, AirsSource)
    assert isinstance(val, AirsSource)
    threads, metrics = max(1, config.num_workers), {}
    if config.tile_cache_gib:
        tiles = [source.tiles[tile] for source in (train, val) for tile in source.tiles_taken()]
        copies = copies_of(
            tiles, cache / "airs-tiles", config.tile_cache_gib * 2**30, Chore(threads, say, lambda: not stopping())
        )
        say(f"{len(copies)} of {len(tiles)} AIRS tiles are read from copies in {cache / 'airs-tiles'}")
        train, val = train.with_copies(copies), val.with_copies(copies)
    if config.roof_sampling:
        share_N = roof_shares(train, cache / "airs-roof-shares", Chore(threads, say, lambda: not stopping()))
        train = dataclasses.replace(train, roof_share_N=share_N)
        metrics = drawn_metrics(share_N, config.roof_sampling)
        say(
            f"roof_sampling={config.roof_sampling:g}: {metrics['data/with_roof']:.0%} of the AIRS windows have a roof, "
            f"{metrics['data/drawn_with_roof']:.0%} of those drawn; mean roof share "
            f"{metrics['data/roof_share']:.1%}, of those drawn {metrics['data/drawn_roof_share']:.1%}"
        )
    return {**splits, "airs": DataSplit(train, val)}, metrics
