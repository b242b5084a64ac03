"""A picture's mask and outlines lie where the picture lies, and its counts are those of all its px."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from rasterio.features import rasterize
from rasterio.transform import from_origin
from rasterio.warp import transform_geom
from tests.predict.tiny_images import PLACE, Bright, noise, read, write

from roofscale.errors import DataError
from roofscale.predict.inference import InferenceSettings, MaskCoverage, predict_mask, whole_image_counts
from roofscale.predict.raster import NODATA, new_mask, open_image
from roofscale.predict.sliding_window import Tiling
from roofscale.predict.vectorize import write_geojson
from roofscale.train.scores import confusion_counts

CUTTING: Any = InferenceSettings(Bright(), Tiling(64, 32), 0.5)  # type: ignore[arg-type]  # a model of its own


def predict(picture: Path, mask: Path, cutting: Any = CUTTING) -> tuple[MaskCoverage, int]:
    ticks: list[int] = []
    with open_image(picture) as image, new_mask(mask, image, "roof", {"model": "bright"}) as writer:
        shares = predict_mask(image, cutting, writer, ticks.append)
        assert sum(ticks) == cutting.tiling.count(image.height, image.width)
    return shares, sum(ticks)


@pytest.mark.parametrize("shape", [(300, 550), (513, 33), (20, 30), (64, 64)])
def test_a_mask_has_the_size_and_the_place_of_its_picture(tmp_path: Path, shape: tuple[int, int]) -> None:
    bands_CHW = noise(*shape)
    shares, windows = predict(write(tmp_path / "a.tif", bands_CHW, **PLACE), tmp_path / "m.tif")
    mask_HW, profile = read(tmp_path / "m.tif")
    expected_HW = bands_CHW[0] / 255 >= 0.5
    assert np.array_equal(mask_HW, expected_HW)
    assert shares == MaskCoverage(expected_HW.size, int(expected_HW.sum()))
    assert profile["crs"] == rasterio.CRS.from_epsg(2193)
    assert profile["transform"] == PLACE["transform"]
    assert (profile["tiled"], profile["compress"], profile["nodata"]) == (True, "deflate", NODATA)
    assert profile["tags"]["model"] == "bright"
    assert profile["descriptions"] == ("roof",)
    assert windows >= 1
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["a.tif", "m.tif"]


@pytest.mark.parametrize("kind", ["png", "jpg", "striped", "world file"])
def test_plain_pictures_are_read_too(tmp_path: Path, kind: str) -> None:
    bands_CHW = np.repeat(np.repeat(noise(9, 20), 16, axis=1), 16, axis=2)  # JPEG keeps blocks of 16 px well enough
    bands_CHW[:] = np.where(bands_CHW[:1] > 127, 220, 30)
    driver = {"png": "PNG", "jpg": "JPEG"}.get(kind, "GTiff")
    picture = write(tmp_path / f"a.{'tif' if driver == 'GTiff' else kind}", bands_CHW, driver=driver)
    if kind == "world file":
        (tmp_path / "a.tfw").write_text("0.075\n0\n0\n-0.075\n1570000.0375\n5179999.9625\n")
    predict(picture, tmp_path / "m.tif")
    mask_HW, profile = read(tmp_path / "m.tif")
    assert np.array_equal(mask_HW, bands_CHW[0] > 127)
    assert profile["crs"] is None
    if kind == "world file":
        assert profile["transform"].almost_equals(PLACE["transform"])


@pytest.mark.parametrize("how", ["nodata", "alpha", "mask"])
def test_where_a_picture_shows_nothing_its_mask_says_nothing(tmp_path: Path, how: str) -> None:
    bands_CHW = noise(100, 130) // 2 + 128
    empty_HW = np.zeros((100, 130), bool)
    empty_HW[20:50, 70:] = True
    bands_CHW[:, empty_HW] = 0 if how == "nodata" else 200
    if how == "alpha":
        alpha_HW = np.where(empty_HW, 0, 255).astype(np.uint8)
        picture = write(tmp_path / "a.tif", np.concatenate([bands_CHW, alpha_HW[None]]), photometric="RGB", alpha="YES")
    else:
        picture = write(tmp_path / "a.tif", bands_CHW, **({"nodata": 0} if how == "nodata" else {}))
    if how == "mask":
        with rasterio.open(picture, "r+") as dataset:
            dataset.write_mask(~empty_HW)
    shares, _ = predict(picture, tmp_path / "m.tif")
    mask_HW, _ = read(tmp_path / "m.tif")
    assert np.array_equal(mask_HW == NODATA, empty_HW)
    assert shares.px == (~empty_HW).sum()
    assert shares.share == 1


@pytest.mark.parametrize(
    ("bands_CHW", "says"),
    [
        (np.zeros((1, 8, 8), np.uint8), r"1 band\(s\) of uint8; expected an RGB image.*-b 1 -b 1 -b 1 -ot Byte"),
        (np.zeros((3, 8, 8), np.uint16), r"3 band\(s\) of uint16.*-b 1 -b 2 -b 3 -ot Byte -scale"),
        (np.zeros((5, 8, 8), np.uint8), r"5 band\(s\)"),
    ],
)
def test_what_is_no_picture_for_the_model_is_refused(tmp_path: Path, bands_CHW: Any, says: str) -> None:
    with pytest.raises(DataError, match=says), open_image(write(tmp_path / "a.tif", bands_CHW)):
        pass


def test_a_palette_is_refused_with_what_expands_it(tmp_path: Path) -> None:
    picture = write(tmp_path / "a.tif", np.zeros((1, 8, 8), np.uint8))
    with rasterio.open(picture, "r+") as dataset:
        dataset.write_colormap(1, {0: (255, 0, 0)})
    with pytest.raises(DataError, match=r"\(palette\); expected.*-expand rgb"), open_image(picture):
        pass


def test_what_breaks_off_leaves_the_old_mask(tmp_path: Path) -> None:
    picture = write(tmp_path / "a.tif", noise(600, 200), **PLACE)
    whole = picture.read_bytes()
    picture.write_bytes(whole[: len(whole) // 2])
    (tmp_path / "m.tif").write_text("the old one")
    with pytest.raises(DataError, match=r"a\.tif: cannot be read .* whole GeoTIFF"):
        predict(picture, tmp_path / "m.tif")
    assert (tmp_path / "m.tif").read_text() == "the old one"
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["a.tif", "m.tif"]


def test_a_full_disk_is_noticed_and_leaves_the_old_mask(tmp_path: Path) -> None:
    """In a process of its own, whose files may not grow past 20 kB; GDAL takes a mask cut short for a success."""
    write(tmp_path / "a.tif", noise(300, 600))
    (tmp_path / "m.tif").write_text("the old one")
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
    call = (
        "from pathlib import Path; from tests.predict.test_whole import predict; predict(Path('a.tif'), Path('m.tif'))"
    )
    # -B: Python 3.11 would keep bytecode that the limit has cut short, and the next process could not import it.
    done = subprocess.run([sys.executable, "-B", "-c", limit + call], cwd=tmp_path, capture_output=True)
    assert b"DataError: m.tif: the mask cannot be written" in done.stderr
    assert (tmp_path / "m.tif").read_text() == "the old one"
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["a.tif", "m.tif"]


def houses() -> np.ndarray:  # type: ignore[type-arg]
    """Roofs over the borders of blocks and windows, one with a court, and one px."""
    roof_HW = np.zeros((600, 520), bool)
    roof_HW[200:300, 200:420] = True
    roof_HW[230:270, 250:300] = False
    roof_HW[500:600, 500:520] = True
    roof_HW[10, 10] = True
    return roof_HW


@pytest.mark.parametrize("northwards", [False, True])
def test_outlines_cover_what_the_mask_covers(tmp_path: Path, northwards: bool) -> None:
    roof_HW = houses()
    transform = from_origin(1570000, 5180000, 0.075, -0.075 if northwards else 0.075)
    bands_CHW = np.repeat(np.where(roof_HW, 200, 0).astype(np.uint8)[None], 3, 0)
    predict(write(tmp_path / "a.tif", bands_CHW, crs="EPSG:2193", transform=transform), tmp_path / "m.tif")
    assert write_geojson(tmp_path / "m.tif", tmp_path / "m.geojson") == 3
    found = json.loads((tmp_path / "m.geojson").read_text())
    assert found["type"] == "FeatureCollection"
    assert [feature["properties"] for feature in found["features"]] == [{"channel": "roof"}] * 3
    for feature in found["features"]:
        outer, *holes = (np.array(ring) for ring in feature["geometry"]["coordinates"])
        assert signed_area(outer) > 0 > max(map(signed_area, holes), default=-1)
        assert ((outer[:, 0] > 172) & (outer[:, 0] < 173) & (outer[:, 1] > -44) & (outer[:, 1] < -43)).all()
    back = [transform_geom("EPSG:4326", "EPSG:2193", feature["geometry"]) for feature in found["features"]]
    assert np.array_equal(rasterize(back, roof_HW.shape, transform=transform), roof_HW)


def signed_area(ring: np.ndarray) -> float:  # type: ignore[type-arg]
    """Positive where the ring runs counter-clockwise."""
    x, y = (ring - ring[0]).T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum())


def test_no_roof_is_no_outline(tmp_path: Path) -> None:
    predict(write(tmp_path / "a.tif", np.zeros((3, 40, 40), np.uint8), **PLACE), tmp_path / "m.tif")
    assert write_geojson(tmp_path / "m.tif", tmp_path / "m.geojson") == 0
    written = json.loads((tmp_path / "m.geojson").read_text())
    assert (written["type"], written["features"]) == ("FeatureCollection", [])


def test_counts_are_those_of_the_whole_picture(tmp_path: Path) -> None:
    bands_CHW = noise(150, 210)
    label_HW = np.random.default_rng(1).integers(0, 2, (150, 210), np.uint8)
    picture, label = write(tmp_path / "a.tif", bands_CHW), write(tmp_path / "l.tif", label_HW[None])
    found_4K = whole_image_counts(picture, label, CUTTING, lambda _: None)
    logits_NKHW = torch.logit(torch.from_numpy(bands_CHW[0] / 255))[None, None]
    expected_4K = confusion_counts(logits_NKHW, torch.from_numpy(label_HW)[None, None], torch.tensor([[True]]))
    assert torch.equal(found_4K[:, :1], expected_4K)
    assert found_4K.sum() == 150 * 210


def test_a_label_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    picture = write(tmp_path / "a.tif", noise(40, 50))
    with pytest.raises(DataError, match=r"50x41 px, 1 band\(s\) of uint8; expected .*50x40 px like .*a\.tif"):
        whole_image_counts(picture, write(tmp_path / "l.tif", np.zeros((1, 41, 50), np.uint8)), CUTTING, lambda _: None)
    with pytest.raises(DataError, match="unknown class id 255"):
        whole_image_counts(
            picture, write(tmp_path / "l.tif", np.full((1, 40, 50), 255, np.uint8)), CUTTING, lambda _: None
        )
