"""AIRS (Chen et al. 2019): roof labels over 10000x10000 px GeoTIFF tiles, read by windows, never a whole tile.

Tiles are cut on a grid of ``window_px``. A window that hangs over the edge of its tile is padded with black and with
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
VISUAL = "_vis"  # ending of the twins for looking at: 0/255 instead of 0/1


@dataclass(frozen=True)
class Tile:
    """One image with its label; the files need not exist, reading them says so."""

    image: Path
    label: Path

    @property
    def id(self) -> str:
        """'christchurch_1001'."""
        return self.image.stem


class TileWindow(NamedTuple):
    """A square of one tile, by its upper left corner in px."""

    tile: Tile
    row: int
    col: int


@dataclass
class AirsSource:
    """Some windows of AIRS tiles.

    Windows are numbers: those of the first tile, row by row, then those of the second. All 80,000 of 1024 px in 857
    tiles take 0.6 MiB that way, and a loader process is sent little.
    """

    tiles: tuple[Tile, ...]
    headers: tuple[ImageFingerprint, ...]  # of the tiles' images; one without a shape does not open, and is one window
    window_px: int
    numbers_N: npt.NDArray[np.int64]  # the windows taken, in this order
    roof_share_N: npt.NDArray[np.float32] | None = None  # of each window, once somebody has looked
    copies: Mapping[Tile, Path] = field(default_factory=dict)  # of tiles, read from more quickly: see ``tile_cache``
    name: str = "airs"
    labelled: tuple[bool, ...] = (True, False, False, False)

    def __len__(self) -> int:
        return len(self.numbers_N)

    def window(self, index: int) -> TileWindow:
        """Which square of which tile a sample is."""
        tile = int(self.tile_N[index])
        _, columns = _grid(self.headers[tile], self.window_px)
        row, col = divmod(int(self.numbers_N[index] - self._firsts_T[tile]), columns)
        return TileWindow(self.tiles[tile], row * self.window_px, col * self.window_px)

    def path(self, index: int) -> Path:
        """The tile that a window is read from."""
        return self.window(index).tile.image

    def files(self, index: int) -> tuple[Path, ...]:
        """All files that a sample is read from: the image, then the label."""
        tile = self.window(index).tile
        return tile.image, tile.label

    def place(self, index: int) -> str:
        """A window's tile, corner and side, whatever the folder."""
        where = self.window(index)
        return f"{where.tile.image.name} {where.row} {where.col} {self.window_px}"

    def located(self) -> list[ImageFingerprint]:
        """Where each tile lies that it takes windows from; nothing is opened again."""
        return [self.headers[tile] for tile in self.tiles_taken()]

    @functools.cached_property
    def tile_N(self) -> npt.NDArray[np.int64]:
        """Which of the tiles each window lies on."""
        return np.searchsorted(self._firsts_T, self.numbers_N, side="right") - 1

    def tiles_taken(self) -> list[int]:
        """Which of the tiles it takes windows from, in their order."""
        return [int(tile) for tile in np.unique(self.tile_N)]

    def read(self, index: int) -> Sample:
        """Read one window of image and label.

        Raises:
            FileProblem: a file missing or broken, sizes that differ, or a label other than 0 and 1.
        """
        where = self.window(index)
        image_HWC, roof_HW, tile_shape = self._read_copy(where) or self._read_both(where)
        check_label_values(where.tile.label, int(roof_HW.max(initial=0)))
        if max(tile_shape) >= self.window_px:
            image_HWC, roof_HW = _padded(image_HWC, self.window_px), _padded(roof_HW, self.window_px)
        target_HWK = np.zeros((*roof_HW.shape, len(CHANNELS)), np.uint8)
        target_HWK[..., 0] = roof_HW
        return Sample(f"{where.tile.id}_{where.row}_{where.col}", image_HWC, target_HWK)

    def with_copies(self, copies: Mapping[Tile, Path]) -> "AirsSource":
        """The same windows, read from the copies of their tiles where they have one."""
        return dataclasses.replace(self, copies=copies)

    def subset(self, indices: Sequence[int]) -> "AirsSource":
        """The same data set with only these windows, in this order."""
        taken_N = np.asarray(indices, np.int64)
        shares_N = None if self.roof_share_N is None else self.roof_share_N[taken_N]
        return dataclasses.replace(self, numbers_N=self.numbers_N[taken_N], roof_share_N=shares_N)

    @functools.cached_property
    def _firsts_T(self) -> npt.NDArray[np.int64]:
        """The number of each tile's first window."""
        counts = [math.prod(_grid(header, self.window_px)) for header in self.headers]
        return np.cumsum([0, *counts[:-1]], dtype=np.int64)

    def _read_copy(self, where: TileWindow) -> tuple[Pixels, Pixels, tuple[int, int]] | None:
        """As ``_read_both``, from the copy; None where there is no sound one; the next run makes it anew."""
        if (copy := self.copies.get(where.tile)) is None:
            return None
        try:
            with geotiff.open_raster(copy) as dataset:
                *image_3HW, roof_HW = dataset.read(window=self.clipped(where, dataset.shape))
                return geotiff.to_hwc(image_3HW), roof_HW, dataset.shape
        except FileError as problem:
            if problem.kind is FileErrorKind.BROKEN:  # else another run has given it up to make room
                _log.warning("read from the original instead: %s", problem)
                with contextlib.suppress(OSError):
                    copy.unlink(missing_ok=True)
            return None

    def _read_both(self, where: TileWindow) -> tuple[Pixels, Pixels, tuple[int, int]]:
        """Read the part of the window that lies on the tile: (H,W,3) image and (H,W) label; and the tile's shape."""
        image_file, label_file = where.tile.image, where.tile.label
        with geotiff.open_raster(image_file) as image:
            shape, window = image.shape, self.clipped(where, image.shape)
            image_HWC = geotiff.to_hwc(image.read(geotiff.rgb_bands(image_file, image), window=window))
        with geotiff.open_raster(label_file) as label:
            geotiff.check_band(label_file, label)
            geotiff.check_same_size(image_file, shape, label_file, label.shape)
            return image_HWC, label.read(1, window=window), shape

    def clipped(self, where: TileWindow, shape: tuple[int, int]) -> Window:
        """The part of a window that lies on its tile, whose height and width are given."""
        height, width = (
            min(self.window_px, size - start) for size, start in zip(shape, (where.row, where.col), strict=True)
        )
        return Window(where.col, where.row, width, height)


def check_label_values(label: Path, largest: int) -> None:
    """Raise FileProblem where a label's largest value is more than 1."""
    if largest > 1:
        raise FileError(
            FileErrorKind.UNKNOWN_ID,
            label,
            f"unknown class id {largest}; expected 0 or 1. Use the plain labels, not their '{VISUAL}' twins.",
        )


def find(root: Path) -> Path | None:
    """The folder that holds train/image and train/label, at or under ``root``, or None."""
    return folders.find_folder(
        root, lambda folder: all((folder / "train" / kind).is_dir() for kind in ("image", "label"))
    )


def split_folder(folder: Path, part: str) -> Path:
    """Where a part lies: the original download has test beside trainval, not in it."""
    beside = folder.parent / part
    return beside if folder.name == "trainval" and not (folder / part).is_dir() else folder / part


def tiles_of(folder: Path, part: str) -> tuple[Tile, ...]:
    """The tiles of train, val or test: those in ``<part>.txt``, or else all images of the part's folder."""
    place = split_folder(folder, part)
    listed = folder / f"{part}.txt"
    names = folders.read_names(listed) if listed.is_file() else folders.names_in(place / "image", folders.TIFF)
    return tuple(
        Tile(*(folders.file_named(place / kind, name, folders.TIFF) for kind in ("image", "label")))
        for name in names
        if not name.endswith(VISUAL)
    )


def open_tiles(tiles: Sequence[Tile], window_px: int, headers: Sequence[ImageFingerprint] | None = None) -> AirsSource:
    """Cut tiles into windows, by the headers of their images alone, which are read unless they are given.

    A tile that does not open is one window, so that reading it (and not counting windows) tells what is wrong with it.
    """
    found = tuple(read_footprint(tile.image) for tile in tiles) if headers is None else tuple(headers)
    count = sum(math.prod(_grid(header, window_px)) for header in found)
    return AirsSource(tuple(tiles), found, window_px, np.arange(count))


def _grid(header: ImageFingerprint, window_px: int) -> tuple[int, int]:
    """Rows and columns of a tile's windows."""
    if header.shape is None:
        return 1, 1
    height, width = header.shape
    return math.ceil(height / window_px), math.ceil(width / window_px)


def _padded(array: Pixels, side: int) -> Pixels:
    """Fill up with 0 at the right and at the bottom."""
    missing = [(0, side - array.shape[0]), (0, side - array.shape[1]), (0, 0)][: array.ndim]
    return np.pad(array, missing) if any(after for _, after in missing) else array
