"""GeoTIFF and PNG files read into arrays, with errors that name the file."""

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
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from roofscale.data.problem import FileProblem, Kind
from roofscale.data.sample import Pixels

# Without this GDAL lists the whole folder at each open, to look for side-car files that these data sets have not.
_GDAL = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a raster for reading; whatever GDAL says against it or its pixels becomes a FileProblem.

    Raises:
        FileProblem: the file is missing, no raster, or breaks off while it is read inside the block.
    """
    if not path.is_file():
        raise FileProblem(
            Kind.MISSING,
            path,
            "this file is missing; expected a GeoTIFF. Restore it, or take its name out of the split file.",
        )
    try:
        with rasterio.Env(**_GDAL), warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path) as dataset:
                yield dataset
    except RasterioError as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise FileProblem(
            Kind.BROKEN,
            path,
            f"broken file, it cannot be read as a raster ({reason}). Download it again, or set "
            "on_bad_sample=skip to leave it out.",
        ) from error


def read_rgb(path: Path, window: Window | None = None) -> Pixels:
    """Read an RGB image, or a window of it, as (H,W,3) uint8.

    Raises:
        FileProblem: missing, broken, or not three bands of uint8.
    """
    with opened(path) as dataset:
        check_rgb(path, dataset)
        bands: Pixels = dataset.read((1, 2, 3), window=window)
    return interleaved(bands)


def interleaved(bands_CHW: Pixels | Sequence[Pixels]) -> Pixels:
    """(C,H,W) to contiguous (H,W,C); a fraction of the time of NumPy's transposed copy."""
    return np.asarray(cv2.merge(list(bands_CHW)), np.uint8)


def check_rgb(path: Path, dataset: Any) -> None:
    """Raise FileProblem unless an opened raster has three or four bands of uint8 (a fourth is taken for alpha)."""
    if dataset.count not in (3, 4) or any(kind != "uint8" for kind in dataset.dtypes):
        raise FileProblem(
            Kind.BROKEN,
            path,
            f"{dataset.count} band(s) of {dataset.dtypes[0]}; expected an RGB image of uint8. "
            "Convert it, or take it out of the split.",
        )


def read_band(path: Path, window: Window | None = None) -> Pixels:
    """Read the one band of a label raster, or a window of it, as (H,W) uint8.

    Raises:
        FileProblem: missing, broken, or not one band of uint8.
    """
    with opened(path) as dataset:
        check_band(path, dataset)
        band: Pixels = dataset.read(1, window=window)
    return band


def check_band(path: Path, dataset: Any) -> None:
    """Raise FileProblem unless an opened raster has one band of uint8."""
    if dataset.count != 1 or dataset.dtypes[0] != "uint8":
        raise FileProblem(
            Kind.BROKEN,
            path,
            f"{dataset.count} band(s) of {dataset.dtypes[0]}; expected a mask of one uint8 band. "
            "Export the mask with plain class ids.",
        )


def read_mask_png(path: Path, largest_id: int) -> Pixels:
    """Read a PNG mask of plain class ids as (H,W) uint8.

    Raises:
        FileProblem: missing, broken, of several bands, or with an id above ``largest_id``.
    """
    if not path.is_file():
        raise FileProblem(
            Kind.MISSING,
            path,
            "this mask is missing; expected a PNG of class ids beside the image. Restore it, or "
            "take its name out of the split file.",
        )
    try:
        with Image.open(path) as image:
            mask: npt.NDArray[Any] = np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:  # PIL reports broken chunks as SyntaxError
        raise FileProblem(
            Kind.BROKEN,
            path,
            f"broken file, it cannot be read as a PNG ({error}). Download it again, or set "
            "on_bad_sample=skip to leave it out.",
        ) from error
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise FileProblem(
            Kind.BROKEN,
            path,
            f"a mask of shape {mask.shape} and type {mask.dtype}; expected (H, W) of uint8. "
            "Export the mask with plain class ids.",
        )
    if int(mask.max()) > largest_id:
        unknown = sorted({int(i) for i in np.unique(mask) if i > largest_id})
        raise FileProblem(
            Kind.UNKNOWN_ID,
            path,
            f"unknown class id {', '.join(map(str, unknown[:5]))}; expected 0 to {largest_id}. "
            "Use the reviewed masks, which hold plain ids, not colours.",
        )
    return mask


def check_same_size(image: Path, image_size: tuple[int, int], mask: Path, mask_size: tuple[int, int]) -> None:
    """Raise FileProblem unless image and mask, both as (height, width), are equally large."""
    if image_size != mask_size:
        raise FileProblem(
            Kind.MISMATCHED,
            mask,
            f"the mask is {mask_size[1]}x{mask_size[0]} px, its image {image} is "
            f"{image_size[1]}x{image_size[0]}; expected the same size. Export one of them again.",
        )
