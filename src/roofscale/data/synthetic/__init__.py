"""Generated aerial images with believable roofs, on disk exactly as the real data sets are.

``scene`` and ``roofs`` say what there is, ``town`` plans it, ``paint`` draws it, ``writers`` lays it out on disk.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from roofscale.data.synthetic.real_samples import RealSamples
from roofscale.data.synthetic.spec import GenerateSpec
from roofscale.files import atomic_dir, read_json

__all__ = ["NOTE", "GenerateSpec", "generate"]

NOTE = "generated.json"  # in each data set's folder: the spec that it was made from, and what real data was joined
_Write = Callable[[Path, GenerateSpec], Iterator[int]]


def generate(root: Path, spec: GenerateSpec, join: Path | None = None, only: Sequence[str] = ()) -> tuple[Path, ...]:
    """Write the data sets of ``spec`` to ``<root>/<data set>`` and return these folders; what is there already is kept.

    The samples of ``join``, an imdb.mat, come after the generated ones in Roofline's file. Where ``only`` names images
    of RID ('7'), the others are in its splits and not drawn. Each data set is written under another name and renamed
    when it is whole: a killed generation leaves nothing that looks complete, and of two processes at once the first to
    finish wins.

    Raises:
        ConfigError: a folder of that name is there already and was not generated from this spec; or ``join`` has
            images of another size, or there is no Roofline to join it to.
        FileError: ``join`` is no sound imdb.mat.
    """
    from roofscale.data.synthetic import writers

    joined = RealSamples.of(join, spec) if join else None
    write: dict[str, _Write] = {
        "rid": functools.partial(writers.write_rid, only=only),
        "roofline": functools.partial(writers.write_roofline, joined=joined),
        "airs": writers.write_airs,
    }
    more: dict[str, dict[str, Any]] = {
        "rid": {"only": list(only)} if only else {},
        "roofline": {"joined": joined.as_dict()} if joined else {},
    }
    return tuple(
        _generate_one(root / name, spec.for_dataset(name), write[name], more.get(name, {})) for name in spec.datasets
    )


def _generate_one(folder: Path, spec: GenerateSpec, write: _Write, more: Mapping[str, Any]) -> Path:
    note = _note(spec, more)
    if _holds(folder, note):
        return folder
    totals = {"rid": spec.train + spec.val + spec.test, "roofline": spec.roofline_samples, "airs": sum(spec.airs_tiles)}
    with atomic_dir(folder) as partial:
        bar = tqdm(
            total=totals[spec.datasets[0]], desc=f"generating {folder.name}", file=sys.stderr, leave=False, disable=None
        )
        with bar:
            for _ in write(partial, spec):
                bar.update()
        (partial / NOTE).write_text(json.dumps(note, indent=1))
        try:
            partial.rename(folder)
        except OSError:
            if not _holds(folder, note):  # no other process was faster: something else is in the way
                raise
    return folder


def _note(spec: GenerateSpec, more: Mapping[str, Any]) -> dict[str, Any]:
    """What is written down of a data set, as it reads back from JSON."""
    note = {**dataclasses.asdict(spec), **more}
    read_back: dict[str, Any] = json.loads(json.dumps(note))
    return read_back


def _holds(folder: Path, note: dict[str, Any]) -> bool:
    """Whether the folder holds a whole data set of exactly this note.

    Raises:
        ConfigError: the folder holds something else.
    """
    from roofscale.errors import ConfigError

    if not folder.exists():
        return False
    written = read_json(folder / NOTE) if (folder / NOTE).is_file() else None
    if written != note:
        raise ConfigError(
            f"{folder}: there is something here that was not generated from this spec; expected a new "
            "or empty place. Name another folder, or remove this one."
        )
    return True
