"""Readers of GeoTIFF and PNG files into arrays, with errors that name the file."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import rasterio
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from roofscale.data.file_error import FileError, FileErrorKind
from roofscale.data.sample import Pixels
from roofscale.errors import one_line, shown

# Without this GDAL lists the whole folder at each open, to find side-car files that these data sets do not have.
_GDAL = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}
_COLOURS = ("red", "green", "blue")
_DESCRIPTIONS = {**{colour: colour for colour in _COLOURS}, "r": "red", "g": "green", "b": "blue", "nir": "nir",
                 "infrared": "nir", "near infrared": "nir", "near-infrared": "nir", "alpha": "alpha"}  # fmt: skip
_CONVERT = "Convert it, or take it out of the split."


@contextmanager
def open_raster(path: Path) -> Iterator[Any]:
    """Open a raster for reading; GDAL's errors, on opening and inside the block, are raised as FileError.

    Raises:
        FileError: the file is missing, not a raster, or truncated or damaged where it is read.
    """
    _require_file(path, "a GeoTIFF")
    try:
        with rasterio.Env(**_GDAL), warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path) as dataset:
                yield dataset
    except RasterioError as error:
        reason = one_line(error.__cause__ or error)
        raise FileError(
            FileErrorKind.BROKEN,
            path,
            f"broken file, it cannot be read as a raster ({reason}). Download it again, or set "
            "on_bad_sample=skip to leave it out.",
        ) from error


def _require_file(path: Path, expected: str) -> None:
    if shown(path) != str(path):  # GDAL and MLflow take only names in UTF-8
        raise FileError(
            FileErrorKind.BROKEN,
            path,
            "its name is no UTF-8; expected one that is. Rename it, e.g. with convmv.",
        )
    if not path.is_file():
        raise FileError(
            FileErrorKind.MISSING,
            path,
            f"this file is missing; expected {expected}. Restore it, or take its name out of the split file.",
        )


def read_rgb(path: Path, window: Window | None = None) -> Pixels:
    """Read an RGB image, or a window of it, as (H,W,3) uint8.

    Raises:
        FileError: the file is missing, broken, or has no red, green and blue bands of uint8.
    """
    with open_raster(path) as dataset:
        bands: Pixels = dataset.read(rgb_bands(path, dataset), window=window)
    return to_hwc(bands)


def to_hwc(bands_CHW: Pixels | Sequence[Pixels]) -> Pixels:
    """Return (C,H,W) bands as contiguous (H,W,C) uint8; OpenCV takes a fraction of the time of a transposed copy."""
    return np.asarray(cv2.merge(list(bands_CHW)), np.uint8)


def rgb_bands(path: Path, dataset: Any) -> tuple[int, int, int]:
    """Return the numbers (from 1) of the red, green and blue bands of an open raster, by their metadata, in any order.

    If the bands have no metadata, the first three of three or four are used.

    Raises:
        FileError: the metadata names other bands, or the bands are not uint8.
    """
    meanings = [_meaning(*band) for band in zip(dataset.colorinterp, dataset.descriptions, strict=True)]
    if set(_COLOURS) <= set(meanings):
        red, green, blue = (meanings.index(colour) + 1 for colour in _COLOURS)
    elif dataset.count in (3, 4) and set(meanings[:3]) == {""} and meanings[-1] in ("", "alpha", "nir"):
        red, green, blue = 1, 2, 3
    else:
        raise FileError(FileErrorKind.BROKEN, path, f"{described(dataset)}; expected red, green and blue. {_CONVERT}")
    if any(dataset.dtypes[band - 1] != "uint8" for band in (red, green, blue)):
        raise FileError(FileErrorKind.BROKEN, path, f"{described(dataset)}; expected an RGB image of uint8. {_CONVERT}")
    return red, green, blue


def described(dataset: Any) -> str:
    """Return number, type and meanings of an open raster's bands, for a message."""
    meanings = [_meaning(*band) for band in zip(dataset.colorinterp, dataset.descriptions, strict=True)]
    names = f" ({', '.join(meaning or 'unnamed' for meaning in meanings)})" if any(meanings) else ""
    return f"{dataset.count} band(s) of {dataset.dtypes[0]}{names}"


def _meaning(interpretation: ColorInterp, description: str | None) -> str:
    """Return what a band contains, in GDAL's term; empty if the file has no metadata on it."""
    if interpretation not in (ColorInterp.undefined, ColorInterp.gray):  # GDAL calls a first band without metadata gray
        return str(interpretation.name)
    return _DESCRIPTIONS.get((description or "").strip().lower(), "")


def read_band(path: Path, window: Window | None = None) -> Pixels:
    """Read the one band of a label raster, or a window of it, as (H,W) uint8.

    Raises:
        FileError: the file is missing, broken, or not one band of uint8.
    """
    with open_raster(path) as dataset:
        check_band(path, dataset)
        band: Pixels = dataset.read(1, window=window)
    return band


def check_band(path: Path, dataset: Any) -> None:
    """Raise FileError unless an open raster has one band of uint8."""
    if dataset.count != 1 or dataset.dtypes[0] != "uint8":
        raise FileError(
            FileErrorKind.BROKEN,
            path,
            f"{dataset.count} band(s) of {dataset.dtypes[0]}; expected a mask of one uint8 band. "
            "Export the mask with plain class ids.",
        )


def read_mask_png(path: Path, largest_id: int) -> Pixels:
    """Read a PNG mask of plain class ids as (H,W) uint8.

    Raises:
        FileError: the file is missing, broken, of several bands, or has an id above ``largest_id``.
    """
    _require_file(path, "a PNG of class ids for the image")
    try:
        with Image.open(path) as image:
            mask: npt.NDArray[Any] = np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # broken chunks: SyntaxError
        raise FileError(
            FileErrorKind.BROKEN,
            path,
            f"broken file, it cannot be read as a PNG ({error}). Download it again, or set "
            "on_bad_sample=skip to leave it out.",
        ) from error
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise FileError(
            FileErrorKind.BROKEN,
            path,
            f"a mask of shape {mask.shape} and type {mask.dtype}; expected (H, W) of uint8. "
            "Export the mask with plain class ids.",
        )
    if int(mask.max()) > largest_id:
        unknown = sorted({int(i) for i in np.unique(mask) if i > largest_id})
        raise FileError(
            FileErrorKind.UNKNOWN_ID,
            path,
            f"unknown class id {', '.join(map(str, unknown[:5]))}; expected 0 to {largest_id}. "
            "Use the reviewed masks, which hold plain ids, not colours.",
        )
    return mask


def check_same_size(image: Path, image_size: tuple[int, int], mask: Path, mask_size: tuple[int, int]) -> None:
    """Raise FileError unless image and mask have the same (height, width)."""
    if image_size != mask_size:
        raise FileError(
            FileErrorKind.MISMATCHED,
            mask,
            f"the mask is {mask_size[1]}x{mask_size[0]} px, its image {image} is "
            f"{image_size[1]}x{image_size[0]}; expected the same size. Export one of them again.",
        )
