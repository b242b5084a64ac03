"""The outlines of a mask as GeoJSON (RFC 7946): longitude and latitude of WGS 84, outer rings counter-clockwise."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import rasterio
from rasterio.features import shapes
from rasterio.warp import transform_geom

from roofscale.appear import appearing

_WGS84 = "EPSG:4326"
_DIGITS = 7  # of a degree: 1 cm on the ground
_AT_ONCE = 1000  # outlines that are brought to WGS 84 together


def write_outlines(mask: Path, file: Path) -> int:
    """Trace the outlines of a mask that has a place on the ground; return how many there are.

    GDAL traces the file itself, row by row and over the whole of it: no part of an outline has to be joined to another,
    and memory is taken for the outlines, not for the px. Px that only touch at a corner belong to two outlines.

    Args:
        mask: a raster of 0, 1 and nodata.
        file: replaced once the new one is whole.
    """
    count = 0
    with appearing(file) as stream:
        stream.write(b'{"type": "FeatureCollection", "features": [')
        for feature in _features(mask):
            stream.write(f"{',' if count else ''}\n{json.dumps(feature)}".encode())
            count += 1
        stream.write(b"\n]}\n")
    return count


def _features(mask: Path) -> Iterator[dict[str, Any]]:
    with rasterio.open(mask) as dataset:
        band, transform = rasterio.band(dataset, 1), dataset.transform
        traced = (polygon for polygon, value in shapes(band, mask=band, transform=transform) if value == 1)
        while polygons := list(islice(traced, _AT_ONCE)):
            for polygon in transform_geom(dataset.crs, _WGS84, polygons, precision=_DIGITS):
                if transform.determinant > 0:  # rows run northwards, or columns westwards
                    polygon["coordinates"] = [ring[::-1] for ring in polygon["coordinates"]]
                properties = {"channel": dataset.descriptions[0]}
                yield {"type": "Feature", "properties": properties, "geometry": polygon}
