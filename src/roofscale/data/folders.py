"""The search for a data set's folder below a data root, and for the files in it by name.

File names are compared as a person reads them: a.TIF and a.tif both hold an image called 'a', and an 'ü' of one
character equals one of two (Unicode NFC). Hidden files are not data.
"""

import functools
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from roofscale.data.file_error import FileError, FileErrorKind
from roofscale.errors import ConfigError
from roofscale.files import read_text

TIFF = (".tif", ".tiff")
PNG = (".png",)
MAT = (".mat",)
_COMPANIONS = (".xml", ".tfw", ".ovr", ".prj")  # of an image: statistics, a world file, overviews, its projection
_MAX_DEPTH = 3  # <root>/rid/RID_dataset/..., <root>/airs/AIRS/trainval/...


def find_folder(root: Path, is_it: Callable[[Path], bool], deepest: int = _MAX_DEPTH) -> Path | None:
    """Return the first folder at or up to ``deepest`` levels under ``root`` for which ``is_it`` holds, or None.

    Folders are searched breadth first and by name.
    """
    level = [root] if root.is_dir() else []
    for depth in range(deepest + 1):
        for folder in level:
            if is_it(folder):
                return folder
        if depth < deepest:
            level = [child for folder in level for child in _subfolders(folder)]
    return None


def _subfolders(folder: Path) -> list[Path]:
    """Return the visible folders in a folder, by name; none if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(e.path) for e in entries if not e.name.startswith(".") and e.is_dir())
    except OSError:
        return []


def read_names(file: Path) -> tuple[str, ...]:
    """Return the names in a split file, one a line, without folders and without the ending of an image.

    Raises:
        FileError: the file is not text in UTF-8 or UTF-16.
    """
    try:
        lines = read_text(file).splitlines()
    except ConfigError as error:
        raise FileError(FileErrorKind.BROKEN, file, str(error).partition(f"{file}")[2].lstrip(",: ")) from error
    names = (re.split(r"[/\\]", line.strip())[-1] for line in lines if line.strip())
    return tuple(_stem(name) if _ending(name) in (*TIFF, *PNG) else _normal(name) for name in names)


def names_in(folder: Path, endings: Sequence[str]) -> tuple[str, ...]:
    """Return the names, without endings, of the files of a folder that have one of these endings, sorted."""
    return tuple(sorted(_listing(folder, tuple(endings))))


def file_named(folder: Path, name: str, endings: Sequence[str]) -> Path:
    """Return the path of the file of this name with one of these endings; the usual path if there is none."""
    usual = folder / f"{name}{endings[0]}"
    return usual if usual.is_file() else _listing(folder, tuple(endings)).get(name, usual)


def passed_over(folder: Path, endings: Sequence[str]) -> str:
    """Return a message on the files of a folder that no reader uses, with their number; empty if there are none."""
    read = set(_listing(folder, tuple(endings)).values())
    others = sorted(name for name in _files(folder) if folder / name not in read and _ending(name) not in _COMPANIONS)
    if not others:
        return ""
    some = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
    return (
        f"{len(others)} file(s) in {folder} passed over ({some}): hidden, of a name that is there already, or not "
        f"{' or '.join(endings)}"
    )


def _listing(folder: Path, endings: tuple[str, ...]) -> dict[str, Path]:
    """Return the files of a folder by name; of two of one name the one with the usual ending, else the first."""
    try:
        return _listed(folder, endings, folder.stat().st_mtime_ns)
    except OSError:
        return {}


@functools.lru_cache(maxsize=64)
def _listed(folder: Path, endings: tuple[str, ...], modified: int) -> dict[str, Path]:
    # Preferred names come last, as the last of one name stays in the dictionary.
    files = [name for name in _files(folder) if not name.startswith(".") and _ending(name) in endings]
    files.sort(key=lambda name: (os.path.splitext(name)[1] != endings[0], name), reverse=True)
    return {_stem(name): folder / name for name in files}


def _files(folder: Path) -> Iterable[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if entry.is_file() or entry.is_symlink()]
    except OSError:
        return []


def _stem(name: str) -> str:
    return _normal(os.path.splitext(name)[0])


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _normal(name: str) -> str:
    """Return a name in composed characters (NFC), as most systems write them; macOS writes decomposed ones."""
    return unicodedata.normalize("NFC", name)


def natural_key(name: str) -> tuple[int, int, str]:
    """Return a sort key that puts '9' before '10', and numbers before words."""
    return (0, int(name), name) if name.isdecimal() else (1, 0, name)
