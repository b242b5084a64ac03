"""The same ground is found to be the same however a file tells its place."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio import Affine, warp
from rasterio.control import GroundControlPoint
from rasterio.transform import from_origin
from tests.data import tiny

from roofscale.data.check import check
from roofscale.data.leaks import Footprint, ImageFingerprint, find_pairs, footprint_of, on_common_ground

SIDE, PX = 64, 0.5
UTM = "EPSG:32632"
WEST, NORTH = 500000.0, 5300000.0
LOCAL = 'LOCAL_CS["site",UNIT["metre",1]]'


def seen(tmp_path: Path, name: str, **profile: Any) -> ImageFingerprint:
    picture = tiny.picture(sum(map(ord, name)))[0]
    file = tiny.raster(tmp_path / f"{name}.tif", picture, **profile)
    with rasterio.open(file) as dataset:
        return ImageFingerprint(file, name, name, footprint_of(dataset))


def north_up(east: float = 0.0, crs: Any = UTM) -> dict[str, Any]:
    return {"crs": crs, "transform": from_origin(WEST + east, NORTH, PX, PX)}


def south_up(east: float = 0.0) -> dict[str, Any]:
    return {"crs": UTM, "transform": Affine(PX, 0, WEST + east, 0, PX, NORTH - SIDE * PX)}


def in_mercator(east: float = 0.0) -> dict[str, Any]:
    ground = (WEST + east, NORTH - SIDE * PX, WEST + east + SIDE * PX, NORTH)
    west, south, right, north = warp.transform_bounds(UTM, "EPSG:3857", *ground)
    transform = rasterio.transform.from_bounds(west, south, right, north, SIDE, SIDE)
    return {"crs": "EPSG:3857", "transform": transform}


def by_points(east: float = 0.0) -> dict[str, Any]:
    corners = [(0, 0), (0, SIDE), (SIDE, 0), (SIDE, SIDE)]
    points = [GroundControlPoint(row, col, WEST + east + col * PX, NORTH - row * PX) for row, col in corners]
    return {"gcps": points, "crs": UTM}


WAYS = {"north": north_up, "south": south_up, "mercator": in_mercator, "points": by_points}


@pytest.mark.parametrize("one", WAYS)
@pytest.mark.parametrize("other", WAYS)
def test_an_overlap_is_found_between_any_two_ways(one: str, other: str, tmp_path: Path) -> None:
    side = SIDE * PX
    images = [seen(tmp_path, "a", **WAYS[one]()), seen(tmp_path, "b", **WAYS[other](side / 4))]
    images.append(seen(tmp_path, "c", **WAYS[other](10 * side)))
    (pair,) = find_pairs(images)
    assert pair[:3] == (0, 1, False)
    assert pair.share == pytest.approx(0.75, abs=0.03)


def test_a_turned_image_shares_what_its_own_edges_hold(tmp_path: Path) -> None:
    """Of two neighbours turned by 30 degrees the boxes around them overlap, and they do not."""
    turn = Affine.translation(WEST, NORTH) @ Affine.rotation(30)
    places = [turn @ Affine.translation(shift, 0) @ Affine.scale(PX, -PX) for shift in (0.0, SIDE * PX, SIDE * PX / 2)]
    images = [seen(tmp_path, name, crs=UTM, transform=place) for name, place in zip("abc", places, strict=True)]
    assert find_pairs(images[:2]) == []
    shares = {pair[:2]: round(pair.share, 3) for pair in find_pairs(images)}
    assert shares == {(0, 2): 0.5, (1, 2): 0.5}


def test_a_large_image_holds_a_small_one(tmp_path: Path) -> None:
    inner = {"crs": UTM, "transform": from_origin(WEST + 8, NORTH - 8, PX / 8, PX / 8)}
    (pair,) = find_pairs([seen(tmp_path, "a", **north_up()), seen(tmp_path, "b", **inner)])
    assert pair.share == pytest.approx(1.0, abs=1e-3)


def test_by_rpcs_an_image_has_a_place(tmp_path: Path) -> None:
    line = [0, 0, -1.0, *[0] * 17]
    sample = [0, 1.0, 0, *[0] * 17]
    one = [1.0, *[0] * 19]
    rpcs = rasterio.rpc.RPC(
        height_off=0, height_scale=1, lat_off=47.85, lat_scale=0.001, long_off=9.0, long_scale=0.001,
        line_off=SIDE / 2, line_scale=SIDE / 2, line_num_coeff=line, line_den_coeff=one,
        samp_off=SIDE / 2, samp_scale=SIDE / 2, samp_num_coeff=sample, samp_den_coeff=one,
    )  # fmt: skip
    image = seen(tmp_path, "a", rpcs=rpcs)
    assert image.footprint is not None
    corners = np.array(image.footprint.corners)
    assert corners.min(0) == pytest.approx([8.999, 47.849], abs=1e-4)
    assert corners.max(0) == pytest.approx([9.001, 47.851], abs=1e-4)


def test_local_systems_compare_among_themselves_and_the_rest_is_said(tmp_path: Path) -> None:
    def box(crs: str, west: float) -> Footprint:
        return Footprint(crs, ((west, 0.0), (west + 10, 0.0), (west + 10, 10.0), (west, 10.0)))

    images = [
        ImageFingerprint(tmp_path, str(n), str(n), box(crs, 5.0 * n)) for n, crs in enumerate([LOCAL, LOCAL, UTM])
    ]
    assert [members for members, _ in on_common_ground(images)] == [[0, 1], [2]]
    assert [pair[:2] for pair in find_pairs(images)] == [(0, 1)]
    root = tiny.airs(tmp_path / "root", {"train": ["a", "b"], "val": ["c"]})
    for kind, bands in zip(("image", "label"), tiny.picture(0), strict=True):
        tiny.raster(root / "airs" / "val" / kind / "c.tif", bands, **north_up(crs=LOCAL))
    (report,) = check(root).datasets
    assert any("cannot be brought into one" in note for note in report.notes)
