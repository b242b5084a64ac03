"""Images read by rows, and masks written by rows with the image's georeference.

Unlike the readers of data sets, these use files next to the image (world files, masks): a user's image may have them.

Shape suffixes: C = 3 colours (RGB), H height, W width.
"""

import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError, RasterioIOError
from rasterio.windows import Window

from roofscale.data.file_error import FileError
from roofscale.data.geotiff import described, rgb_bands, to_hwc
from roofscale.data.sample import Pixels
from roofscale.errors import DataError, one_line

NODATA = 255  # value of a mask where the image is not valid
_CACHE_BYTES = 64 * 2**20  # GDAL's default is 5 % of the machine's memory, for blocks that are read only once here
_BLOCK = 256  # side of a mask's GeoTIFF blocks, px

Mask = npt.NDArray[np.bool_]


class Raster:
    """An opened raster that is read by rows.

    Args:
        path: of the file.
        dataset: rasterio's open dataset.
        bands: the bands to read, counted from 1; a single number gives arrays without a band axis.
    """

    def __init__(self, path: Path, dataset: Any, bands: int | tuple[int, ...]) -> None:
        self.path, self._dataset, self._bands = path, dataset, bands
        self.height, self.width = dataset.shape
        self.crs, self.transform = dataset.crs, dataset.transform
        self.gcps, self.rpcs = dataset.gcps, dataset.rpcs
        self.files = tuple(map(Path, dataset.files))  # the file and those next to it, such as a world file

    def georeference(self) -> dict[str, Any]:
        """Return rasterio's georeference options for a raster of the same area: CRS and transform, GCPs, or RPCs."""
        points, crs = self.gcps
        if self.crs is None and points:
            return {"gcps": points, "crs": crs}
        return {"crs": self.crs, "transform": self.transform, **({"rpcs": self.rpcs} if self.rpcs else {})}

    def rows(self, first: int, last: int) -> Pixels:
        """Read the rows ``first`` to before ``last``: (H,W,3) uint8 of an image, (H,W) uint8 of a label.

        Raises:
            DataError: the file is truncated or damaged.
        """
        with _reading(self.path):
            pixels: Pixels = self._dataset.read(self._bands, window=self._row_window(first, last))
        return to_hwc(pixels) if pixels.ndim == 3 else pixels

    def valid(self, first: int, last: int) -> Mask:
        """Read the mask (H,W) of valid pixels of these rows: neither nodata nor transparent nor masked.

        Raises:
            DataError: the file is truncated or damaged.
        """
        with _reading(self.path):
            return np.asarray(self._dataset.dataset_mask(window=self._row_window(first, last)) > 0)

    def _row_window(self, first: int, last: int) -> Window:
        return Window(0, first, self.width, last - first)


@contextmanager
def open_image(path: Path) -> Iterator[Raster]:
    """Open an image for reading.

    Raises:
        DataError: the file cannot be read, or is no 8-bit RGB image.
    """
    with _opened(path) as dataset:
        try:
            bands = rgb_bands(path, dataset)
        except FileError:
            raise DataError(
                f"{path}: {described(dataset)}; expected an RGB image of 8 bits, as the model was trained on. "
                f"Convert it, for example: {_conversion(path, dataset)}"
            ) from None
        yield Raster(path, dataset, bands)


@contextmanager
def open_label(path: Path, image: Raster) -> Iterator[Raster]:
    """Open the label of an image for reading.

    Raises:
        DataError: the file is not one band of uint8 in the size of the image.
    """
    with _opened(path) as dataset:
        if dataset.count != 1 or dataset.dtypes[0] != "uint8" or dataset.shape != (image.height, image.width):
            raise DataError(
                f"{path}: {dataset.width}x{dataset.height} px, {described(dataset)}; expected one band of uint8, and "
                f"{image.width}x{image.height} px like {image.path}. Export it again."
            )
        yield Raster(path, dataset, 1)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    with rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with _reading(path):
            dataset = rasterio.open(path)
        with dataset:
            yield dataset


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except RasterioError as error:
        raise DataError(
            f"{path}: cannot be read ({one_line(error.__cause__ or error)}); expected a raster, such as a whole "
            "GeoTIFF."
        ) from error


def _conversion(path: Path, dataset: Any) -> str:
    """Return the GDAL command that makes an 8-bit RGB image of a file."""
    out = path.with_name(f"{path.stem}-rgb.tif")
    if dataset.colorinterp[0] is ColorInterp.palette:
        return f"gdal_translate -expand rgb {path} {out}"
    bands = "-b 1 -b 1 -b 1" if dataset.count < 3 else "-b 1 -b 2 -b 3"
    return f"gdal_translate {bands} -ot Byte {'' if dataset.dtypes[0] == 'uint8' else '-scale '}{path} {out}"


class MaskWriter:
    """A writer that collects rows of a mask and writes complete rows of blocks.

    A compressed GeoTIFF block that is written twice takes its space in the file twice.
    """

    def __init__(self, dataset: Any) -> None:
        self.checksum = 0
        self._dataset = dataset
        self._held_HW = np.empty((0, dataset.width), np.uint8)
        self._written = 0  # rows

    def write(self, mask_HW: Pixels) -> None:
        """Append the next rows (H,W) uint8: 0, 1, or ``NODATA``."""
        self.checksum = zlib.crc32(mask_HW.tobytes(), self.checksum)
        self._held_HW = np.concatenate([self._held_HW, mask_HW])
        self._flush(len(self._held_HW) // _BLOCK * _BLOCK)

    def finish(self) -> None:
        """Write the remaining rows."""
        self._flush(len(self._held_HW))

    def _flush(self, count: int) -> None:
        if count:
            window = Window(0, self._written, self._dataset.width, count)
            self._dataset.write(self._held_HW[:count], 1, window=window)
            self._written += count
            self._held_HW = self._held_HW[count:]


@contextmanager
def new_mask(path: Path, image: Raster, channel: str, tags: Mapping[str, str]) -> Iterator[MaskWriter]:
    """Create a mask as a compressed GeoTIFF with the image's size and georeference, under its name once complete.

    The file is read back first: GDAL may run out of disk space only while it closes the file, without an error.

    Args:
        path: of the mask; replaced if it exists.
        image: the image that the mask belongs to.
        channel: the channel that 1 stands for, written as the band's description.
        tags: written into the file.

    Raises:
        DataError: the mask cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    profile = {
        "driver": "GTiff", "dtype": "uint8", "count": 1, "nodata": NODATA, "width": image.width, "height": image.height,
        "tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK, "compress": "deflate", "bigtiff": "if_safer",
        **image.georeference(),
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
            if _checksum(partial) != writer.checksum:
                raise RasterioIOError("what was written cannot be read back")
        partial.replace(path)
    except RasterioError as error:
        why = one_line(error.__cause__ or error)
        raise DataError(f"{path}: the mask cannot be written ({why}); is there room on the disk?") from error
    finally:
        partial.unlink(missing_ok=True)


def read_mask(path: Path) -> Pixels:
    """Read a mask that ``new_mask`` has written, (H,W) uint8: 0, 1, or ``NODATA``.

    Raises:
        DataError: the file cannot be read.
    """
    with _opened(path) as dataset, _reading(path):
        return np.asarray(dataset.read(1))


def is_mask(file: Path) -> bool:
    """Return whether a file is a mask that ``new_mask`` has written."""
    try:
        with _opened(file) as dataset:
            return bool(dataset.count == 1 and {"model", "run_id"} <= dataset.tags().keys())
    except DataError:
        return False


def _checksum(mask: Path) -> int:
    total = 0
    with rasterio.open(mask) as dataset:
        for first in range(0, dataset.height, _BLOCK):
            rows = min(_BLOCK, dataset.height - first)
            total = zlib.crc32(dataset.read(1, window=Window(0, first, dataset.width, rows)), total)
    return total
