"""``predict``, ``evaluate`` and ``register`` through the real command line, with a real model of random weights."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import rasterio
import torch
from click.testing import CliRunner, Result
from rasterio.control import GroundControlPoint
from rasterio.features import rasterize
from rich.console import Console
from tests.predict.tiny_images import PLACE, noise, read, write
from tests.report import synthetic_results

from roofscale import api
from roofscale import model as models
from roofscale.cli import main
from roofscale.cli.run_records import promote_champion
from roofscale.config import RunConfig
from roofscale.measurement import Outcome
from roofscale.predict.inference import Segmenter
from roofscale.tracking import Tracker, save_model

CONFIG = RunConfig(encoder="test_resnet", image_size=64, datasets=("rid",), threads=1)
PREDICT = ["predict", "a.tif", "-o", "m.tif", "--json"]


@pytest.fixture(scope="module")
def store(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with a tracking store that has one run, and its id."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copy(empty_store, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # artifacts lie beside where the store is used from
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        run = Tracker("trained").start("run", {})
        run.log_params(CONFIG)
        run.model(partial(save_model, trained(), CONFIG.image_size))
        run.finish(Outcome.OK)
    return folder, run.run_id


def trained() -> torch.nn.Module:
    net = models.build(CONFIG)
    torch.nn.init.normal_(net.net.segmentation_head[0].weight, std=0.5)  # so that not all px are as good as another
    return net


@pytest.fixture
def call(store: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store[0]}/mlflow.db")
    return lambda *words: CliRunner().invoke(main, words)


def found(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_registered_model_predicts_a_picture(
    call: Callable[..., Result], store: tuple[Path, str], tmp_path: Path
) -> None:
    named = found(call("register", store[1], "--alias", "champion", "--json"))
    assert named == {"run_id": store[1], "version": "roofscale/1", "alias": "champion"}
    bands_CHW = noise(90, 120)
    write(tmp_path / "a.tif", bands_CHW, **PLACE)
    said = found(call(*PREDICT, "--geojson", "m.geojson", "--window", "128"))
    mask_HW, profile = read(tmp_path / "m.tif")
    whole_HWC = np.pad(bands_CHW.transpose(1, 2, 0), ((0, 38), (0, 8), (0, 0)), "symmetric")
    segmenter = Segmenter(CONFIG, mlflow.pytorch.load_model("models:/roofscale@champion").state_dict(), ["roof"], 128)
    assert np.array_equal(mask_HW, segmenter(whole_HWC[None])[0, 0, :90, :120] >= 0.5)
    assert 0 < said["share"] == mask_HW.mean() < 1
    again_HW = api.predict_image("a.tif", tmp_path / "again.tif", model=store[1], threshold=0.4)
    assert np.array_equal(again_HW, read(tmp_path / "again.tif")[0])
    assert again_HW.mean() > 0.5 * mask_HW.mean()
    assert profile["crs"].to_epsg() == 2193
    assert (said["run_id"], said["model"]) == (store[1], "roofscale@champion")
    assert said["outlines"] == len(json.loads((tmp_path / "m.geojson").read_text())["features"]) > 0
    assert profile["tags"]["run_id"] == store[1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--channel", "eave"), "was trained on rid, which label roof"),
        (("--model", "0" * 32), "no model"),
        (("--window", "100"), "expected a multiple of 32 px; try 96"),
        (("--geojson", "m.geojson"), "does not say where on the ground it lies"),
        (("-o", "m.png"), "expected a name that ends in .tif"),
        (("-o", "a.tif"), "that is the image itself"),
        (("-o", "no/m.tif"), "there is no folder no"),
        (("--geojson", "no/m.geojson"), "there is no folder no"),
        (("--geojson", "a.tif"), "expected a name that ends in .geojson or .json"),
        (("--geojson", "."), "expected a name that ends in"),
    ],
)
def test_what_cannot_be_done_is_said_and_leaves_nothing(
    call: Callable[..., Result], store: tuple[Path, str], tmp_path: Path, words: tuple[str, str], says: str
) -> None:
    write(tmp_path / "a.tif", noise(40, 40))
    done = call(*PREDICT, "--model", store[1], *words)
    assert done.exit_code == 2
    assert says in " ".join(done.output.split())
    assert [file.name for file in tmp_path.iterdir()] == ["a.tif"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("theirs.tif", ("-o", "theirs.tif")),
        ("theirs.geojson", ("-o", "m.tif", "--geojson", "theirs.geojson")),
        ("a.json", ("-o", "m.tif", "--geojson", "a.json")),
    ],
)
def test_a_file_that_is_not_ours_is_not_replaced(
    call: Callable[..., Result], store: tuple[Path, str], tmp_path: Path, name: str, words: tuple[str, ...]
) -> None:
    write(tmp_path / "a.tif", noise(40, 40), **PLACE)
    write(tmp_path / name, noise(8, 8), driver="GTiff") if name.endswith("tif") else (tmp_path / name).write_text("{}")
    before = (tmp_path / name).read_bytes()
    done = call("predict", "a.tif", "--model", store[1], *words)
    assert done.exit_code == 2
    assert "has not written" in " ".join(done.output.split())
    assert (tmp_path / name).read_bytes() == before
    assert {file.name for file in tmp_path.iterdir()} == {"a.tif", name}


def test_what_is_ours_is_replaced(call: Callable[..., Result], store: tuple[Path, str], tmp_path: Path) -> None:
    write(tmp_path / "a.tif", noise(40, 40), **PLACE)
    words = (*PREDICT, "--geojson", "m.geojson", "--model", store[1])
    assert found(call(*words)) | {"seconds": 0} == found(call(*words)) | {"seconds": 0}


def test_a_link_to_the_image_is_the_image(call: Callable[..., Result], store: tuple[Path, str], tmp_path: Path) -> None:
    write(tmp_path / "a.tif", noise(40, 40), **PLACE)
    (tmp_path / "m.tif").hardlink_to(tmp_path / "a.tif")
    done = call(*PREDICT, "--model", store[1])
    assert done.exit_code == 2
    assert "that is the image itself" in " ".join(done.output.split())


def test_control_points_are_kept_and_outlines_of_such_an_image_refused(
    call: Callable[..., Result], store: tuple[Path, str], tmp_path: Path
) -> None:
    corners = [(0, 0), (0, 40), (40, 0), (40, 40)]
    points = [GroundControlPoint(row, col, 1570000 + col, 5180000 - row) for row, col in corners]
    write(tmp_path / "a.tif", noise(40, 40), gcps=points, crs="EPSG:2193")
    found(call(*PREDICT, "--model", store[1]))
    with rasterio.open(tmp_path / "m.tif") as mask:
        kept, system = mask.gcps
    assert [(p.row, p.col, p.x, p.y) for p in kept] == [(p.row, p.col, p.x, p.y) for p in points]
    assert system.to_epsg() == 2193
    (tmp_path / "m.tif").unlink()
    done = call(*PREDICT, "--model", store[1], "--geojson", "m.geojson")
    assert done.exit_code == 2
    assert "gdalwarp" in done.output
    assert not (tmp_path / "m.tif").exists()


def test_a_local_system_has_no_longitudes(call: Callable[..., Result], store: tuple[Path, str], tmp_path: Path) -> None:
    local = 'LOCAL_CS["site",UNIT["metre",1]]'
    write(tmp_path / "a.tif", noise(40, 40), crs=local, transform=PLACE["transform"])
    done = call(*PREDICT, "--model", store[1], "--geojson", "m.geojson")
    assert done.exit_code == 2
    assert "no way to longitude and latitude" in " ".join(done.output.split())
    assert not (tmp_path / "m.tif").exists()


def test_whole_tiles_are_held_against_their_labels(
    call: Callable[..., Result], store: tuple[Path, str], tmp_path: Path
) -> None:
    for part in ("train", "val"):
        for kind in ("image", "label"):
            (tmp_path / "airs" / part / kind).mkdir(parents=True)
    for name, size in (("t_1", 150), ("t_2", 70)):
        write(tmp_path / f"airs/val/image/{name}.tif", noise(size, size))
        write(tmp_path / f"airs/val/label/{name}.tif", np.ones((1, size, size), np.uint8))
    said = found(call("evaluate", ".", "--model", store[1], "--json"))
    shares = {}
    for name, size in (("t_1", 150), ("t_2", 70)):
        (tmp_path / "a.tif").write_bytes((tmp_path / f"airs/val/image/{name}.tif").read_bytes())
        shares[name] = (found(call(*PREDICT, "--model", store[1]))["share"], size**2)
    assert {name: tile["iou"] for name, tile in said["tiles"].items()} == pytest.approx(
        {name: share for name, (share, _) in shares.items()}
    ), "where everything is roof, IoU is the share of what was found"
    px = sum(size for _, size in shares.values())
    assert said["metrics"]["iou"] == pytest.approx(sum(share * size for share, size in shares.values()) / px)
    assert "no tile in its split 'test'" in call("evaluate", ".", "--part", "test", "--model", store[1]).output


@pytest.mark.parametrize(("outcome", "named"), [(Outcome.OK, True), (Outcome.CUDA_OOM, False)])
def test_a_last_phase_that_passed_names_the_champion(
    call: Callable[..., Result], store: tuple[Path, str], outcome: Outcome, named: bool
) -> None:
    tracker = Tracker("trained")
    found(call("register", store[1], "--alias", "champion", "--json"))
    tracker.client.delete_registered_model_alias("roofscale", "champion")
    plan = synthetic_results.phase(synthetic_results.GPU)
    result = replace(synthetic_results.run(plan, 0, synthetic_results.measured(100), outcome=outcome), run_id=store[1])
    promote_champion(synthetic_results.climb(plan, result), tracker, Console(quiet=True))
    aliases = set(tracker.client.get_registered_model("roofscale").aliases)
    assert aliases == ({"champion"} if named else set())


def test_a_real_picture_keeps_its_place(
    call: Callable[..., Result], store: tuple[Path, str], tmp_path: Path, real_samples: Path
) -> None:
    picture = next(iter(sorted(real_samples.glob("rid/**/images_roof_centered_geotiff/*.tif"))))
    words = ["predict", str(picture), "-o", "m.tif", "--geojson", "m.geojson", "--window", "256", "--scale", "0.5"]
    found(call(*words, "--model", store[1], "--json"))
    with rasterio.open(picture) as image, rasterio.open(tmp_path / "m.tif") as mask:
        assert (mask.crs, mask.transform, mask.shape) == (image.crs, image.transform, image.shape)
        west, south, east, north = image.bounds
        mask_HW = mask.read(1)
    features = json.loads((tmp_path / "m.geojson").read_text())["features"]
    corners = np.array([corner for feature in features for corner in feature["geometry"]["coordinates"][0]])
    assert (corners >= np.array([west, south]) - 1e-7).all()
    assert (corners <= np.array([east, north]) + 1e-7).all()
    roofs = rasterize([f["geometry"] for f in features], mask_HW.shape, transform=image.transform)
    assert (roofs == mask_HW).mean() > 0.999, "corners are rounded to 1 cm"
