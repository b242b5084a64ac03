"""The data sets of a run config: find them, split them into train and val, limit and fingerprint their samples."""

import contextlib
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from roofscale.addresses import S3
from roofscale.config import RunConfig
from roofscale.data import airs, folders, rid, roofline
from roofscale.data.leaks import ImageFingerprint, find_pairs, fingerprint, leak_rate, read_footprint
from roofscale.data.locate import available_datasets, describe_origin, find_dataset
from roofscale.data.plausible import doubts, look_at
from roofscale.data.sample import Source
from roofscale.data.split import TRAIN_SHARE, Split, permutation, random_split, spatial_split
from roofscale.data.synthetic import GenerateSpec, generate
from roofscale.errors import ConfigError, DataError

_SUBSET_SEED = 0  # orders the samples for max_samples; not the run's seed, so that runs with other seeds share samples
_SAMPLES_CHECKED = 4  # training samples of each data set that a run checks for plausible values before it trains
_FULL_HASH_BYTES = 8 * 2**20  # files up to this size are hashed whole, larger ones by size, first and last bytes
_END_BYTES = 2**16  # enough for a TIFF's block table with the size of each block; reads 0.1 GB of AIRS instead of 2 GB


class FileSource(Source, Protocol):
    """A source with known files, of which a subset can be taken."""

    def files(self, index: int) -> tuple[Path, ...]:
        """Return all files that sample ``index`` is read from."""
        ...

    def sample_key(self, index: int) -> str:
        """Return what identifies sample ``index`` in any folder: a file name, or a part of a file."""
        ...

    def footprints(self) -> Sequence[ImageFingerprint]:
        """Return the ground footprint of each image file, each file once; empty if the data set has none."""
        ...

    def subset(self, indices: Sequence[int]) -> "FileSource":
        """Return the same source with only these samples, in this order."""
        ...


@dataclass(frozen=True)
class DataSplit:
    """The training and validation samples that a run uses of one data set."""

    train: FileSource
    val: FileSource


def open_sources(config: RunConfig, root: Path) -> dict[str, DataSplit]:
    """Open train and val of each data set of the config, in its order, limited to max_samples and val_samples.

    The samples taken are the first of a fixed order: those of max_samples=10 are among those of 20, for every seed.
    If a data set has fewer validation samples than val_samples, all of them are used.

    Raises:
        ConfigError: a data set is not under the root, or has fewer than max_samples training samples.
        DataError: a data set has no training or validation sample, or a file that determines them cannot be read.
    """
    return {name: _limit(name, _open(name, config, find_dataset(name, root)), config, root) for name in config.datasets}


def _open(name: str, config: RunConfig, folder: Path) -> DataSplit:
    """Open all samples of train and val of one data set."""
    if name == "airs":
        return _open_airs(config, folder)
    if name == "rid" and config.split == "published":
        return DataSplit(
            rid.open_published(folder, "train", config.split_number),
            rid.open_published(folder, "val", config.split_number),
        )
    # Roofline has no published split: split=published means random for it.
    everything: rid.RidSource | roofline.RooflineSource
    everything = rid.open_all(folder) if name == "rid" else roofline.open_all(folder)
    parts = _seeded_split(len(everything), everything.fingerprints, config)
    return DataSplit(everything.subset(parts.train), everything.subset(parts.val))


def _open_airs(config: RunConfig, folder: Path) -> DataSplit:
    """Open AIRS, split by tiles: all windows of one tile are in the same part.

    Adjacent tiles may be in different parts, in a spatial split too: they share no ground, and keeping neighbours
    together would put a whole town into one part.
    """
    train, val = airs.tiles_of(folder, "train"), airs.tiles_of(folder, "val")
    if config.split == "published":
        return DataSplit(airs.open_tiles(train, config.image_size), airs.open_tiles(val, config.image_size))
    read_header = fingerprint if config.split == "spatial" else read_footprint
    tiles = (*train, *val)
    headers = [read_header(tile.image) for tile in tiles]  # read once, for the split and for the windows
    parts = _seeded_split(len(tiles), lambda: headers, config)
    sources = (
        airs.open_tiles([tiles[i] for i in part], config.image_size, [headers[i] for i in part])
        for part in (parts.train, parts.val)
    )
    return DataSplit(*sources)


def _seeded_split(count: int, read_fingerprints: Callable[[], Sequence[ImageFingerprint]], config: RunConfig) -> Split:
    """Return the random or spatial split number ``split_number``.

    Its seed is not the run's: runs that differ in their seed are judged on the same samples. The fingerprints for a
    spatial split are not cached: reading them takes 0.7 s for RID's 1880 images and 4 s for Roofline's 1670 if they
    are compressed.
    """
    if config.split != "spatial":
        return random_split(count, config.split_number)
    images = read_fingerprints()
    return spatial_split(images, find_pairs(images), config.split_number)


def _limit(name: str, split: DataSplit, config: RunConfig, root: Path) -> DataSplit:
    """Apply max_samples and val_samples, and check that there are enough samples."""
    for part, source in (("training", split.train), ("validation", split.val)):
        if not len(source):
            raise DataError(
                f"{root}: the data set {name!r} has no {part} sample (training {len(split.train)}, "
                f"validation {len(split.val)}). Add data, or choose another split."
            )
    if config.max_samples > len(split.train):
        others = [other for other in available_datasets(root) if other not in config.datasets]
        hint = f", or add a data set that is there too: datasets={','.join((*config.datasets, *others))}"
        raise ConfigError(
            f"max_samples={config.max_samples}: the data set {name!r} under {root} has "
            f"{len(split.train)} training samples. Take at most {len(split.train)}, or 0 for all"
            f"{hint if others else ''}."
        )
    return DataSplit(_first_samples(split.train, config.max_samples), _first_samples(split.val, config.val_samples))


def _first_samples(source: FileSource, count: int) -> FileSource:
    """Return the first ``count`` samples of the fixed order, or all if 0."""
    order = permutation(len(source), _SUBSET_SEED)
    return source.subset(order[:count] if count else order)


def resolve_data_root(config: RunConfig, cache: Path) -> tuple[Path, str]:
    """Return the data root and a sentence that describes it; generate data under ``cache`` if the config has no root.

    Raises:
        ConfigError: the config's data_root is not a folder.
    """
    if config.data_root:
        root = Path(config.data_root).expanduser()
        if not root.is_dir():
            raise ConfigError(
                f"data_root={config.data_root}: there is no such folder. Correct it, or leave it empty "
                "for generated data."
            )
        return root, f"{', '.join(_with_origin(name, root) for name in config.datasets)} in {_relative(root)}."
    spec = _synthetic_spec(config)
    root = cache / spec.folder_name
    generate(root, spec)
    sizes = "; ".join(f"{name}: {spec.describe(name)}" for name in config.datasets)
    return root, f"no data_root given, so GENERATED images (seed {spec.seed}; {sizes}) in {_relative(root)}."


def _with_origin(name: str, root: Path) -> str:
    """Return 'rid' or 'rid (GENERATED)'; a missing data set is named as if real, as opening it raises."""
    origin = describe_origin(find_dataset(name, root)) if name in available_datasets(root) else ""
    return f"{name} ({origin})" if origin else name


def _relative(folder: Path) -> Path:
    """Return the folder relative to the current one if it lies in it, so that reports do not name a home folder."""
    resolved = folder.resolve()
    return resolved.relative_to(Path.cwd()) if resolved.is_relative_to(Path.cwd()) else resolved


def _synthetic_spec(config: RunConfig) -> GenerateSpec:
    """Return a spec with enough samples for the config; runs that need no more than the default share one data set."""
    default = GenerateSpec()
    train, val = max(default.train, config.max_samples), max(default.val, config.val_samples)
    windows = math.ceil(default.airs_tile_px / config.image_size) ** 2  # of one tile
    if config.split != "published":  # a seeded split draws from all images and gives TRAIN_SHARE of them to train
        train = max(train, math.ceil(config.max_samples / TRAIN_SHARE) - val - default.test)
    tiles = (
        max(default.airs_tiles[0], math.ceil(train / windows)),
        max(default.airs_tiles[1], math.ceil(val / windows)),
    )
    return GenerateSpec(
        config.datasets,
        train,
        val,
        airs_tiles=(*tiles, default.airs_tiles[2]),
        roofline_samples=max(default.roofline_samples, math.ceil(train / TRAIN_SHARE), 10 * val),
    )


def leak_warnings(splits: Mapping[str, DataSplit]) -> list[str]:
    """Return one sentence for each data set of which this run's validation images overlap its training images.

    Only footprints are compared: they reveal most leaks and are read from the headers (0.4 s for 1880 images; those of
    AIRS are known already). ``roofscale data check`` reads all pixels and also finds identical images.
    """
    notes = []
    for name, split in splits.items():
        train, val = split.train.footprints(), split.val.footprints()
        parts = ["train"] * len(train) + ["val"] * len(val)
        rate = leak_rate("", find_pairs([*train, *val]), parts)
        if rate.pairs:
            notes.append(
                f"{name}: {rate.val:.0%} of the validation images of this run overlap a training image on the ground, "
                "so scores on them are too good. split=spatial keeps neighbours in one part."
            )
    return notes


def data_notes(splits: Mapping[str, DataSplit]) -> list[str]:
    """Return warnings about the data that a run reads: skipped files, implausible values, blank images.

    Only a few training samples of each data set are read; ``roofscale data check`` reads all.
    """
    notes = []
    for name, split in splits.items():
        folder = split.train.path(0).parent
        if name != "roofline" and (skipped := folders.passed_over(folder, folders.TIFF)):  # Roofline is one file
            notes.append(f"{name}: {skipped}.")
        looks = []
        for index in range(min(_SAMPLES_CHECKED, len(split.train))):
            with contextlib.suppress(DataError):  # the training process reports a broken sample
                looks.append(look_at(split.train.read(index), split.train.labelled))
        notes += [f"{name}: {problem.text}" for problem in doubts(folder, looks)]
        if len(looks) > 1 and all(look.blank for look in looks):
            notes.append(f"{name}: each of the {len(looks)} images looked at has one colour only.")
    return notes


def data_fingerprint(splits: Mapping[str, DataSplit]) -> str:
    """Return twelve hex digits that identify the data of a run: sample order, file names and contents, not the folder.

    Files up to 8 MiB are hashed whole; of larger ones size, first and last 64 KiB. A missing file counts as missing.
    """
    total = hashlib.sha256()
    digests: dict[Path, str] = {}
    for name, split in splits.items():
        for part, source in (("train", split.train), ("val", split.val)):
            total.update(f"{name} {part} {len(source)}\n".encode())
            for index in range(len(source)):
                files = source.files(index)
                digests |= {file: _file_digest(file) for file in files if file not in digests}
                line = f"{source.sample_key(index)} {' '.join(digests[file] for file in files)}\n"
                total.update(line.encode(errors="surrogateescape"))
    return total.hexdigest()[:12]


def _file_digest(file: Path) -> str:
    """Return the SHA-256 of a file's size and of its contents or, if it is large, of its first and last bytes."""
    if not file.is_file():
        return "missing"
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as stream:
        if size <= _FULL_HASH_BYTES:
            digest.update(stream.read())
        else:
            digest.update(stream.read(_END_BYTES))
            stream.seek(-_END_BYTES, 2)
            digest.update(stream.read())
    return digest.hexdigest()


def resolve_data(configs: Sequence[RunConfig], cache: Path, say: Callable[[str], None]) -> list[RunConfig]:
    """Resolve the data root of configs, print it, and refuse missing data before anything runs.

    Raises:
        ConfigError: an unknown compute, or a batch that the model cannot train on.
        DataError: a data set is missing or cannot be read.
    """
    from roofscale import compute  # not at the top: the training process reads data too, and knows no computes

    for config in configs:
        compute.get(config.compute)
        config.require_batch()
    if any(config.data_root.startswith(S3) for config in configs):  # the job opens it
        say(f"Data: {', '.join(dict.fromkeys(config.data_root for config in configs))}, read by the jobs.")
        return list(configs)
    root, description = resolve_data_root(_largest_request(configs), cache)
    say(f"Data: {description}")
    resolved = [config.with_overrides({"data_root": str(root)}) for config in configs]
    for config in resolved:
        open_sources(config, root)
    return resolved


def _largest_request(configs: Sequence[RunConfig]) -> RunConfig:
    """Return a config that asks for as much data as all of these together."""
    largest = {knob: max(getattr(c, knob) for c in configs) for knob in ("max_samples", "val_samples", "image_size")}
    datasets = tuple(dict.fromkeys(name for config in configs for name in config.datasets))
    return configs[0].with_overrides({**largest, "datasets": datasets})
