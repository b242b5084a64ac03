"""Data sets of a few small pictures, to be made odd in one respect."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from PIL import Image
from rasterio.transform import from_origin

from roofscale.data import rid

SIDE = 64
PLACE = {"crs": "EPSG:32632", "transform": from_origin(500000, 5300000, 0.1, 0.1)}


def picture(seed: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """A picture (3,H,W) with a reddish roof, and its mask (H,W) of 0 and 1."""
    rng = np.random.default_rng(seed)
    image = rng.integers(60, 120, (3, SIDE, SIDE), np.uint8)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[8 : 30 + seed % 9, 10:40] = 1
    image[0][mask == 1] = 200
    return image, mask


def place(number: int) -> dict[str, Any]:
    """A place on the ground that no other number has."""
    return {"crs": "EPSG:32632", "transform": from_origin(500000 + 1000 * number, 5300000, 0.1, 0.1)}


def raster(file: Path, bands: npt.NDArray[Any], names: Sequence[Any] = (), **profile: Any) -> Path:
    """Write a GeoTIFF; ``names`` are its bands' colour interpretations."""
    file.parent.mkdir(parents=True, exist_ok=True)
    bands = bands if bands.ndim == 3 else bands[None]
    shape = {"count": bands.shape[0], "height": bands.shape[1], "width": bands.shape[2], "dtype": bands.dtype}
    with rasterio.open(file, "w", driver="GTiff", **{**shape, **profile}) as dataset:
        dataset.write(bands)
        if names:
            dataset.colorinterp = tuple(names)
    return file


def airs(root: Path, names: Mapping[str, Sequence[str]], ending: str = ".tif") -> Path:
    """AIRS under ``root/airs`` with these names by part."""
    for number, (part, name) in enumerate((part, name) for part, several in names.items() for name in several):
        image, mask = picture(number)
        for kind, bands in (("image", image), ("label", mask)):
            raster(root / "airs" / part / kind / f"{name}{ending}", bands, **place(number))
    return root


def rid_set(root: Path, names: Sequence[str], background: int = rid.SEGMENT_BACKGROUND) -> Path:
    """RID under ``root/rid``: the last two images validate, the two before test, the others train."""
    folder = root / "rid"
    for number, name in enumerate(names):
        image, mask = picture(number)
        raster(folder / rid.IMAGES / f"{name}.tif", image, **place(number))
        masks = {rid.SEGMENTS: np.where(mask, 3, background), rid.SUPERSTRUCTURES: np.full_like(mask, 8)}
        for kind, values in masks.items():
            (folder / kind).mkdir(exist_ok=True)
            Image.fromarray(values.astype(np.uint8)).save(folder / kind / f"{name}.png")
    (folder / rid.SPLITS).mkdir()
    for part, members in {"train": names[:-4], "test": names[-4:-2], "val": names[-2:]}.items():
        for number in range(1, 6):
            rid.split_file(folder, part, number).write_text("".join(f"{name}.png\n" for name in members))
    return root
