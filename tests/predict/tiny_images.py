"""Small georeferenced pictures, and a model that finds what is bright."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.transform import from_origin

from roofscale.data.sample import Pixels
from roofscale.predict.sliding_window import Probabilities

# In Christchurch, at AIRS's resolution
PLACE = {
    "crs": "EPSG:2193",
    "transform": from_origin(1570000, 5180000, 0.075, 0.075),
}


def write(path: Path, bands_CHW: npt.NDArray[Any], **profile: Any) -> Path:
    count, height, width = bands_CHW.shape
    shape = {"count": count, "height": height, "width": width, "dtype": bands_CHW.dtype}
    with rasterio.open(path, "w", **{"driver": "GTiff", **shape, **profile}) as dataset:
        dataset.write(bands_CHW)
    return path


def read(path: Path) -> tuple[Pixels, Mapping[str, Any]]:
    with rasterio.open(path) as dataset:
        return dataset.read(1), {**dataset.profile, "tags": dataset.tags(), "descriptions": dataset.descriptions}


def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (3, height, width), np.uint8)


class Bright:
    """Stands for a ``Segmenter``: the probability of a px is its red."""

    batch = 2

    def __call__(self, images_NHWC: Pixels) -> Probabilities:
        return images_NHWC[:, None, :, :, 0].astype(np.float32) / 255
