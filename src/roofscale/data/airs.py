"""AIRS (Chen et al. 2019): roof labels over 10000x10000 px GeoTIFF tiles, read by windows, never a whole tile.

Tiles are cut on a grid of ``window_px``. A window that hangs over the edge of its tile is padded with black and with
no roof; a tile smaller than a window is one sample of its own size. Windows without any roof are samples like others.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rasterio.windows import Window

from roofscale.data import folders, geotiff
from roofscale.data.problem import FileProblem, Kind
from roofscale.data.sample import CHANNELS, Pixels, Sample

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


@dataclass(frozen=True, slots=True)  # there are 400 of them in a full-size tile
class TileWindow:
    """A square of one tile, by its upper left corner in px; the tile's size is 0 x 0 where its header is broken."""

    tile: Tile
    row: int
    col: int
    tile_height: int
    tile_width: int


@dataclass
class AirsSource:
    """Some windows of AIRS tiles."""

    windows: tuple[TileWindow, ...]
    window_px: int
    name: str = "airs"
    labelled: tuple[bool, ...] = (True, False, False, False)

    def __len__(self) -> int:
        return len(self.windows)

    def path(self, index: int) -> Path:
        """The tile that a window is read from."""
        return self.windows[index].tile.image

    def files(self, index: int) -> tuple[Path, ...]:
        """All files that a sample is read from: the image, then the label."""
        return self.windows[index].tile.image, self.windows[index].tile.label

    def read(self, index: int) -> Sample:
        """Read one window of image and label.

        Raises:
            FileProblem: a file missing or broken, sizes that differ, or a label other than 0 and 1.
        """
        where = self.windows[index]
        image_HWC, roof_HW = self._read_both(where)
        check_ids(where.tile.label, int(roof_HW.max(initial=0)))
        if max(where.tile_height, where.tile_width) >= self.window_px:
            image_HWC, roof_HW = _padded(image_HWC, self.window_px), _padded(roof_HW, self.window_px)
        target_HWK = np.zeros((*roof_HW.shape, len(CHANNELS)), np.uint8)
        target_HWK[..., 0] = roof_HW
        return Sample(f"{where.tile.id}_{where.row}_{where.col}", image_HWC, target_HWK)

    def subset(self, indices: Sequence[int]) -> "AirsSource":
        """The same data set with only these windows, in this order."""
        return AirsSource(tuple(self.windows[i] for i in indices), self.window_px)

    def _read_both(self, where: TileWindow) -> tuple[Pixels, Pixels]:
        """Read the part of the window that lies on the tile: (H,W,3) image and (H,W) label."""
        image_file, label_file = where.tile.image, where.tile.label
        with geotiff.opened(image_file) as image:
            geotiff.check_rgb(image_file, image)
            shape, window = image.shape, self._clipped(where, image.shape)
            image_HWC = geotiff.interleaved(image.read((1, 2, 3), window=window))
        with geotiff.opened(label_file) as label:
            geotiff.check_band(label_file, label)
            geotiff.check_same_size(image_file, shape, label_file, label.shape)
            return image_HWC, label.read(1, window=window)

    def _clipped(self, where: TileWindow, shape: tuple[int, int]) -> Window:
        height, width = (
            min(self.window_px, size - start) for size, start in zip(shape, (where.row, where.col), strict=True)
        )
        return Window(where.col, where.row, width, height)


def check_ids(label: Path, largest: int) -> None:
    """Raise FileProblem where a label's largest value is more than 1."""
    if largest > 1:
        raise FileProblem(
            Kind.UNKNOWN_ID,
            label,
            f"unknown class id {largest}; expected 0 or 1. Use the plain labels, not their '{VISUAL}' twins.",
        )


def find(root: Path) -> Path | None:
    """The folder that holds train/image and train/label, at or under ``root``, or None."""
    return folders.find_folder(
        root, lambda folder: all((folder / "train" / kind).is_dir() for kind in ("image", "label"))
    )


def part_folder(folder: Path, part: str) -> Path:
    """Where a part lies: the original download has test beside trainval, not in it."""
    beside = folder.parent / part
    return beside if folder.name == "trainval" and not (folder / part).is_dir() else folder / part


def tiles_of(folder: Path, part: str) -> tuple[Tile, ...]:
    """The tiles of train, val or test: those in ``<part>.txt``, or else all images of the part's folder."""
    place = part_folder(folder, part)
    listed = folder / f"{part}.txt"
    if listed.is_file():
        names = folders.read_names(listed)
    else:
        names = tuple(sorted(file.stem for file in (place / "image").glob("*.tif")))
    return tuple(
        Tile(place / "image" / f"{name}.tif", place / "label" / f"{name}.tif")
        for name in names
        if not name.endswith(VISUAL)
    )


def open_tiles(tiles: Sequence[Tile], window_px: int) -> AirsSource:
    """Cut tiles into windows, by their headers alone; a tile that does not open is one window, so that reading it
    (and not counting windows) tells what is wrong with it."""
    return AirsSource(tuple(window for tile in tiles for window in _grid(tile, window_px)), window_px)


def _grid(tile: Tile, window_px: int) -> list[TileWindow]:
    try:
        with geotiff.opened(tile.image) as dataset:
            height, width = dataset.shape
    except FileProblem:
        return [TileWindow(tile, 0, 0, 0, 0)]
    return [
        TileWindow(tile, row * window_px, col * window_px, height, width)
        for row in range(math.ceil(height / window_px))
        for col in range(math.ceil(width / window_px))
    ]


def _padded(array: Pixels, side: int) -> Pixels:
    """Fill up with 0 at the right and at the bottom."""
    missing = [(0, side - array.shape[0]), (0, side - array.shape[1]), (0, 0)][: array.ndim]
    return np.pad(array, missing) if any(after for _, after in missing) else array
