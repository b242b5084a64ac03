"""Images read by rows, and masks written by rows that keep the image's place on the ground.

Unlike the readers of data sets, these heed files beside the image (world files, masks): a user's picture may have them.

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

NODATA = 255  # of a mask, where the image shows nothing
_CACHE_BYTES = 64 * 2**20  # GDAL would take 5 % of the machine's memory for blocks that are read only once here
_BLOCK = 256  # side of a mask's blocks, px

Mask = npt.NDArray[np.bool_]


class Raster:
    """An opened raster that is read by rows."""

    def __init__(self, path: Path, dataset: Any, bands: int | tuple[int, ...]) -> None:
        self.path, self._dataset, self._bands = path, dataset, bands
        self.height, self.width = dataset.shape
        self.crs, self.transform = dataset.crs, dataset.transform
        self.gcps, self.rpcs = dataset.gcps, dataset.rpcs
        self.files = tuple(map(Path, dataset.files))  # its own, and those beside it, such as a world file

    def place(self) -> dict[str, Any]:
        """What a raster of the same place is written with: a system and a transform, control points, or RPCs."""
        points, crs = self.gcps
        if self.crs is None and points:
            return {"gcps": points, "crs": crs}
        return {"crs": self.crs, "transform": self.transform, **({"rpcs": self.rpcs} if self.rpcs else {})}

    def rows(self, first: int, last: int) -> Pixels:
        """Rows from the first to before the last: (H,W,3) of an image, (H,W) of a label.

        Raises:
            DataError: the file breaks off.
        """
        with _reading(self.path):
            found: Pixels = self._dataset.read(self._bands, window=self._across(first, last))
        return to_hwc(found) if found.ndim == 3 else found

    def valid(self, first: int, last: int) -> Mask:
        """Where these rows show something, as (H,W): neither nodata nor transparent nor masked.

        Raises:
            DataError: the file breaks off.
        """
        with _reading(self.path):
            return np.asarray(self._dataset.dataset_mask(window=self._across(first, last)) > 0)

    def _across(self, first: int, last: int) -> Window:
        return Window(0, first, self.width, last - first)


@contextmanager
def open_image(path: Path) -> Iterator[Raster]:
    """Open an image for reading.

    Raises:
        DataError: it is no image, or no RGB image of bytes.
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
        DataError: it is not one band of bytes as large as the image.
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


def _has_palette(dataset: Any) -> bool:
    return dataset.colorinterp[0] is ColorInterp.palette


def _conversion(path: Path, dataset: Any) -> str:
    out = path.with_name(f"{path.stem}-rgb.tif")
    if _has_palette(dataset):
        return f"gdal_translate -expand rgb {path} {out}"
    bands = "-b 1 -b 1 -b 1" if dataset.count < 3 else "-b 1 -b 2 -b 3"
    return f"gdal_translate {bands} -ot Byte {'' if dataset.dtypes[0] == 'uint8' else '-scale '}{path} {out}"


class MaskWriter:
    """Takes a mask row by row, and hands it on in whole rows of blocks: one that is written twice takes room twice."""

    def __init__(self, dataset: Any) -> None:
        self.checksum = 0
        self._dataset = dataset
        self._held_HW = np.empty((0, dataset.width), np.uint8)
        self._written = 0  # rows

    def write(self, mask_HW: Pixels) -> None:
        """Take the next rows: 0, 1, or ``NODATA``."""
        self.checksum = zlib.crc32(mask_HW.tobytes(), self.checksum)
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
def new_mask(path: Path, image: Raster, channel: str, tags: Mapping[str, str]) -> Iterator[MaskWriter]:
    """A compressed GeoTIFF as large as the image and in its place, which takes its name once it is whole.

    It is read back before: GDAL may come upon a full disk only as it closes the file, and then says nothing.

    Args:
        path: of the mask; replaced if it exists.
        image: whose mask it is.
        channel: what 1 means, written as the band's description.
        tags: written into the file.

    Raises:
        DataError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    profile = {
        "driver": "GTiff", "dtype": "uint8", "count": 1, "nodata": NODATA, "width": image.width, "height": image.height,
        "tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK, "compress": "deflate", "bigtiff": "if_safer",
        **image.place(),
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
    """A mask that ``new_mask`` has written, as (H,W): 0, 1, or ``NODATA``.

    Raises:
        DataError: it cannot be read.
    """
    with _opened(path) as dataset, _reading(path):
        return np.asarray(dataset.read(1))


def is_mask(file: Path) -> bool:
    """Whether a file is a mask that ``new_mask`` has written."""
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
