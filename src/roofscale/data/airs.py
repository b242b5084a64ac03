"""The AIRS data set (Chen et al. 2019): roof labels on GeoTIFF tiles of 10000x10000 px, read by windows.

Tiles are cut on a grid of ``window_px``. A window that extends over the edge of its tile is padded with black and with
no roof; a tile smaller than a window is one sample of its own size. Windows without any roof are samples like others.
"""

import contextlib
import dataclasses
import functools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from rasterio.windows import Window

from roofscale.data import folders, geotiff
from roofscale.data.file_error import FileError, FileErrorKind
from roofscale.data.leaks import ImageFingerprint, read_footprint
from roofscale.data.sample import CHANNELS, Pixels, Sample

_log = logging.getLogger(__name__)

PARTS = ("train", "val", "test")
VISUAL = "_vis"  # suffix of the label copies for viewing, which hold 0 and 255 instead of 0 and 1


@dataclass(frozen=True)
class Tile:
    """The image and label files of one tile; missing files are reported when they are read."""

    image: Path
    label: Path

    @property
    def id(self) -> str:
        """The image's file name without its ending, such as 'christchurch_1001'."""
        return self.image.stem


class TileWindow(NamedTuple):
    """A square of one tile, by its upper left corner in px."""

    tile: Tile
    row: int
    col: int


@dataclass
class AirsSource:
    """A selection of windows of AIRS tiles.

    Windows are numbered: those of the first tile, row by row, then those of the second. All 80,000 windows of 1024 px
    of 857 tiles take 0.6 MiB in this form, so that little has to be sent to a loader process.
    """

    tiles: tuple[Tile, ...]
    headers: tuple[ImageFingerprint, ...]  # of the tiles' images; a tile that does not open has no shape and one window
    window_px: int
    numbers_N: npt.NDArray[np.int64]  # the windows taken, in this order
    roof_share_N: npt.NDArray[np.float32] | None = None  # roof px over px of each window, set by ``airs_prepare``
    copies: Mapping[Tile, Path] = field(default_factory=dict)  # of tiles, faster to read from: see ``airs_cache``
    name: str = "airs"
    labelled: tuple[bool, ...] = (True, False, False, False)

    def __len__(self) -> int:
        return len(self.numbers_N)

    def window(self, index: int) -> TileWindow:
        """Return the tile and the corner of sample ``index``."""
        tile = int(self.tile_N[index])
        _, columns = _grid(self.headers[tile], self.window_px)
        row, col = divmod(int(self.numbers_N[index] - self._firsts_T[tile]), columns)
        return TileWindow(self.tiles[tile], row * self.window_px, col * self.window_px)

    def path(self, index: int) -> Path:
        """Return the image file of the tile that sample ``index`` is read from."""
        return self.window(index).tile.image

    def files(self, index: int) -> tuple[Path, ...]:
        """Return all files that sample ``index`` is read from: the image, then the label."""
        tile = self.window(index).tile
        return tile.image, tile.label

    def sample_key(self, index: int) -> str:
        """Return what identifies sample ``index`` in any folder: the tile's file name, the window's corner and side."""
        window = self.window(index)
        return f"{window.tile.image.name} {window.row} {window.col} {self.window_px}"

    def footprints(self) -> list[ImageFingerprint]:
        """Return the footprints of the tiles that have a window in this source; no file is opened again."""
        return [self.headers[tile] for tile in self.tiles_taken()]

    @functools.cached_property
    def tile_N(self) -> npt.NDArray[np.int64]:
        """Index into ``tiles`` of each window's tile."""
        return np.searchsorted(self._firsts_T, self.numbers_N, side="right") - 1

    def tiles_taken(self) -> list[int]:
        """Return the indices of the tiles that have a window in this source, ascending."""
        return [int(tile) for tile in np.unique(self.tile_N)]

    def read(self, index: int) -> Sample:
        """Read one window of image and label, as uint8.

        Raises:
            FileError: a file is missing or broken, image and label differ in size, or the label holds values other
                than 0 and 1.
        """
        window = self.window(index)
        image_HWC, roof_HW, tile_shape = self._read_copy(window) or self._read_both(window)
        check_label_values(window.tile.label, int(roof_HW.max(initial=0)))
        if max(tile_shape) >= self.window_px:
            image_HWC, roof_HW = _padded(image_HWC, self.window_px), _padded(roof_HW, self.window_px)
        target_HWK = np.zeros((*roof_HW.shape, len(CHANNELS)), np.uint8)
        target_HWK[..., 0] = roof_HW
        return Sample(f"{window.tile.id}_{window.row}_{window.col}", image_HWC, target_HWK)

    def with_copies(self, copies: Mapping[Tile, Path]) -> "AirsSource":
        """Return the same windows, read from the copies of their tiles that exist."""
        return dataclasses.replace(self, copies=copies)

    def subset(self, indices: Sequence[int]) -> "AirsSource":
        """Return the same data set with only these windows, in this order."""
        taken_N = np.asarray(indices, np.int64)
        shares_N = None if self.roof_share_N is None else self.roof_share_N[taken_N]
        return dataclasses.replace(self, numbers_N=self.numbers_N[taken_N], roof_share_N=shares_N)

    @functools.cached_property
    def _firsts_T(self) -> npt.NDArray[np.int64]:
        """Number of each tile's first window."""
        counts = [math.prod(_grid(header, self.window_px)) for header in self.headers]
        return np.cumsum([0, *counts[:-1]], dtype=np.int64)

    def _read_copy(self, tile_window: TileWindow) -> tuple[Pixels, Pixels, tuple[int, int]] | None:
        """Read the same as ``_read_both`` from the tile's copy.

        None if there is no intact copy: a broken one is removed, and the next run makes it again.
        """
        if (copy := self.copies.get(tile_window.tile)) is None:
            return None
        try:
            with geotiff.open_raster(copy) as dataset:
                *image_3HW, roof_HW = dataset.read(window=self.clipped(tile_window, dataset.shape))
                return geotiff.to_hwc(image_3HW), roof_HW, dataset.shape
        except FileError as problem:
            if problem.kind is FileErrorKind.BROKEN:  # a missing one was removed by another run to free space
                _log.warning("read from the original instead: %s", problem)
                with contextlib.suppress(OSError):
                    copy.unlink(missing_ok=True)
            return None

    def _read_both(self, tile_window: TileWindow) -> tuple[Pixels, Pixels, tuple[int, int]]:
        """Read the part of a window that lies on its tile.

        Returns:
            Image (H,W,3), label (H,W), and the tile's (height, width) in px.
        """
        image_file, label_file = tile_window.tile.image, tile_window.tile.label
        with geotiff.open_raster(image_file) as image:
            shape, window = image.shape, self.clipped(tile_window, image.shape)
            image_HWC = geotiff.to_hwc(image.read(geotiff.rgb_bands(image_file, image), window=window))
        with geotiff.open_raster(label_file) as label:
            geotiff.check_band(label_file, label)
            geotiff.check_same_size(image_file, shape, label_file, label.shape)
            return image_HWC, label.read(1, window=window), shape

    def clipped(self, where: TileWindow, shape: tuple[int, int]) -> Window:
        """Return the part of a window that lies on its tile; ``shape`` is the tile's (height, width) in px."""
        height, width = (
            min(self.window_px, size - start) for size, start in zip(shape, (where.row, where.col), strict=True)
        )
        return Window(where.col, where.row, width, height)


def check_label_values(label: Path, largest: int) -> None:
    """Raise FileError if the largest value of a label is more than 1."""
    if largest > 1:
        raise FileError(
            FileErrorKind.UNKNOWN_ID,
            label,
            f"unknown class id {largest}; expected 0 or 1. Use the plain labels, not their '{VISUAL}' twins.",
        )


def find(root: Path) -> Path | None:
    """Return the folder that holds train/image and train/label, at or under ``root``, or None."""
    return folders.find_folder(
        root, lambda folder: all((folder / "train" / kind).is_dir() for kind in ("image", "label"))
    )


def split_folder(folder: Path, part: str) -> Path:
    """Return the folder of train, val or test; the original download has test next to trainval, not in it."""
    sibling = folder.parent / part
    return sibling if folder.name == "trainval" and not (folder / part).is_dir() else folder / part


def tiles_of(folder: Path, part: str) -> tuple[Tile, ...]:
    """Return the tiles of train, val or test: those listed in ``<part>.txt``, or else all images of the part's folder.

    Raises:
        FileError: ``<part>.txt`` is not a text file.
    """
    part_folder = split_folder(folder, part)
    listing = folder / f"{part}.txt"
    names = folders.read_names(listing) if listing.is_file() else folders.names_in(part_folder / "image", folders.TIFF)
    return tuple(
        Tile(*(folders.file_named(part_folder / kind, name, folders.TIFF) for kind in ("image", "label")))
        for name in names
        if not name.endswith(VISUAL)
    )


def open_tiles(tiles: Sequence[Tile], window_px: int, headers: Sequence[ImageFingerprint] | None = None) -> AirsSource:
    """Return all windows of ``tiles``, of ``window_px`` a side.

    Only image headers are used, and read here unless they are given. A tile that does not open counts as one window,
    so that the error is raised when that window is read.
    """
    headers = tuple(read_footprint(tile.image) for tile in tiles) if headers is None else tuple(headers)
    count = sum(math.prod(_grid(header, window_px)) for header in headers)
    return AirsSource(tuple(tiles), headers, window_px, np.arange(count))


def _grid(header: ImageFingerprint, window_px: int) -> tuple[int, int]:
    """Return the number of rows and columns of a tile's windows."""
    if header.shape is None:
        return 1, 1
    height, width = header.shape
    return math.ceil(height / window_px), math.ceil(width / window_px)


def _padded(array: Pixels, side: int) -> Pixels:
    """Pad with 0 at the right and at the bottom to ``side`` px."""
    missing = [(0, side - array.shape[0]), (0, side - array.shape[1]), (0, 0)][: array.ndim]
    return np.pad(array, missing) if any(after for _, after in missing) else array
