"""Bands are taken by what a file says of them, in training and in prediction."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp
from tests.data import tiny

from roofscale.data import geotiff
from roofscale.data.file_error import FileError
from roofscale.errors import DataError
from roofscale.predict.raster import open_image

R, G, B, A = ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha
NIR, NONE, GRAY = ColorInterp.nir, ColorInterp.undefined, ColorInterp.gray
RGB = np.stack([np.full((8, 8), value, np.uint8) for value in (10, 20, 30)])  # each band tells which it is
MORE = np.full((1, 8, 8), 90, np.uint8)


@pytest.mark.parametrize(
    ("names", "order"),
    [
        ((R, G, B), (0, 1, 2)),
        ((B, G, R), (2, 1, 0)),
        ((B, G, R, NIR), (2, 1, 0, 3)),
        ((NIR, R, G, B), (3, 0, 1, 2)),
        ((R, G, B, A), (0, 1, 2, 3)),
        ((A, B, G, R), (3, 2, 1, 0)),
        ((GRAY, NONE, NONE), (0, 1, 2)),
        ((GRAY, NONE, NONE, NONE), (0, 1, 2, 3)),
        ((GRAY, NONE, NONE, A), (0, 1, 2, 3)),
    ],
)
def test_red_green_and_blue_are_found_in_any_order(
    names: tuple[ColorInterp, ...], order: tuple[int, ...], tmp_path: Path
) -> None:
    bands = np.concatenate([RGB, MORE])[list(order)]
    file = tiny.raster(tmp_path / "a.tif", bands, names, photometric="minisblack")
    assert geotiff.read_rgb(file)[0, 0].tolist() == [10, 20, 30]
    with open_image(file) as image:
        assert image.rows(0, 1)[0, 0].tolist() == [10, 20, 30]


def test_only_alpha_makes_px_invisible(tmp_path: Path) -> None:
    clear = np.concatenate([RGB, np.zeros((1, 8, 8), np.uint8)])
    for names, visible in (((R, G, B, A), False), ((R, G, B, NIR), True)):
        file = tiny.raster(tmp_path / "a.tif", clear, names, photometric="minisblack")
        with open_image(file) as image:
            assert bool(image.valid(0, 1).all()) is visible


def test_descriptions_count_where_nothing_else_is_said(tmp_path: Path) -> None:
    file = tiny.raster(tmp_path / "a.tif", RGB[::-1], photometric="minisblack")
    with rasterio.open(file, "r+") as dataset:
        dataset.descriptions = ("Blue", "Green", "Red")
    assert geotiff.read_rgb(file)[0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("names", [(NIR, R, G), (R, G, NONE), (ColorInterp.Y, ColorInterp.Cb, ColorInterp.Cr)])
def test_others_are_refused_with_what_they_are(names: tuple[ColorInterp, ...], tmp_path: Path) -> None:
    file = tiny.raster(tmp_path / "a.tif", RGB, names, photometric="minisblack")
    with pytest.raises(FileError, match=names[0].name):
        geotiff.read_rgb(file)
    with pytest.raises(DataError, match=names[0].name), open_image(file):
        pass
