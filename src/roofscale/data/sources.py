"""Open the data sets that a run config names: where they lie, who is in train and val, and how many of them."""

import contextlib
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from roofscale.config import RunConfig
from roofscale.data import airs, folders, rid, roofline
from roofscale.data.leaks import ImageFingerprint, find_pairs, fingerprint, leak_rate, read_footprint
from roofscale.data.locate import available_datasets, describe_origin, find_dataset
from roofscale.data.plausible import doubts, look_at
from roofscale.data.sample import Source
from roofscale.data.split import Split, permutation, random_split, spatial_split
from roofscale.data.synthetic import GenerateSpec, generate
from roofscale.errors import ConfigError, DataError

_TAKING_SEED = 0  # of the order in which max_samples takes samples: not the run's, so that seeds share their samples
_LOOKED_AT = 4  # samples of a data set that a run looks at before it trains on them
_WHOLE_FILE = 8 * 2**20  # bytes; files up to this size are hashed whole, larger ones by size, first and last part
_PART = 2**16  # holds the table of a TIFF's blocks, with the size of each; of AIRS 0.1 GB is read that way, not 2 GB


class FileSource(Source, Protocol):
    """A source that knows its files, and can be narrowed down."""

    def files(self, index: int) -> tuple[Path, ...]:
        """All files that sample ``index`` is read from."""
        ...

    def place(self, index: int) -> str:
        """What sample ``index`` is, whatever the folder: a file's name, or a part of a file."""
        ...

    def located(self) -> Sequence[ImageFingerprint]:
        """Where each of its images lies on the ground, each file once; empty where the data set knows no ground."""
        ...

    def subset(self, indices: Sequence[int]) -> "FileSource":
        """The same source with only these samples, in this order."""
        ...


@dataclass(frozen=True)
class DataSplit:
    """What one data set gives to a run."""

    train: FileSource
    val: FileSource


def open_sources(config: RunConfig, root: Path) -> dict[str, DataSplit]:
    """Open train and val of each data set of the config, in its order, limited to max_samples and val_samples.

    The samples taken are the first of a fixed order: those of max_samples=10 are among those of 20, whatever the seed.
    Fewer validation samples than val_samples are used as they are.

    Raises:
        ConfigError: a data set is not under the root, or has fewer than max_samples training samples.
        DataError: a data set has no training or validation sample, or a file needed to know cannot be read.
    """
    return {
        name: _limited(name, _open(name, config, find_dataset(name, root)), config, root) for name in config.datasets
    }


def _open(name: str, config: RunConfig, folder: Path) -> DataSplit:
    """Open all of train and val."""
    if name == "airs":
        return _open_airs(config, folder)
    if name == "rid" and config.split == "published":
        return DataSplit(
            rid.open_published(folder, "train", config.split_number),
            rid.open_published(folder, "val", config.split_number),
        )
    everything: rid.RidSource | roofline.RooflineSource  # Roofline has no published split: that means random here
    everything = rid.open_all(folder) if name == "rid" else roofline.open_all(folder)
    parts = _seeded_split(len(everything), everything.seen, config)
    return DataSplit(everything.subset(parts.train), everything.subset(parts.val))


def _open_airs(config: RunConfig, folder: Path) -> DataSplit:
    """Split by tiles: windows of one tile never part. Tiles that only abut may part, in a spatial split too: they show
    no common ground, and all of a town abuts."""
    train, val = airs.tiles_of(folder, "train"), airs.tiles_of(folder, "val")
    if config.split == "published":
        return DataSplit(airs.open_tiles(train, config.image_size), airs.open_tiles(val, config.image_size))
    see = fingerprint if config.split == "spatial" else read_footprint
    tiles = (*train, *val)
    seen = [see(tile.image) for tile in tiles]  # each tile is opened once, whatever is asked of it
    parts = _seeded_split(len(tiles), lambda: seen, config)
    opened = (
        airs.open_tiles([tiles[i] for i in part], config.image_size, [seen[i] for i in part])
        for part in (parts.train, parts.val)
    )
    return DataSplit(*opened)


def _seeded_split(count: int, see: Callable[[], Sequence[ImageFingerprint]], config: RunConfig) -> Split:
    """A seeded split; not by the run's seed, as runs that differ in it are to be judged on the same samples.

    What a spatial split has to see is seen anew each time: 0.7 s for RID's 1880 images, 4 s for Roofline's 1670 where
    they are compressed; less than a cache would be worth.
    """
    if config.split != "spatial":
        return random_split(count, config.split_number)
    seen = see()
    return spatial_split(seen, find_pairs(seen), config.split_number)


def _limited(name: str, split: DataSplit, config: RunConfig, root: Path) -> DataSplit:
    for part, source in (("training", split.train), ("validation", split.val)):
        if not len(source):
            raise DataError(
                f"{root}: the data set {name!r} has no {part} sample (training {len(split.train)}, "
                f"validation {len(split.val)}). Add data, or choose another split."
            )
    if config.max_samples > len(split.train):
        others = [other for other in available_datasets(root) if other not in config.datasets]
        also = f", or add a data set that is there too: datasets={','.join((*config.datasets, *others))}"
        raise ConfigError(
            f"max_samples={config.max_samples}: the data set {name!r} under {root} has "
            f"{len(split.train)} training samples. Take at most {len(split.train)}, or 0 for all"
            f"{also if others else ''}."
        )
    return DataSplit(_first(split.train, config.max_samples), _first(split.val, config.val_samples))


def _first(source: FileSource, count: int) -> FileSource:
    """The first of the fixed order; 0 takes all."""
    order = permutation(len(source), _TAKING_SEED)
    return source.subset(order[:count] if count else order)


def resolve_data_root(config: RunConfig, cache: Path) -> tuple[Path, str]:
    """Return the data root and a sentence that says what is used; generates data where the config names no root.

    Raises:
        ConfigError: the config's data_root is no folder.
    """
    if config.data_root:
        root = Path(config.data_root).expanduser()
        if not root.is_dir():
            raise ConfigError(
                f"data_root={config.data_root}: there is no such folder. Correct it, or leave it empty "
                "for generated data."
            )
        return root, f"{', '.join(_with_origin(name, root) for name in config.datasets)} in {_shown(root)}."
    spec = _sample_data(config)
    root = cache / spec.folder_name
    generate(root, spec)
    what = "; ".join(f"{name}: {spec.describe(name)}" for name in config.datasets)
    return root, f"no data_root given, so GENERATED images (seed {spec.seed}; {what}) in {_shown(root)}."


def _with_origin(name: str, root: Path) -> str:
    """'rid', or 'rid (GENERATED)'; a data set that is not there is named as if real, as opening it will tell."""
    what = describe_origin(find_dataset(name, root)) if name in available_datasets(root) else ""
    return f"{name} ({what})" if what else name


def _shown(folder: Path) -> Path:
    """Relative where it lies in the current folder, so that a report does not name somebody's home."""
    whole = folder.resolve()
    return whole.relative_to(Path.cwd()) if whole.is_relative_to(Path.cwd()) else whole


def _sample_data(config: RunConfig) -> GenerateSpec:
    """A spec with enough for the config; all runs that need no more than the usual share one generated set."""
    usual = GenerateSpec()
    train, val = max(usual.train, config.max_samples), max(usual.val, config.val_samples)
    windows = math.ceil(usual.airs_tile_px / config.image_size) ** 2
    if config.split != "published":  # these deal out everything, 80 % of it to train
        train = max(train, math.ceil(config.max_samples / 0.8) - val - usual.test)
    tiles = (max(usual.airs_tiles[0], math.ceil(train / windows)), max(usual.airs_tiles[1], math.ceil(val / windows)))
    return GenerateSpec(
        config.datasets,
        train,
        val,
        airs_tiles=(*tiles, usual.airs_tiles[2]),
        roofline_samples=max(usual.roofline_samples, math.ceil(train / 0.8), 10 * val),
    )


def leak_warnings(splits: Mapping[str, DataSplit]) -> list[str]:
    """One sentence for each data set whose validation images, as this run uses them, show ground that its training
    images show too.

    It reads headers alone, those of AIRS no second time: footprints tell most of a leak, and 1880 images take 0.4 s.
    Identical pixels are left to ``roofscale data check``, which reads everything.
    """
    notes = []
    for name, split in splits.items():
        train, val = split.train.located(), split.val.located()
        parts = ["train"] * len(train) + ["val"] * len(val)
        rate = leak_rate("", find_pairs([*train, *val]), parts)
        if rate.pairs:
            notes.append(
                f"{name}: {rate.val:.0%} of the validation images of this run overlap a training image on the ground, "
                "so scores on them are too good. split=spatial keeps neighbours in one part."
            )
    return notes


def data_notes(splits: Mapping[str, DataSplit]) -> list[str]:
    """What a user should know of the data that a run reads: files passed over, and what cannot be right about them.

    It looks at a few training samples of each data set; ``roofscale data check`` looks at all.
    """
    notes = []
    for name, split in splits.items():
        folder = split.train.path(0).parent
        if name != "roofline" and (passed := folders.passed_over(folder, folders.TIFF)):  # which is one file
            notes.append(f"{name}: {passed}.")
        looks = []
        for index in range(min(_LOOKED_AT, len(split.train))):
            with contextlib.suppress(DataError):  # training on it will say so
                looks.append(look_at(split.train.read(index), split.train.labelled))
        notes += [f"{name}: {problem.text}" for problem in doubts(folder, looks)]
        if len(looks) > 1 and all(look.blank for look in looks):
            notes.append(f"{name}: each of the {len(looks)} images looked at has one colour only.")
    return notes


def data_fingerprint(splits: Mapping[str, DataSplit]) -> str:
    """Twelve hex digits that name what a run reads: sample order, file names and contents, whatever the folder.

    Files up to 8 MiB count whole; of larger ones size, first and last 64 KiB. Files that are not there count as such.
    """
    total = hashlib.sha256()
    seen: dict[Path, str] = {}
    for name, split in splits.items():
        for part, source in (("train", split.train), ("val", split.val)):
            total.update(f"{name} {part} {len(source)}\n".encode())
            for index in range(len(source)):
                files = source.files(index)
                seen |= {file: _file_digest(file) for file in files if file not in seen}
                line = f"{source.place(index)} {' '.join(seen[file] for file in files)}\n"
                total.update(line.encode(errors="surrogateescape"))
    return total.hexdigest()[:12]


def _file_digest(file: Path) -> str:
    if not file.is_file():
        return "missing"
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as stream:
        if size <= _WHOLE_FILE:
            digest.update(stream.read())
        else:
            digest.update(stream.read(_PART))
            stream.seek(-_PART, 2)
            digest.update(stream.read())
    return digest.hexdigest()


IN_S3 = "s3://"  # prefix of a data root that only a job can read


def resolve_data(configs: Sequence[RunConfig], cache: Path, say: Callable[[str], None]) -> list[RunConfig]:
    """Resolve the data root of configs, print it, and refuse missing data before anything runs.

    Raises:
        ConfigError: an unknown compute, or a batch that the model cannot train on.
        DataError: a data set is missing or cannot be read.
    """
    from roofscale import compute  # psutil: the training process, which reads data as well, has no use for it

    for config in configs:
        compute.get(config.compute)
        config.require_batch()
    if any(config.data_root.startswith(IN_S3) for config in configs):  # the job opens it
        say(f"Data: {', '.join(dict.fromkeys(config.data_root for config in configs))}, read by the jobs.")
        return list(configs)
    root, said = resolve_data_root(_largest_request(configs), cache)
    say(f"Data: {said}")
    settled = [config.with_overrides({"data_root": str(root)}) for config in configs]
    for config in settled:
        open_sources(config, root)
    return settled


def _largest_request(configs: Sequence[RunConfig]) -> RunConfig:
    """Return a config that asks for as much data as all of these together."""
    most = {knob: max(getattr(c, knob) for c in configs) for knob in ("max_samples", "val_samples", "image_size")}
    return configs[0].with_overrides({**most, "datasets": tuple(dict.fromkeys(d for c in configs for d in c.datasets))})
