"""AIRS windows per second from a 10000x10000 tile, over decoding the whole tile and cropping."""

import time

import numpy as np
import rasterio

from benchmarks.measure import GENERATED, Result, by_turns, run_alone
from roofscale.config import RunConfig
from roofscale.data import airs
from roofscale.data.sources import open_sources
from roofscale.data.synthetic import GenerateSpec, generate

SPEC = GenerateSpec(("airs",), airs_tiles=(1, 1, 0), airs_tile_px=10000)
WINDOW_PX = 512
WINDOWS = 40  # per round, read by window
ROUNDS = 5


def measure() -> list[Result]:
    """Read random windows both ways, with a warm page cache, opening and closing the files included."""
    root = GENERATED / "bench-airs"
    generate(root, SPEC)
    source = open_sources(RunConfig(datasets=("airs",), image_size=WINDOW_PX, max_samples=0), root)["airs"].train
    assert isinstance(source, airs.AirsSource)
    rng = np.random.default_rng(0)

    def by_window() -> float:
        start = time.perf_counter()
        for index in rng.integers(len(source), size=WINDOWS).tolist():
            source.read(index)
        return WINDOWS / (time.perf_counter() - start)

    def by_tile() -> float:
        return 1 / _decode_and_crop(source.window(int(rng.integers(len(source)))))

    by_window()  # warms the page cache
    return [
        by_turns(
            "AIRS windows/s over decode-the-tile-and-crop",
            by_window,
            by_tile,
            rounds=ROUNDS,
            target=20,
            note=f"{WINDOW_PX} px windows of a generated 10000x10000 tile, image and label",
        )
    ]


def _decode_and_crop(window: airs.TileWindow) -> float:
    """Return the seconds for one window when image and label are decoded whole."""
    start = time.perf_counter()
    for file in (window.tile.image, window.tile.label):
        with rasterio.open(file) as dataset:
            whole = dataset.read()
        np.ascontiguousarray(whole[:, window.row : window.row + WINDOW_PX, window.col : window.col + WINDOW_PX])
    return time.perf_counter() - start


if __name__ == "__main__":
    run_alone(measure)
