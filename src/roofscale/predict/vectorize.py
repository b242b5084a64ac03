"""The outlines of a mask as GeoJSON (RFC 7946): WGS 84 longitude and latitude, outer rings counter-clockwise."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError
from rasterio.features import shapes
from rasterio.warp import transform_geom

from roofscale.errors import DataError
from roofscale.files import atomic_write
from roofscale.predict.raster import Raster

_WGS84 = "EPSG:4326"
_HEAD = b'{"type": "FeatureCollection", "generator": "roofscale", '
_DIGITS = 7  # of a degree: 1 cm on the ground
_AT_ONCE = 1000  # outlines that one call transforms to WGS 84


def require_ground(image: Raster) -> None:
    """Check that outlines in an image can be converted to longitude and latitude.

    Raises:
        DataError: the image has no georeference, one by control points or RPCs only, or a local coordinate system.
    """
    if image.crs is None and (image.gcps[0] or image.rpcs):
        raise DataError(
            f"{image.path}: it is georeferenced by control points or RPCs, which outlines cannot use; "
            f"expected a rectified image. Make one: gdalwarp {image.path} {image.path.stem}-rectified.tif"
        )
    if image.crs is None:
        raise DataError(
            f"{image.path}: it does not say where on the ground it lies, and GeoJSON holds longitudes and latitudes; "
            "expected a georeferenced image. Leave --geojson out."
        )
    try:
        transform_geom(image.crs, _WGS84, {"type": "Point", "coordinates": image.transform @ (0, 0)})
    except (RasterioError, CPLE_BaseError) as error:
        raise DataError(
            f"{image.path}: its coordinate system {image.crs.to_string()[:60]} has no way to longitude and latitude "
            f"({error}), as a local one has none; expected another. Leave --geojson out."
        ) from error


def write_geojson(mask: Path, file: Path) -> int:
    """Trace the outlines of a georeferenced mask into a GeoJSON file; return their number.

    GDAL traces the file itself, row by row: outlines need not be joined across blocks, and memory grows with the
    outlines, not with the pixels. Pixels that touch only at a corner belong to different outlines.

    Args:
        mask: a raster of 0, 1 and ``NODATA``.
        file: the GeoJSON file, replaced once the new one is complete.
    """
    count = 0
    with atomic_write(file) as stream:
        stream.write(_HEAD + b'"features": [')
        for feature in _features(mask):
            stream.write(f"{',' if count else ''}\n{json.dumps(feature)}".encode())
            count += 1
        stream.write(b"\n]}\n")
    return count


def is_outlines(file: Path) -> bool:
    """Return whether a file is one that ``write_geojson`` has written."""
    with file.open("rb") as stream:
        return stream.read(len(_HEAD)) == _HEAD


def _features(mask: Path) -> Iterator[dict[str, Any]]:
    with rasterio.open(mask) as dataset:
        band, transform = rasterio.band(dataset, 1), dataset.transform
        traced = (polygon for polygon, value in shapes(band, mask=band, transform=transform) if value == 1)
        while polygons := list(islice(traced, _AT_ONCE)):
            for polygon in transform_geom(dataset.crs, _WGS84, polygons, precision=_DIGITS):
                if (
                    transform.determinant > 0
                ):  # mirrored, such as with rows running north, so that GDAL's rings turn the other way
                    polygon["coordinates"] = [ring[::-1] for ring in polygon["coordinates"]]
                properties = {"channel": dataset.descriptions[0]}
                yield {"type": "Feature", "properties": properties, "geometry": polygon}
