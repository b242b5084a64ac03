"""Generated aerial images with believable roofs, on disk exactly as the real data sets are.

``scene`` and ``roofs`` say what there is, ``town`` plans it, ``paint`` draws it, ``writers`` lays it out on disk.
"""

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm

from roofscale.data.generate.spec import GenerateSpec

__all__ = ["GenerateSpec", "generate", "was_generated"]

_NOTE = "generated.json"  # in each data set's folder: the spec that it was made from


def generate(root: Path, spec: GenerateSpec) -> tuple[Path, ...]:
    """Write the data sets of ``spec`` to ``<root>/<data set>`` and return these folders; what is there already is kept.

    Each data set is written under another name and renamed when it is whole: a killed generation leaves nothing that
    looks complete, and of two processes at once the first to finish wins.

    Raises:
        ConfigError: a folder of that name is there already and was not generated from this spec.
    """
    from roofscale.data.generate import writers

    write = {"rid": writers.write_rid, "roofline": writers.write_roofline, "airs": writers.write_airs}
    return tuple(_generate_one(root / name, spec.only(name), write[name]) for name in spec.datasets)


def _generate_one(folder: Path, spec: GenerateSpec, write: Callable[[Path, GenerateSpec], Iterator[int]]) -> Path:
    if is_generated(folder, spec):
        return folder
    _sweep(folder)
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    totals = {"rid": spec.train + spec.val + spec.test, "roofline": spec.roofline_samples, "airs": sum(spec.airs_tiles)}
    try:
        bar = tqdm(
            total=totals[spec.datasets[0]], desc=f"generating {folder.name}", file=sys.stderr, leave=False, disable=None
        )
        with bar:
            for _ in write(partial, spec):
                bar.update()
        (partial / _NOTE).write_text(json.dumps(dataclasses.asdict(spec), indent=1))
        _publish(partial, folder, spec)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _sweep(folder: Path) -> None:
    """Remove what processes that are no more left unfinished."""
    import psutil  # only where data is generated; training reads this package too

    for partial in folder.parent.glob(f".{folder.name}.partial-*"):
        owner = int(partial.name.rpartition("-")[2])
        if owner == os.getpid() or not psutil.pid_exists(owner):
            shutil.rmtree(partial, ignore_errors=True)


def _publish(partial: Path, folder: Path, spec: GenerateSpec) -> None:
    try:
        partial.rename(folder)
    except OSError:
        if not is_generated(folder, spec):  # no other process was faster: something else is in the way
            raise


def was_generated(folder: Path) -> bool:
    """Whether a data set's folder holds generated images, of whatever spec."""
    return (folder / _NOTE).is_file()


def is_generated(folder: Path, spec: GenerateSpec) -> bool:
    """Whether the folder holds a whole data set generated from exactly this spec.

    Raises:
        ConfigError: the folder holds something else.
    """
    from roofscale.errors import ConfigError

    if not folder.exists():
        return False
    note = folder / _NOTE
    written = json.loads(note.read_text()) if note.is_file() else None
    if written != json.loads(json.dumps(dataclasses.asdict(spec))):
        raise ConfigError(
            f"{folder}: there is something here that was not generated from this spec; expected a new "
            "or empty place. Name another folder, or remove this one."
        )
    return True
