"""Find a data set under a folder, however deep its download nested it."""

import os
from collections.abc import Callable
from pathlib import Path

_DEEPEST = 3  # <root>/rid/RID_dataset/..., <root>/airs/AIRS/trainval/...


def find_folder(root: Path, is_it: Callable[[Path], bool], deepest: int = _DEEPEST) -> Path | None:
    """Return the first folder at or under ``root`` for which ``is_it`` holds, breadth first and by name."""
    level = [root] if root.is_dir() else []
    for depth in range(deepest + 1):
        for folder in level:
            if is_it(folder):
                return folder
        if depth < deepest:
            level = [child for folder in level for child in _subfolders(folder)]
    return None


def _subfolders(folder: Path) -> list[Path]:
    """The visible folders in a folder, by name; none where it may not be looked into."""
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(e.path) for e in entries if not e.name.startswith(".") and e.is_dir())
    except OSError:
        return []


def read_names(file: Path) -> tuple[str, ...]:
    """The names in a split file, one a line, without their endings."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return tuple(Path(line.strip()).stem for line in lines if line.strip())


def natural_key(name: str) -> tuple[int, int, str]:
    """Sort '9' before '10', and numbers before words."""
    return (0, int(name), name) if name.isdecimal() else (1, 0, name)
