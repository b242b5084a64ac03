"""The location of the data sets under a data root, their origin (real, generated or both) and their sizes.

A data root contains ``rid/``, ``roofline/`` and ``airs/``; each may be a symbolic link.
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

# Published sizes, from ``dataset_cards`` and the AIRS paper (Chen et al. 2019): images of RID and of Roofline, divided
# as a random split does; tiles of AIRS's train and val, and their side.
_IMAGES = {"rid": 1880, "roofline": 1670}
_TILES, _TILE_PX = (857, 94), 10_000


def find_dataset(name: str, root: Path) -> Path:
    """Return the folder of a data set: at or under ``<root>/<name>``, or else at or under the root itself.

    Raises:
        ConfigError: it is in neither; the message says where to get it.
    """
    folder = _find(name, root)
    if folder is None:
        available = available_datasets(root)
        hint = f"Found there: {', '.join(available)}." if available else "No data set was found there."
        raise ConfigError(
            f"data_root={root}: expected the data set {name!r} in it or in {root / name}. {hint} Correct data_root or "
            f"datasets (an empty data_root uses generated data), or get it: {dataset_card(name).where(str(root))}"
        )
    return folder


def available_datasets(root: Path) -> tuple[str, ...]:
    """Return the names of the data sets under a data root."""
    return tuple(name for name in DATASETS if _find(name, root))


def describe_origin(folder: Path) -> str:
    """Return '' for a data set of real images, else 'GENERATED', with the number of real samples among them.

    The generator's note is in the folder or at most three levels above it, as a release nests its folders; symbolic
    links are followed first.
    """
    resolved = folder.resolve()
    for candidate in (resolved, *resolved.parents[:3]):
        if (candidate / NOTE).is_file():
            joined = read_record(candidate / NOTE, lambda note: int(note.get("joined", {}).get("samples", 0)))
            return f"GENERATED, {joined} real joined" if joined else "GENERATED"
    return ""


def _find(name: str, root: Path) -> Path | None:
    return DATASET_FINDERS[name](root / name) or DATASET_FINDERS[name](root)


@dataclass(frozen=True)
class DatasetSizes:
    """The number of training and validation samples of each data set."""

    samples: Mapping[str, tuple[int, int]]  # data set: (training, validation)
    source: str  # of the numbers, in words


def dataset_sizes(config: RunConfig) -> DatasetSizes:
    """Return the sizes of a config's data sets, without max_samples and val_samples; as published if without data."""
    if config.data_root:
        from roofscale.data.sources import open_sources  # imports this module

        every = config.with_overrides({"max_samples": 0, "val_samples": 0})
        try:
            splits = open_sources(every, Path(config.data_root).expanduser())
        except (ConfigError, DataError):  # the run itself raises the error
            return DatasetSizes(published_sizes(config), "as published, for want of those under data_root")
        return DatasetSizes(
            {name: (len(split.train), len(split.val)) for name, split in splits.items()}, "as under data_root"
        )
    return DatasetSizes(published_sizes(config), "as published")


def published_sizes(config: RunConfig) -> dict[str, tuple[int, int]]:
    """Return (training, validation) samples of a config's data sets as published; of AIRS windows of ``image_size``."""
    held_out = {name: round(VAL_SHARE * count) for name, count in _IMAGES.items()}
    sizes = {name: (count - 2 * held_out[name], held_out[name]) for name, count in _IMAGES.items()}
    windows = math.ceil(_TILE_PX / config.image_size) ** 2
    sizes["airs"] = (_TILES[0] * windows, _TILES[1] * windows)
    return {name: sizes[name] for name in config.datasets}
