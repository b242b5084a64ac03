"""From the start of a process to the first batch of all of AIRS: 857 and 94 tiles of 10000 px, windows of 1024.

The tiles are sparse GeoTIFFs, headers without pixels, so that index, order and start of the loader are timed;
``tile_formats`` and ``sample_cost`` measure the cost of the pixels.
"""

import hashlib
import json
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

START = time.perf_counter()  # of the process that is timed, before the heavy imports

import rasterio  # noqa: E402
from rasterio.transform import from_origin  # noqa: E402

from benchmarks.measure import ROOT, Result, machine, run_alone, scratch_folder  # noqa: E402
from roofscale.config import RunConfig  # noqa: E402
from roofscale.data.airs import AirsSource  # noqa: E402
from roofscale.data.loader import make_loader  # noqa: E402
from roofscale.data.sampling import epoch_order  # noqa: E402
from roofscale.data.sources import data_fingerprint, leak_warnings, open_sources  # noqa: E402

TILES = {"train": 857, "val": 94}
TILE_PX, METRES_PER_PX = 10_000, 0.075
CONFIG = RunConfig(
    datasets=("airs",), image_size=1024, max_samples=0, val_samples=0, batch_size=16, num_workers=4, epochs=30
)


def measure() -> list[Result]:
    """Write the tiles, then measure twice in new processes, which must give the same order."""
    with scratch_folder() as root:
        _write_tiles(root)
        first, second = (_look_in_a_new_process(root) for _ in range(2))
    same = first["orders"] == second["orders"]
    note = f"{first['windows']} training windows, {CONFIG.num_workers} workers, batch {CONFIG.batch_size}, sparse tiles"
    worst = max(first, second, key=lambda result: result["seconds"]["first batch"])
    return [
        Result(
            "from process start to the first batch of all AIRS windows", worst["seconds"]["first batch"], 10.0, "s",
            at_most=True, note=note, details={"runs": [first, second], **machine()},
        ),
        Result("index of all AIRS training windows, pickled", first["index_mib"], 2.0, "MiB", at_most=True),
        Result("order of an epoch of them", first["order_mib"], 4.0, "MiB", at_most=True),
        Result("times that a tile's image is opened before the first batch", first["opened"], 1.0, "", at_most=True),
        Result("same order of epochs 0, 1 and 29 in both processes", float(same), 1.0, ""),
    ]  # fmt: skip


def _look_in_a_new_process(root: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.full_airs", "--look", str(root)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _look(root: Path) -> dict[str, Any]:
    """Do what the training process does up to its first batch; return the seconds since the start of the process."""
    opened = _count_openings()
    seconds = {"imports": time.perf_counter() - START}

    def passed(stage: str) -> None:
        seconds[stage] = time.perf_counter() - START

    splits = open_sources(CONFIG, root)
    passed("index")
    leak_warnings(splits)
    passed("leaks")
    data_fingerprint(splits)
    passed("fingerprint")
    train = splits["airs"].train
    assert isinstance(train, AirsSource)
    steps = [len(make_loader(CONFIG, [train], epoch=epoch, train=True)) for epoch in range(CONFIG.epochs)]
    passed("steps of 30 epochs counted")
    before = max(opened.values())
    next(iter(make_loader(CONFIG, [train], epoch=0, train=True)))
    passed("first batch")
    orders = [epoch_order([train], CONFIG.seed, epoch) for epoch in (0, 1, 29)]
    return {
        "seconds": seconds,
        "windows": len(train),
        "steps": sum(steps),
        "index_mib": len(pickle.dumps(train)) / 2**20,
        "order_mib": orders[0].nbytes / 2**20,
        "opened": before,
        "orders": [hashlib.sha256(order.tobytes()).hexdigest()[:16] for order in orders],
    }


def _count_openings() -> dict[str, int]:
    """Count from now on how often this process opens each image."""
    counts: dict[str, int] = {}
    real_open = rasterio.open

    def counting(path: Any, *args: Any, **options: Any) -> Any:
        if Path(path).parent.name == "image":
            counts[str(path)] = counts.get(str(path), 0) + 1
        return real_open(path, *args, **options)

    rasterio.open = counting
    return counts


def _write_tiles(root: Path) -> None:
    """Write adjacent tiles of the real size on the ground, 13 KB each on disk."""
    number = 0
    for part, count in TILES.items():
        folder = root / "airs" / "trainval" / part
        for kind in ("image", "label"):
            (folder / kind).mkdir(parents=True)
        for _ in range(count):
            _write_sparse(folder / "image" / f"christchurch_{number}.tif", 3, number)
            _write_sparse(folder / "label" / f"christchurch_{number}.tif", 1, number)
            number += 1


def _write_sparse(file: Path, bands: int, number: int) -> None:
    east, north = (TILE_PX * METRES_PER_PX * index for index in (number % 32, -(number // 32)))
    profile: dict[str, Any] = {
        "driver": "GTiff", "width": TILE_PX, "height": TILE_PX, "count": bands, "dtype": "uint8", "crs": "EPSG:2193",
        "transform": from_origin(1_570_000 + east, 5_180_000 + north, METRES_PER_PX, METRES_PER_PX),
        "tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate", "sparse_ok": True,
    }  # fmt: skip
    with rasterio.open(file, "w", **profile):
        pass


if __name__ == "__main__":
    if sys.argv[1:2] == ["--look"]:
        print(json.dumps(_look(Path(sys.argv[2]))))
    else:
        run_alone(measure)
