"""Images read by rows, and masks written by rows that keep the image's place on the ground.

Unlike the readers of data sets, these heed files beside the image (world files, masks): a user's picture may have them.

Shape suffixes: C = 3 colours (RGB), H height, W width.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from roofscale.data.geotiff import interleaved
from roofscale.data.sample import Pixels
from roofscale.errors import DataError

NODATA = 255  # of a mask, where the image shows nothing
_CACHE_BYTES = 64 * 2**20  # GDAL would take 5 % of the machine's memory for blocks that are read only once here
_BLOCK = 256  # side of a mask's blocks, px

Mask = npt.NDArray[np.bool_]


class Image:
    """An opened RGB image of bytes, with or without a place on the ground."""

    def __init__(self, path: Path, dataset: Any) -> None:
        self.path, self._dataset = path, dataset
        self.height, self.width = dataset.shape
        self.crs, self.transform = dataset.crs, dataset.transform

    def rows(self, first: int, last: int) -> Pixels:
        """Rows from the first to before the last, as (H,W,3)."""
        return interleaved(self._dataset.read((1, 2, 3), window=self._across(first, last)))

    def valid(self, first: int, last: int) -> Mask:
        """Where these rows show something, as (H,W): neither nodata nor transparent nor masked."""
        return np.asarray(self._dataset.dataset_mask(window=self._across(first, last)) > 0)

    def _across(self, first: int, last: int) -> Window:
        return Window(0, first, self.width, last - first)


@contextmanager
def open_image(path: Path) -> Iterator[Image]:
    """Open an image for reading.

    Raises:
        DataError: it is no image, no RGB image of bytes, or breaks off while it is read inside the block.
    """
    with _opened(path, "an image, such as a GeoTIFF, PNG or JPEG") as dataset:
        if dataset.count not in (3, 4) or any(kind != "uint8" for kind in dataset.dtypes):
            raise DataError(
                f"{path}: {_bands(dataset)}; expected an RGB image of 8 bits, as the model was trained on. "
                f"Convert it, for example: {_conversion(path, dataset)}"
            )
        yield Image(path, dataset)


def _bands(dataset: Any) -> str:
    return f"{dataset.count} band(s) of {dataset.dtypes[0]}{', a palette' if _has_palette(dataset) else ''}"


def _has_palette(dataset: Any) -> bool:
    return dataset.colorinterp[0] is ColorInterp.palette


def _conversion(path: Path, dataset: Any) -> str:
    out = path.with_name(f"{path.stem}-rgb.tif")
    if _has_palette(dataset):
        return f"gdal_translate -expand rgb {path} {out}"
    bands = "-b 1 -b 1 -b 1" if dataset.count < 3 else "-b 1 -b 2 -b 3"
    return f"gdal_translate {bands} -ot Byte {'' if dataset.dtypes[0] == 'uint8' else '-scale '}{path} {out}"


@contextmanager
def open_label(path: Path, image: Image) -> Iterator[Any]:
    """Open the label of an image for reading.

    Raises:
        DataError: it is not one band of bytes as large as the image, or breaks off while it is read inside the block.
    """
    with _opened(path, "the label of an image: a raster of one band, 0 or 1") as dataset:
        if dataset.count != 1 or dataset.dtypes[0] != "uint8" or dataset.shape != (image.height, image.width):
            raise DataError(
                f"{path}: {dataset.width}x{dataset.height} px, {_bands(dataset)}; expected one band of uint8, and "
                f"{image.width}x{image.height} px like {image.path}. Export it again."
            )
        yield dataset


@contextmanager
def _opened(path: Path, expected: str) -> Iterator[Any]:
    try:
        with rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES), warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path) as dataset:
                yield dataset
    except RasterioError as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise DataError(f"{path}: cannot be read ({reason}); expected {expected}. Is it whole?") from error


class MaskWriter:
    """Takes a mask row by row, and hands it on in whole rows of blocks: one that is written twice takes room twice."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self._held_HW = np.empty((0, dataset.width), np.uint8)
        self._written = 0  # rows

    def write(self, mask_HW: Pixels) -> None:
        """Take the next rows: 0, 1, or ``NODATA``."""
        self._held_HW = np.concatenate([self._held_HW, mask_HW])
        self._hand_on(len(self._held_HW) // _BLOCK * _BLOCK)

    def finish(self) -> None:
        """Hand on what is left."""
        self._hand_on(len(self._held_HW))

    def _hand_on(self, count: int) -> None:
        if count:
            window = Window(0, self._written, self._dataset.width, count)
            self._dataset.write(self._held_HW[:count], 1, window=window)
            self._written += count
            self._held_HW = self._held_HW[count:]


@contextmanager
def new_mask(path: Path, image: Image, channel: str, tags: Mapping[str, str]) -> Iterator[MaskWriter]:
    """A compressed GeoTIFF as large as the image and in its place, which takes its name once it is whole.

    Args:
        path: of the mask; replaced if it exists.
        image: whose mask it is.
        channel: what 1 means, written as the band's description.
        tags: written into the file.
    """
    partial = path.with_name(f".{path.name}.partial")
    profile = {
        "driver": "GTiff", "dtype": "uint8", "count": 1, "nodata": NODATA, "width": image.width, "height": image.height,
        "crs": image.crs, "transform": image.transform, "tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK,
        "compress": "deflate", "bigtiff": "if_safer",
    }  # fmt: skip
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(partial, "w", **profile) as dataset:
                dataset.set_band_description(1, channel)
                dataset.update_tags(**tags)
                writer = MaskWriter(dataset)
                yield writer
                writer.finish()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
