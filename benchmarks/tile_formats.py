"""Milliseconds a window of 1024 px, and MiB, of one AIRS tile in the layouts that it may come in and be kept in.

Pixels are real crops side by side where they are at hand, else generated. zarr, litdata and mosaicml-streaming take
part where they are installed: the comparison was made once, for decision 0011, and the project depends on none of them.
"""

import importlib
import importlib.util
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
from rasterio.windows import Window

from benchmarks.measure import ROOT, Result, machine, run_alone, scratch_folder
from roofscale import torch_compat
from roofscale.data import airs, geotiff
from roofscale.data.sample import Pixels

HEIGHT, WIDTH, SIDE = 4096, 10000, 1024  # as wide as a tile of AIRS: what a strip costs goes by its width
WINDOWS, ROUNDS = 12, 5  # windows a round
SAMPLES = Path(os.environ.get("ROOFSCALE_REAL_SAMPLES", ROOT.parent / "shared" / "samples"))
BLOCKS = {"tiled": True, "blockxsize": 512, "blockysize": 512}
AS_IT_CAME = {
    "deflate, blocks of 256, bands apart": {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"},
    "LZW, strips": {"compress": "lzw", "interleave": "pixel"},
    "uncompressed, strips": {"interleave": "pixel"},
    "JPEG, blocks of 256": {
        "tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "jpeg", "photometric": "ycbcr",
        "interleave": "pixel",
    },
}  # fmt: skip
ZSTD = {"compress": "zstd", "zstd_level": 1, "predictor": 2}
KEPT = {
    "uncompressed": {},
    "deflate 1": {"compress": "deflate", "zlevel": 1},
    "deflate 1, predictor": {"compress": "deflate", "zlevel": 1, "predictor": 2},
    "deflate 6, predictor": {"compress": "deflate", "zlevel": 6, "predictor": 2},
    "zstd 1, predictor": ZSTD,
    "zstd 9": {"compress": "zstd", "zstd_level": 9},
    "zstd 9, predictor": {"compress": "zstd", "zstd_level": 9, "predictor": 2},
    "LZW, predictor": {"compress": "lzw", "predictor": 2},
    "LERC": {"compress": "lerc"},
}

Read = Callable[[int, int], Pixels]  # upper left corner of a window to (H,W,4): RGB and roof


class Way(NamedTuple):
    """One way to keep a tile."""

    name: str
    read: Read
    mib: float
    write_s: float


def measure() -> list[Result]:
    """Write the tile in every layout, then read random windows of each by turns; the page cache is warm."""
    with scratch_folder() as folder:
        pixels_HW4 = tile()
        ways = list(_ways(folder, pixels_HW4))
        for way in ways:
            assert _same(way, pixels_HW4), way.name
        took = {way.name: [_round(way, number) for number in range(ROUNDS)] for way in ways}
    rows = [
        {
            "way": way.name, "ms": statistics.median(took[way.name]), "rounds_ms": took[way.name],
            "mib": way.mib, "write_s": way.write_s,
        }
        for way in ways
    ]  # fmt: skip
    for row in rows:
        print(f"{row['ms']:8.1f} ms {row['mib']:7.1f} MiB {row['write_s']:6.1f} s  {row['way']}", file=sys.stderr)
    came, kept = rows[: len(AS_IT_CAME)], [row for row in rows if row["way"].startswith("kept: ")]
    ratio = max(row["ms"] for row in came) / min(row["ms"] for row in kept)
    note = f"{HEIGHT}x{WIDTH} px of {'real' if SAMPLES.is_dir() else 'generated'} pixels, windows of {SIDE} px"
    return [Result("slowest layout over the fastest kept", ratio, 2.0, note=note, details={"rows": rows, **machine()})]


def _round(way: Way, number: int) -> float:
    """Milliseconds a window, image and label, opening the files included."""
    rng = np.random.default_rng(number)
    corners_W2 = SIDE * rng.integers((HEIGHT // SIDE, WIDTH // SIDE), size=(WINDOWS, 2))
    start = time.perf_counter()
    for row, col in corners_W2.tolist():
        way.read(row, col)
    return (time.perf_counter() - start) / WINDOWS * 1000


def _same(way: Way, pixels_HW4: Pixels) -> bool:
    """Whether a window comes out as it went in; JPEG only about so."""
    found, there = way.read(SIDE, 2 * SIDE), pixels_HW4[SIDE : 2 * SIDE, 2 * SIDE : 3 * SIDE]
    return np.array_equal(found, there) or ("JPEG" in way.name and np.abs(found - there.astype(int)).mean() < 5)


def tile(height: int = HEIGHT) -> Pixels:
    """(H,W,4), ``WIDTH`` px wide: crops side by side, turned at random, so that no two places are the same."""
    rng = np.random.default_rng(0)
    crops = list(_crops())
    rows = []
    for _ in range(-(-height // len(crops[0]))):
        chosen = rng.integers((len(crops), 4), size=(WIDTH // len(crops[0]) + 1, 2)).tolist()
        rows.append(np.concatenate([np.rot90(crops[crop], turns) for crop, turns in chosen], 1)[:, :WIDTH])
    return np.ascontiguousarray(np.concatenate(rows)[:height])


def _crops() -> Iterator[Pixels]:
    folder = airs.find(SAMPLES)
    if folder is None:
        from benchmarks.measure import open_generated
        from roofscale.config import RunConfig

        source: Any = open_generated(RunConfig(datasets=("airs",), image_size=512, max_samples=0))["airs"].train
    else:
        source = airs.open_tiles(airs.tiles_of(folder, "train"), 224)
    for index in range(min(len(source), 480)):
        sample = source.read(index)
        yield np.dstack([sample.image_HWC, sample.target_HWK[..., 0]])


def _ways(folder: Path, pixels_HW4: Pixels) -> Iterator[Way]:
    for name, options in AS_IT_CAME.items():
        yield _as_two_files(f"as it came: {name}", folder / f"came-{len(name)}", options, pixels_HW4)
    for name, options in KEPT.items():
        yield _as_one_file(f"kept: GeoTIFF, {name}", folder / f"kept-{name}.tif", {**BLOCKS, **options}, pixels_HW4)
    yield _as_memmap(folder / "plain.npy", pixels_HW4)
    torch_compat.import_torchvision()  # which two of them import in their turn
    others = {"zarr": _as_zarr, "litdata.streaming": _as_litdata, "streaming": _as_mds}
    for module, way in others.items():
        if importlib.util.find_spec(module.partition(".")[0]):
            (folder / module).mkdir()
            yield from way(importlib.import_module(module), folder / module, pixels_HW4)
        else:
            print(f"  {module} is not installed", file=sys.stderr)


def _written(file: Path, options: dict[str, Any], pixels_HWC: Pixels) -> None:
    height, width, bands = pixels_HWC.shape
    shape = {"height": height, "width": width, "count": bands, "dtype": "uint8"}
    with rasterio.open(file, "w", driver="GTiff", **shape, **options) as dataset:
        dataset.write(pixels_HWC.transpose(2, 0, 1))


def write_tile(folder: Path, options: dict[str, Any], pixels_HW4: Pixels) -> tuple[Path, Path]:
    """Write image and label, the label in the layout that the one real label at hand has."""
    folder.mkdir()
    image, label = folder / "image.tif", folder / "label.tif"
    _written(image, options, pixels_HW4[..., :3])
    _written(label, AS_IT_CAME["deflate, blocks of 256, bands apart"], pixels_HW4[..., 3:])
    return image, label


def _as_two_files(name: str, folder: Path, options: dict[str, Any], pixels_HW4: Pixels) -> Way:
    start = time.perf_counter()
    image, label = write_tile(folder, options, pixels_HW4)
    seconds = time.perf_counter() - start

    def read(row: int, col: int) -> Pixels:
        window = Window(col, row, SIDE, SIDE)
        return np.dstack([geotiff.read_rgb(image, window), geotiff.read_band(label, window)])

    return Way(name, read, _mib(folder), seconds)


def _as_one_file(name: str, file: Path, options: dict[str, Any], pixels_HW4: Pixels) -> Way:
    start = time.perf_counter()
    _written(file, {**options, "interleave": "pixel"}, pixels_HW4)
    seconds = time.perf_counter() - start

    def read(row: int, col: int) -> Pixels:
        with geotiff.open_raster(file) as dataset:
            return geotiff.to_hwc(dataset.read(window=Window(col, row, SIDE, SIDE)))

    return Way(name, read, _mib(file), seconds)


def _as_memmap(file: Path, pixels_HW4: Pixels) -> Way:
    start = time.perf_counter()
    np.save(file, pixels_HW4)
    seconds = time.perf_counter() - start

    def read(row: int, col: int) -> Pixels:
        return np.array(np.load(file, mmap_mode="r")[row : row + SIDE, col : col + SIDE])

    return Way("kept: plain array, memory-mapped", read, _mib(file), seconds)


def _as_zarr(zarr: Any, folder: Path, pixels_HW4: Pixels) -> Iterator[Way]:
    for name, level in {"zstd": 1, "lz4": 5}.items():
        compressor = zarr.codecs.BloscCodec(cname=name, clevel=level, shuffle="noshuffle")
        store = str(folder / name)
        start = time.perf_counter()
        array = zarr.create_array(
            store=store, shape=pixels_HW4.shape, dtype="uint8", chunks=(512, 512, 4),
            shards=(HEIGHT, 10240, 4), compressors=[compressor, zarr.codecs.Crc32cCodec()], filters=None,
        )  # fmt: skip
        array[:] = pixels_HW4
        seconds = time.perf_counter() - start

        def read(row: int, col: int, store: str = store) -> Pixels:
            return np.asarray(zarr.open_array(store, mode="r")[row : row + SIDE, col : col + SIDE])

        yield Way(f"zarr, one shard a tile, chunks of 512, blosc {name}, crc32c", read, _mib(folder / name), seconds)


def _windows(pixels_HW4: Pixels) -> Iterator[tuple[tuple[int, int], Pixels]]:
    for row in range(0, HEIGHT - SIDE + 1, SIDE):
        for col in range(0, WIDTH - SIDE + 1, SIDE):
            yield (row, col), np.ascontiguousarray(pixels_HW4[row : row + SIDE, col : col + SIDE])


def _as_litdata(litdata: Any, folder: Path, pixels_HW4: Pixels) -> Iterator[Way]:
    for compression in (None, "zstd:1"):
        place = folder / str(compression)
        start = time.perf_counter()
        cache = litdata.Cache(str(place), chunk_bytes="64MB", compression=compression)
        corners = {}
        for number, (corner, window_HW4) in enumerate(_windows(pixels_HW4)):
            cache[number] = {"pixels": window_HW4}
            corners[corner] = number
        cache.done()
        cache.merge()
        seconds = time.perf_counter() - start
        dataset = litdata.StreamingDataset(str(place), shuffle=False)

        def read(row: int, col: int, dataset: Any = dataset, corners: dict[Any, int] = corners) -> Pixels:
            return np.asarray(dataset[corners[row, col]]["pixels"])

        yield Way(f"litdata, chunks of 64 MB, {compression or 'uncompressed'}", read, _mib(place), seconds)


def _as_mds(streaming: Any, folder: Path, pixels_HW4: Pixels) -> Iterator[Way]:
    start = time.perf_counter()
    corners = {}
    with streaming.MDSWriter(out=str(folder), columns={"pixels": "ndarray:uint8"}, hashes=["xxh64"]) as out:
        for number, (corner, window_HW4) in enumerate(_windows(pixels_HW4)):
            out.write({"pixels": window_HW4})
            corners[corner] = number
    seconds = time.perf_counter() - start
    dataset = streaming.LocalDataset(str(folder))
    yield Way(
        "mosaicml-streaming, uncompressed",
        lambda row, col: np.asarray(dataset[corners[row, col]]["pixels"]),
        _mib(folder),
        seconds,
    )


def _mib(place: Path) -> float:
    files = [place] if place.is_file() else [file for file in place.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 2**20


if __name__ == "__main__":
    run_alone(measure)
