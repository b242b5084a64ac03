"""Synthetic aerial images with plausible roofs, in the on-disk formats of the real data sets.

``scene`` and ``roofs`` define the objects, ``layout`` plans a scene, ``render`` draws it, ``writers`` writes the files.
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

NOTE = "generated.json"  # in each data set's folder: its spec, and the real samples joined to it
_Writer = Callable[[Path, GenerateSpec], Iterator[int]]


def generate(root: Path, spec: GenerateSpec, join: Path | None = None, only: Sequence[str] = ()) -> tuple[Path, ...]:
    """Write the data sets of ``spec`` to ``<root>/<data set>`` and return these folders; existing ones are kept.

    Each data set is written under another name and renamed when it is complete: a killed generation leaves nothing that
    looks complete, and of two processes at once the first to finish wins.

    Args:
        root: the data root to write to.
        spec: what to generate.
        join: an imdb.mat whose samples are appended to the generated ones in Roofline's file.
        only: names of RID images, such as '7'; the others are listed in its splits, but not drawn. Empty: all.

    Raises:
        ConfigError: a folder of that name exists and was not generated from this spec; or ``join`` has images of
            another size, or the spec has no Roofline to join it to.
        FileError: ``join`` is not a valid imdb.mat.
    """
    from roofscale.data.synthetic import writers

    joined = RealSamples.of(join, spec) if join else None
    write: dict[str, _Writer] = {
        "rid": functools.partial(writers.write_rid, only=only),
        "roofline": functools.partial(writers.write_roofline, joined=joined),
        "airs": writers.write_airs,
    }
    more: dict[str, dict[str, Any]] = {
        "rid": {"only": list(only)} if only else {},
        "roofline": {"joined": joined.as_dict()} if joined else {},
    }
    return tuple(
        _generate_dataset(root / name, spec.for_dataset(name), write[name], more.get(name, {}))
        for name in spec.datasets
    )


def _generate_dataset(folder: Path, spec: GenerateSpec, write: _Writer, more: Mapping[str, Any]) -> Path:
    """Write the one data set of ``spec``, unless the folder has it; ``more`` is added to its note."""
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
            if not _holds(folder, note):  # else another process has finished the same data set first
                raise
    return folder


def _note(spec: GenerateSpec, more: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a data set's note, as it reads back from JSON (tuples become lists)."""
    note = {**dataclasses.asdict(spec), **more}
    read_back: dict[str, Any] = json.loads(json.dumps(note))
    return read_back


def _holds(folder: Path, note: dict[str, Any]) -> bool:
    """Return whether the folder holds a complete data set of exactly this note.

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
            "or empty folder. Name another folder, or remove this one."
        )
    return True
