"""Where the data sets of a data root lie, and what they are: real, generated, or both.

A data root holds ``rid/``, ``roofline/`` and ``airs/``; each may be a symbolic link to where the data set really lies.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from roofscale.config import DATASETS, RunConfig
from roofscale.data import airs, rid, roofline
from roofscale.data.dataset_cards import dataset_card
from roofscale.data.split import VAL_SHARE
from roofscale.data.synthetic import NOTE
from roofscale.errors import ConfigError, DataError
from roofscale.files import read_record

DATASET_FINDERS = {"rid": rid.find, "roofline": roofline.find, "airs": airs.find}


def find_dataset(name: str, root: Path) -> Path:
    """The folder of a data set: at or under ``<root>/<name>``, or else at or under the root itself.

    Raises:
        ConfigError: it is in neither; says where to get it.
    """
    found = _find(name, root)
    if found is None:
        there = available_datasets(root)
        hint = f"Found there: {', '.join(there)}." if there else "No data set was found there."
        raise ConfigError(
            f"data_root={root}: expected the data set {name!r} in it or in {root / name}. {hint} Correct data_root or "
            f"datasets (an empty data_root uses generated data), or get it: {dataset_card(name).where(str(root))}"
        )
    return found


def available_datasets(root: Path) -> tuple[str, ...]:
    """The data sets that lie under a root."""
    return tuple(name for name in DATASETS if _find(name, root))


def describe_origin(folder: Path) -> str:
    """What a data set's folder holds: '' for real images, else 'GENERATED', and how many real samples are among them.

    The generator's note lies at most three folders above, where a release nests its own; links are followed first.
    """
    real = folder.resolve()
    for place in (real, *real.parents[:3]):
        if (place / NOTE).is_file():
            joined = read_record(place / NOTE, lambda note: int(note.get("joined", {}).get("samples", 0)))
            return f"GENERATED, {joined} real joined" if joined else "GENERATED"
    return ""


def _find(name: str, root: Path) -> Path | None:
    return DATASET_FINDERS[name](root / name) or DATASET_FINDERS[name](root)


# From the cards in ``catalogue`` and AIRS's paper (Chen et al. 2019): images of RID and of Roofline, of which train and
# val are taken as a random split deals them out; and the tiles of AIRS's train and val, 10000 px a side.
_IMAGES = {"rid": 1880, "roofline": 1670}
_TILES, _TILE_PX = (857, 94), 10_000


@dataclass(frozen=True)
class DatasetSizes:
    """Training and validation samples of each data set, and a few words on where the numbers come from."""

    samples: Mapping[str, tuple[int, int]]
    source: str


def dataset_sizes(config: RunConfig) -> DatasetSizes:
    """All samples of a config's data sets, whatever it takes of them."""
    if config.data_root:
        from roofscale.data.sources import open_sources  # its readers load torch, which a look at a plan can do without

        every = config.with_overrides({"max_samples": 0, "val_samples": 0})
        try:
            splits = open_sources(every, Path(config.data_root).expanduser())
        except (ConfigError, DataError):  # the run itself will say what is wrong with them
            return DatasetSizes(published_sizes(config), "as published, for want of those under data_root")
        return DatasetSizes(
            {name: (len(one.train), len(one.val)) for name, one in splits.items()}, "as under data_root"
        )
    return DatasetSizes(published_sizes(config), "as published")


def published_sizes(config: RunConfig) -> dict[str, tuple[int, int]]:
    """Samples of a config's data sets as published; of AIRS as many as its tiles have windows of the image's size."""
    held_out = {name: round(VAL_SHARE * count) for name, count in _IMAGES.items()}
    found = {name: (count - 2 * held_out[name], held_out[name]) for name, count in _IMAGES.items()}
    windows = math.ceil(_TILE_PX / config.image_size) ** 2
    found["airs"] = (_TILES[0] * windows, _TILES[1] * windows)
    return {name: found[name] for name in config.datasets}
