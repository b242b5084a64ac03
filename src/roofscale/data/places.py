"""Where the data sets of a data root lie, and what they are: real, generated, or both.

A data root holds ``rid/``, ``roofline/`` and ``airs/``; each may be a symbolic link to where the data set really lies.
"""

from pathlib import Path

from roofscale.config import DATASETS
from roofscale.data import airs, rid, roofline
from roofscale.data.catalogue import card_of
from roofscale.data.generate import NOTE
from roofscale.errors import ConfigError
from roofscale.files import read_record

FINDERS = {"rid": rid.find, "roofline": roofline.find, "airs": airs.find}


def find_dataset(name: str, root: Path) -> Path:
    """The folder of a data set: at or under ``<root>/<name>``, or else at or under the root itself.

    Raises:
        ConfigError: it is in neither; says where to get it.
    """
    found = _find(name, root)
    if found is None:
        there = present(root)
        hint = f"Found there: {', '.join(there)}." if there else "No data set was found there."
        raise ConfigError(
            f"data_root={root}: expected the data set {name!r} in it or in {root / name}. {hint} Correct data_root or "
            f"datasets (an empty data_root uses generated data), or get it: {card_of(name).where(str(root))}"
        )
    return found


def present(root: Path) -> tuple[str, ...]:
    """The data sets that lie under a root."""
    return tuple(name for name in DATASETS if _find(name, root))


def origin(folder: Path) -> str:
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
    return FINDERS[name](root / name) or FINDERS[name](root)
