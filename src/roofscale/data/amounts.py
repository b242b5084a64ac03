"""How many samples the full data sets have: counted where they lie, else as their authors published them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from roofscale.config import RunConfig
from roofscale.data.split import VAL_SHARE
from roofscale.errors import ConfigError, DataError

# From the cards in ``catalogue`` and AIRS's paper (Chen et al. 2019): images of RID and of Roofline, of which train and
# val are taken as a random split deals them out; and the tiles of AIRS's train and val, 10000 px a side.
_IMAGES = {"rid": 1880, "roofline": 1670}
_TILES, _TILE_PX = (857, 94), 10_000


@dataclass(frozen=True)
class Amounts:
    """Training and validation samples of each data set, and a few words on where the numbers come from."""

    samples: Mapping[str, tuple[int, int]]
    source: str


def amounts(config: RunConfig) -> Amounts:
    """All samples of a config's data sets, whatever it takes of them."""
    if config.data_root:
        from roofscale.data.sources import open_sources  # its readers load torch, which a look at a plan can do without

        every = config.with_overrides({"max_samples": 0, "val_samples": 0})
        try:
            splits = open_sources(every, Path(config.data_root).expanduser())
        except (ConfigError, DataError):  # the run itself will say what is wrong with them
            return Amounts(published(config), "as published, for want of those under data_root")
        return Amounts({name: (len(one.train), len(one.val)) for name, one in splits.items()}, "as under data_root")
    return Amounts(published(config), "as published")


def published(config: RunConfig) -> dict[str, tuple[int, int]]:
    """Samples of a config's data sets as published; of AIRS as many as its tiles have windows of the image's size."""
    held_out = {name: round(VAL_SHARE * count) for name, count in _IMAGES.items()}
    found = {name: (count - 2 * held_out[name], held_out[name]) for name, count in _IMAGES.items()}
    windows = math.ceil(_TILE_PX / config.image_size) ** 2
    found["airs"] = (_TILES[0] * windows, _TILES[1] * windows)
    return {name: found[name] for name in config.datasets}
