"""The error for a broken file of a data set, with a kind and a path: readers raise it, the check collects it."""

import enum
from pathlib import Path

from roofscale.errors import DataError, shown


class FileErrorKind(enum.StrEnum):
    """The kind of a file error."""

    MISSING = "missing"  # named by a split file, or image or mask without the other
    BROKEN = "broken"  # cannot be decoded, or is not an image of the expected kind
    MISMATCHED = "mismatched"  # image and mask differ in size
    BLANK = "blank"  # an image of one colour only
    IMPLAUSIBLE = "implausible"  # each value is valid, but all samples together cannot be right, such as scaled to 0-1
    SHIFTED = "shifted"  # a label is georeferenced elsewhere than its image
    UNKNOWN_ID = "unknown_id"  # a mask holds a class id that the data set does not have
    EMPTY = "empty"  # a mask without any roof or line; readers accept it, the check reports it
    IDENTICAL = "leak_identical"  # the same image in two parts of a split
    OVERLAP = "leak_overlap"  # footprints on the ground overlap across parts of a split


class FileError(DataError):
    """An unusable file; its message is ``<path>: <what is wrong, what was expected, remedy>``."""

    def __init__(self, kind: FileErrorKind, path: Path, text: str) -> None:
        super().__init__(kind, path, text)
        self.kind, self.path, self.text = kind, path, text

    def __str__(self) -> str:
        return f"{shown(self.path)}: {self.text}"
