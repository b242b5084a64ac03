"""What can be wrong with a file of a data set: one error with a kind and a path, for readers and for the check."""

import enum
from pathlib import Path

from roofscale.errors import DataError, shown


class FileErrorKind(enum.StrEnum):
    """What is wrong."""

    MISSING = "missing"  # named by a split file or by its twin, but not there
    BROKEN = "broken"  # cannot be decoded, or is no image of the expected kind
    MISMATCHED = "mismatched"  # image and mask differ in size
    BLANK = "blank"  # an image of one colour only
    IMPLAUSIBLE = "implausible"  # each value is allowed, and all together cannot be what they are said to be
    SHIFTED = "shifted"  # a label lies elsewhere on the ground than its image
    UNKNOWN_ID = "unknown_id"  # a mask holds a class id that the data set has not
    EMPTY = "empty"  # a mask without any roof or line; readers take it, the check names it
    IDENTICAL = "leak_identical"  # the same image in two parts of a split
    OVERLAP = "leak_overlap"  # footprints on the ground overlap across parts of a split


class FileError(DataError):
    """A file that cannot be used; ``str`` gives ``<path>: <what is wrong, what was expected, remedy>``."""

    def __init__(self, kind: FileErrorKind, path: Path, text: str) -> None:
        super().__init__(kind, path, text)
        self.kind, self.path, self.text = kind, path, text

    def __str__(self) -> str:
        return f"{shown(self.path)}: {self.text}"
