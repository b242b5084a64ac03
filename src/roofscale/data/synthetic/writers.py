"""Writers of generated scenes in the exact on-disk layouts of the three data sets."""

import multiprocessing
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import rasterio
from PIL import Image
from rasterio.transform import Affine, from_origin
from rasterio.windows import Window as RasterWindow

from roofscale.data import airs, rid, roofline
from roofscale.data.sample import Pixels
from roofscale.data.synthetic import layout, render
from roofscale.data.synthetic.real_samples import RealSamples
from roofscale.data.synthetic.spec import GenerateSpec

# Longitude and latitude; about 0.1 m at 48.4 degrees north, as in the release.
_RID_DEGREES_PER_PX = (1.341e-6, 8.905e-7)
_RID_ORIGIN, _RID_COLUMNS, _RID_SPACING = (11.99, 48.40), 40, 1.25  # spacing in image sides: no overlap
_AIRS_ORIGIN, _AIRS_METRES_PER_PX = (1_570_000.0, 5_180_000.0), 0.075
_AIRS_BLOCK = 1024  # side of the block rendered at once, px; a multiple of the 256 px blocks of the TIFF
_MATLAB_HEADER = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, generated sample data HDF5 schema 1.00 ."


def write_rid(folder: Path, spec: GenerateSpec, only: Collection[str] = ()) -> Iterator[int]:
    """Write RID under ``folder``, with all images or only those named; yield once for each image written."""
    release = folder / "RID_dataset"
    for name in (rid.IMAGES, rid.SEGMENTS, rid.SUPERSTRUCTURES, rid.SPLITS):
        (release / name).mkdir(parents=True)
    count = spec.train + spec.val + spec.test
    wanted = [i for i in range(count) if not only or str(i + 1) in only]
    yield from _run_on_all_cores(_write_rid_image, [(release, spec, i) for i in wanted])
    for number in range(1, 6):
        order = np.random.default_rng((spec.seed, number)).permutation(count) + 1
        parts = np.split(order, [spec.train, spec.train + spec.val])
        for part, ids in zip(rid.PARTS, parts, strict=True):
            rid.split_file(release, part, number).write_text("".join(f"{i}.png\n" for i in ids))


def _write_rid_image(job: tuple[Path, GenerateSpec, int]) -> None:
    release, spec, index = job
    rendered = render.paint(layout.plan(spec.image_px, spec.scene_seed("rid", index), layout.EUROPEAN))
    lon = _RID_ORIGIN[0] + (index % _RID_COLUMNS) * _RID_SPACING * spec.image_px * _RID_DEGREES_PER_PX[0]
    lat = _RID_ORIGIN[1] - (index // _RID_COLUMNS) * _RID_SPACING * spec.image_px * _RID_DEGREES_PER_PX[1]
    name = str(index + 1)
    _write_tif(
        release / rid.IMAGES / f"{name}.tif",
        rendered.image_HWC,
        "EPSG:4326",
        from_origin(lon, lat, *_RID_DEGREES_PER_PX),
    )
    Image.fromarray(rendered.segments_HW).save(release / rid.SEGMENTS / f"{name}.png")
    Image.fromarray(rendered.superstructures_HW).save(release / rid.SUPERSTRUCTURES / f"{name}.png")


def _write_tif(file: Path, image_HWC: Pixels, crs: str, transform: Affine) -> None:
    height, width, bands = image_HWC.shape
    with rasterio.open(
        file,
        "w",
        driver="GTiff",
        height=height,
        width=width,
        count=bands,
        dtype="uint8",
        crs=crs,
        transform=transform,
        photometric="RGB",
        interleave="pixel",
    ) as dataset:
        dataset.write(image_HWC.transpose(2, 0, 1))


def write_roofline(folder: Path, spec: GenerateSpec, joined: RealSamples | None = None) -> Iterator[int]:
    """Write imdb.mat under ``folder``, with ``joined`` as its last rows; yield once for each generated sample."""
    folder.mkdir(parents=True)
    count, side = spec.roofline_samples + (joined.samples if joined else 0), spec.roofline_px
    file = folder / roofline.FILE
    with h5py.File(file, "w", userblock_size=512) as handle:
        imdb = handle.create_group("imdb")
        imdb.attrs["MATLAB_class"] = np.bytes_(b"struct")
        shapes = {"images": (count, 3, side, side), "elements": (count, 3, side, side), "depths": (count, side, side)}
        for name, shape in shapes.items():  # generated depths stay zero, as no reader uses them
            array = imdb.create_dataset(name, shape, "float32", chunks=(1, *shape[1:]), compression=1)
            array.attrs["MATLAB_class"] = np.bytes_(b"single")
        for index in range(spec.roofline_samples):
            scene = layout.plan(side, spec.scene_seed("roofline", index), layout.EUROPEAN, share=(0.15, 0.75))
            rendered = render.paint(scene)
            imdb["images"][index] = rendered.image_HWC.transpose(2, 0, 1)
            imdb["elements"][index] = rendered.elements_EHW
            yield index
        if joined:
            joined.copy_into(imdb, spec.roofline_samples)
    with file.open("r+b") as raw:
        raw.write(_MATLAB_HEADER.ljust(124) + b"\x00\x02IM")


def write_airs(folder: Path, spec: GenerateSpec) -> Iterator[int]:
    """Write AIRS tiles under ``folder``; yield once for each tile written."""
    jobs: list[tuple[Path, GenerateSpec, int]] = []
    for part, count in zip(airs.PARTS, spec.airs_tiles, strict=True):
        part_folder = folder / "trainval" / part if part != "test" else folder / part
        names = [f"christchurch_{len(jobs) + i}" for i in range(count)]
        for kind in ("image", "label"):
            (part_folder / kind).mkdir(parents=True)
        jobs += [(part_folder, spec, len(jobs) + i) for i in range(count)]
        if part != "test":  # the release has no test.txt
            (part_folder.parent / f"{part}.txt").write_text("".join(f"{name}.tif\n" for name in names))
    yield from _run_on_all_cores(_write_tile, jobs)


def _write_tile(job: tuple[Path, GenerateSpec, int]) -> None:
    """Write image, label and the label's copy for viewing, block by block: memory does not grow with the tile."""
    part_folder, spec, index = job
    side, name = spec.airs_tile_px, f"christchurch_{index}"
    east = _AIRS_ORIGIN[0] + index * side * _AIRS_METRES_PER_PX
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "height": side,
        "width": side,
        "dtype": "uint8",
        "crs": "EPSG:2193",
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
        "compress": "deflate",
        "zlevel": 1,
        "transform": from_origin(east, _AIRS_ORIGIN[1], _AIRS_METRES_PER_PX, _AIRS_METRES_PER_PX),
    }
    files = {f"image/{name}.tif": 3, f"label/{name}.tif": 1, f"label/{name}{airs.VISUAL}.tif": 1}
    with ExitStack() as stack:
        image, label, visual = (
            stack.enter_context(rasterio.open(part_folder / file, "w", count=bands, **profile))
            for file, bands in files.items()
        )
        scene = layout.plan(side, spec.scene_seed("airs", index), layout.OCEANIC, share=(0.03, 0.6))
        for window in _blocks(side):
            rendered = render.paint(scene, window)
            roof_HW = (rendered.segments_HW != rid.SEGMENT_BACKGROUND).astype(np.uint8)
            block = RasterWindow(window.col, window.row, window.width, window.height)
            image.write(rendered.image_HWC.transpose(2, 0, 1), window=block)
            label.write(roof_HW, 1, window=block)
            visual.write(roof_HW * 255, 1, window=block)


def _blocks(side: int) -> Iterator[render.Window]:
    for row in range(0, side, _AIRS_BLOCK):
        for col in range(0, side, _AIRS_BLOCK):
            yield render.Window(row, col, min(_AIRS_BLOCK, side - row), min(_AIRS_BLOCK, side - col))


def _run_on_all_cores(work: Callable[[Any], None], jobs: Iterable[Any]) -> Iterator[int]:
    """Run the jobs, which do not depend on each other, on all cores; yield once for each, in their order."""
    todo = list(jobs)
    cores = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, len(todo))
    if cores < 2:
        for index, job in enumerate(todo):
            work(job)
            yield index
        return
    # A forked process imports nothing again. OpenCV's threads do not survive a fork, so they are off in the children.
    context = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else None)
    with ProcessPoolExecutor(cores, context, initializer=cv2.setNumThreads, initargs=(0,)) as pool:
        for index, _ in enumerate(pool.map(work, todo)):
            yield index
