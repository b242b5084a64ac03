"""A data root that holds all three data sets with every real sample at hand, for climbs that need more than there is.

Of RID there are 20 real images and of Roofline one, and phase 4 trains on 100 of each data set, so that both are filled
up with generated ones; AIRS is real throughout. RID's real images keep their part of the split: those that train train
here, too. The notes beside the data say how much is real, as those of ``roofscale data generate --join`` do.
"""

import json
from collections.abc import Callable
from pathlib import Path

from roofscale.config import DATASETS, RunConfig
from roofscale.data import rid
from roofscale.data.folders import read_names
from roofscale.data.sources import open_sources
from roofscale.data.synthetic import NOTE, GenerateSpec, generate

TRAIN, VAL = 100, 40  # samples of each data set that phase 4 trains on and, by default, validates on
# With 400 generated ones the real one, behind them, is among the 100 that train: ``real_samples`` tells.
ROOFLINE = 400
_REAL = 100_000  # added to the number of a real image of RID: theirs and the generated ones' overlap


def joined_root(folder: Path, samples: Path) -> Path:
    """Make the data root in a new folder; real files are linked, not copied."""
    real = rid.find(samples / "rid")
    assert real, f"{samples}/rid holds no RID"
    parts = {part: read_names(rid.split_file(real, part, 1)) for part in rid.PARTS}
    train, val = TRAIN - len(parts["train"]), VAL - len(parts["val"])
    generate(folder, GenerateSpec(("rid", "roofline"), train, val, 0, ROOFLINE), samples / "roofline/imdb.mat")
    _join_rid(folder / "rid", real, parts)
    (folder / "airs").symlink_to(samples / "airs")
    return folder


def _join_rid(generated: Path, real: Path, parts: dict[str, tuple[str, ...]]) -> None:
    release = rid.find(generated)
    assert release, f"{generated} was generated"
    for part, ids in parts.items():
        named = {number: str(_REAL + int(number)) for number in ids}
        for number, name in named.items():
            for kind, suffix in ((rid.IMAGES, "tif"), (rid.SEGMENTS, "png"), (rid.SUPERSTRUCTURES, "png")):
                (release / kind / f"{name}.{suffix}").symlink_to(real / kind / f"{number}.{suffix}")
        for split in rid.published_split_numbers(release):
            with rid.split_file(release, part, split).open("a") as stream:
                stream.write("".join(f"{name}.png\n" for name in named.values()))
    note = generated / NOTE
    content = json.loads(note.read_text(encoding="utf-8"))
    joined = {"samples": sum(map(len, parts.values()))}
    note.write_text(json.dumps({**content, "joined": joined}, indent=1), encoding="utf-8")


def real_samples(root: Path) -> dict[str, str]:
    """How many of the samples that a run reads are real: '12 of 100 train, 4 of 40 validate', for each data set."""
    is_real: dict[str, Callable[[str], bool]] = {
        "rid": lambda place: int(Path(place).stem) >= _REAL,
        "roofline": lambda place: int(place) >= ROOFLINE,
        "airs": lambda place: True,
    }
    config = RunConfig(datasets=DATASETS, max_samples=TRAIN, val_samples=VAL)
    shares = {}
    for name, split in open_sources(config, root).items():
        counts = []
        for verb, source in (("train", split.train), ("validate", split.val)):
            real = sum(is_real[name](source.sample_key(index)) for index in range(len(source)))
            counts.append(f"{real} of {len(source)} {verb}")
        shares[name] = ", ".join(counts)
    return shares
