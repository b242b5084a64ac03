"""The Roofline-Extraction data set (Alidoost et al. 2019): eaves, ridges and hips in one ``imdb.mat``.

The file is MATLAB v7.3, which is HDF5. The data set has no filled roof class and no official split.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from roofscale.data import folders
from roofscale.data.file_error import FileError, FileErrorKind
from roofscale.data.leaks import ImageFingerprint
from roofscale.data.sample import CHANNELS, Pixels, Sample

FILE = "imdb.mat"
ELEMENTS = ("eave", "ridge", "hip")  # the channels of imdb/elements, in the file's order
_TARGET_CHANNELS = [CHANNELS.index(element) for element in ELEMENTS]


class RooflineSource:
    """A selection of the samples of an imdb.mat; sample ``index`` is row ``indices[index]`` of the file.

    Each process opens the file itself, because an HDF5 handle does not survive a fork.
    """

    name = "roofline"
    labelled = tuple(channel in ELEMENTS for channel in CHANNELS)
    roof_share_N = None  # there is no roof class

    def __init__(self, file: Path, indices: tuple[int, ...]) -> None:
        self.file = file
        self.indices = indices
        self._handle: Any = None
        self._owner = -1  # process id that opened the handle

    def __len__(self) -> int:
        return len(self.indices)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None, "_owner": -1}

    def path(self, index: int) -> Path:
        """Return the file that holds every sample."""
        return self.file

    def files(self, index: int) -> tuple[Path, ...]:
        """Return all files that sample ``index`` is read from."""
        return (self.file,)

    def read(self, index: int) -> Sample:
        """Read one sample, as uint8.

        Raises:
            FileError: the file cannot be read, image values are outside 0 to 255, or mask values other than 0 and 1.
        """
        row = self.indices[index]
        try:
            imdb = self._opened()["imdb"]
            image_CHW, elements_CHW = imdb["images"][row], imdb["elements"][row]
        except (OSError, KeyError, ValueError, IndexError, RuntimeError) as error:
            raise _unreadable(self.file, error, row) from error
        image_HWC = _to_uint8(image_CHW, self.file, row)
        return Sample(str(row), image_HWC, _to_target(elements_CHW, self.file, row))

    def subset(self, indices: Sequence[int]) -> "RooflineSource":
        """Return the same data set with only these samples, in this order."""
        return RooflineSource(self.file, tuple(self.indices[i] for i in indices))

    def footprints(self) -> list[ImageFingerprint]:
        """Return no footprint: the samples are not georeferenced."""
        return []

    def sample_key(self, index: int) -> str:
        """Return what identifies sample ``index`` in any copy of the file: its row."""
        return str(self.indices[index])

    def fingerprints(self) -> list[ImageFingerprint]:
        """Return the fingerprint of every sample, by its stored pixels; the samples are not georeferenced."""
        fingerprints = []
        for row in self.indices:
            try:
                stored = self._opened()["imdb"]["images"][row].tobytes()
                digest = hashlib.blake2b(stored, digest_size=16).hexdigest()
            except (OSError, KeyError, RuntimeError):  # ``read`` raises for a broken sample
                digest = ""
            fingerprints.append(ImageFingerprint(self.file, f"sample {row}", digest))
        return fingerprints

    def _opened(self) -> Any:
        """Return this process's handle of the file, opened at the first call."""
        if self._handle is None or self._owner != os.getpid():
            import h5py  # not at the top: training on other data sets does without it

            self._handle, self._owner = h5py.File(self.file, "r"), os.getpid()
        return self._handle


def find(root: Path) -> Path | None:
    """Return the folder that contains imdb.mat, at or under ``root``, or None."""
    return folders.find_folder(root, lambda folder: _file(folder).is_file())


def open_all(folder: Path) -> RooflineSource:
    """Open every sample of the folder's imdb.mat.

    Raises:
        FileError: the file is not HDF5, or an array of the release is missing in it.
    """
    return open_file(_file(folder))


def _file(folder: Path) -> Path:
    return folders.file_named(folder, Path(FILE).stem, folders.MAT)


def open_file(file: Path) -> RooflineSource:
    """Open every sample of an imdb.mat of any file name.

    Raises:
        FileError: the file is not HDF5, or an array of the release is missing in it.
    """
    import h5py

    try:
        with h5py.File(file, "r") as handle:
            images, elements = (_array(handle, name, file).shape for name in ("images", "elements"))
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise _unreadable(file, error) from error
    if len(images) != 4 or images[1] != 3 or images != elements:
        raise FileError(
            FileErrorKind.BROKEN,
            file,
            f"imdb/images is {images} and imdb/elements {elements}; expected both (N, 3, H, W).",
        )
    return RooflineSource(file, tuple(range(images[0])))


def _array(handle: Any, name: str, file: Path) -> Any:
    """Return an array of the file's imdb.

    Raises:
        FileError: it is not an array but a group, or does not hold numbers.
    """
    import h5py

    node = handle[f"imdb/{name}"]
    is_array = isinstance(node, h5py.Dataset)
    if is_array and node.dtype.kind in "biuf":  # boolean, signed or unsigned integer, float
        return node
    actual = f"an array of {node.dtype}" if is_array else f"a group ({', '.join(node) or 'empty'})"
    expected = "expected an array of numbers (N, 3, H, W). Save it as the release does."
    raise FileError(FileErrorKind.BROKEN, file, f"imdb/{name} is {actual}; {expected}")


def _unreadable(file: Path, error: Exception, row: int | None = None) -> FileError:
    """Return the error for a file, or a sample of it, that h5py cannot read."""
    prefix = "" if row is None else f"sample {row}: "
    if "unable to lock file" in str(error):
        return FileError(
            FileErrorKind.BROKEN,
            file,
            f"{prefix}another program has it open and locked ({error}); expected one that may be read. Close it there, "
            "or set HDF5_USE_FILE_LOCKING=FALSE where it is only read.",
        )
    return FileError(
        FileErrorKind.BROKEN,
        file,
        f"{prefix}broken file ({error}); expected a MATLAB v7.3 (HDF5) file with imdb/images and "
        "imdb/elements. Download it again.",
    )


def _to_uint8(image_CHW: Any, file: Path, row: int) -> Pixels:
    """Return a stored image (3,H,W) of 0 to 255 as (H,W,3) uint8, rounded."""
    if not np.isfinite(image_CHW).all() or image_CHW.min() < 0 or image_CHW.max() > 255:
        raise FileError(
            FileErrorKind.BROKEN,
            file,
            f"sample {row}: image values from {image_CHW.min():g} to {image_CHW.max():g}; expected 0 to 255.",
        )
    return np.ascontiguousarray(np.rint(image_CHW).astype(np.uint8).transpose(1, 2, 0))


def _to_target(elements_CHW: Any, file: Path, row: int) -> Pixels:
    """Return stored element masks (3,H,W) of 0 and 1 as a target (H,W,K) uint8."""
    if not np.isin(elements_CHW, (0, 1)).all():
        invalid = elements_CHW[~np.isin(elements_CHW, (0, 1))].flat[0]
        raise FileError(
            FileErrorKind.UNKNOWN_ID, file, f"sample {row}: an element mask holds {invalid:g}; expected 0 or 1."
        )
    target_HWK = np.zeros((*elements_CHW.shape[1:], len(CHANNELS)), np.uint8)
    target_HWK[..., _TARGET_CHANNELS] = elements_CHW.transpose(1, 2, 0)
    return target_HWK
