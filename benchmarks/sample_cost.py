"""Milliseconds of one core that a sample of 1024 px costs a loader process, and so the data stall to expect of phase 5.

``python -m benchmarks.sample_cost OUT.json`` needs a quiet machine for some minutes. A loader process works as in a
run: it reads, fits, varies, batches and hands over. Its CPU time is the kernel's account of it, the difference of two
passes, so that its start is not in it; nor is pinning, which the training process does. The page cache is warm. Pixels
are real crops where they are at hand, AIRS tiles of 10000x10000 px are made of them. What comes out is held against a
step of phase 5 as the roofline foresees it: no step on a GPU has been timed, and the CPU is not that of the instance.
"""

import math
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2

from benchmarks.measure import Result, in_turns, machine, run_alone, say_each, scratch_folder
from benchmarks.tile_formats import AS_IT_CAME, SAMPLES, WIDTH, tile, write_tile
from roofscale import compute
from roofscale.config import RunConfig
from roofscale.data import airs, rid, roofline
from roofscale.data.airs_cache import CacheTask, cached_tiles
from roofscale.data.augment import _pipeline, augment
from roofscale.data.loader import make_loader
from roofscale.data.sample import Sample
from roofscale.data.sources import FileSource
from roofscale.data.synthetic import GenerateSpec, generate
from roofscale.forecast.gpu_memory import GpuForecaster

SIDE, WORKERS, BATCH = 1024, 4, 16  # of phase 5
FEW, MANY, LOADED = 8, 40, 4  # samples of the two passes, and of a batch
ROUNDS = 3
CALLS = 32  # of one augmentation
MOST_STALL = 0.05
INSTANCES = ("ml.g5.xlarge", "ml.g5.2xlarge")


def measure() -> list[Result]:
    """Every data set and layout with light and with heavy augmentation, by turns."""
    with scratch_folder() as root:
        sources = dict(_sources(root))
        ways = {
            f"{name}, augment={kind}": lambda source=source, kind=kind: _ms(source, kind)
            for name, source in sources.items()
            for kind in ("light", "heavy")
        }
        rounds = in_turns(ways, ROUNDS, say_each)
        augmenting = _augmenting(sources["AIRS, copy"].read(5))
    stalls = [_stall(instance, name, [one[name] for one in rounds]) for instance in INSTANCES for name in ways]
    details = {"ms": augmenting, **machine()}
    return [*stalls, Result("heavy augmentation alone", augmenting["heavy"], None, "ms of one core", details=details)]


def _stall(instance: str, name: str, ms: list[float]) -> Result:
    """The share of a step that waits for the loader, at the worst: few cores, a GPU at the fast end of its interval.

    vCPUs are threads, two to a core. At the worst a core's second thread adds nothing and the training process, which
    waits for its GPU in a loop, keeps a core to itself; at the best every worker has a core of its own.
    """
    vcpus = compute.get(instance).vcpus
    cores = min(WORKERS, vcpus // 2 - 1), min(WORKERS, vcpus - 1)
    took, (wanted, most) = statistics.median(ms), _wanted(instance)
    supplied = [1000 * count / took for count in cores]
    spread = (
        min(_stalled(1000 * cores[0] / one, most) for one in ms),
        max(_stalled(1000 * cores[0] / one, most) for one in ms),
    )
    note = (
        f"{took:.1f} ms of one core a sample: {WORKERS} workers on {cores[0]} to {cores[1]} cores supply "
        f"{supplied[0]:.0f} to {supplied[1]:.0f} samples/s of the {wanted:.0f} (at most {most:.0f}) that the GPU may "
        f"take; at {wanted:.0f} the stall is {_stalled(supplied[0], wanted):.0%}, or "
        f"{_stalled(supplied[1], wanted):.0%} with {cores[1]} cores"
    )
    return Result(
        f"data stall on {instance}, {name}", _stalled(supplied[0], most), MOST_STALL, "share", at_most=True,
        spread=spread, note=note, details={"ms": ms},
    )  # fmt: skip


def _stalled(supplied: float, wanted: float) -> float:
    """The loader sets the pace where it is the slower."""
    return max(0.0, 1 - supplied / wanted)


def _wanted(instance: str) -> tuple[float, float]:
    """Samples/s that phase 5 may train at: what a roofline foresees of its step, and the fast end of the interval."""
    config = RunConfig(image_size=SIDE, batch_size=BATCH, num_workers=WORKERS, compute=instance)
    step = GpuForecaster.of_run(config, compute.get(instance)).step(config.batch_size)
    rate = step.samples / step.seconds
    return rate, rate * math.exp(1.645 * step.deviation)  # of the 90 % interval


def _sources(root: Path) -> Iterator[tuple[str, FileSource]]:
    """What phase 5 reads: RID, Roofline, and AIRS in the layouts that its tiles may come in, and from copies."""
    real = SAMPLES.is_dir()
    if not real:
        generate(root, GenerateSpec(("rid", "roofline")))
    folder = SAMPLES if real else root
    yield "RID, 512 px", rid.open_all(_there(rid.find(folder)))
    yield "Roofline, 224 px", roofline.open_all(_there(roofline.find(folder)))
    pixels_HW4 = tile(WIDTH)
    for number, layout in enumerate(("deflate, blocks of 256, bands apart", "LZW, strips")):
        image, label = write_tile(root / str(number), AS_IT_CAME[layout], pixels_HW4)
        source = airs.open_tiles([airs.Tile(image, label)], SIDE)
        yield f"AIRS, {layout}", source
    yield "AIRS, copy", source.with_copies(cached_tiles(source.tiles, root / "copies", 2**40, CacheTask(1, print)))


def _there(folder: Path | None) -> Path:
    assert folder, "either real or generated"
    return folder


def _ms(source: FileSource, kind: str) -> float:
    """Milliseconds of CPU of a loader process for one more sample."""
    return (_pass_ms(source, kind, MANY) - _pass_ms(source, kind, FEW)) / (MANY - FEW)


def _pass_ms(source: FileSource, kind: str, count: int) -> float:
    config = RunConfig(datasets=(source.name,), image_size=SIDE, num_workers=1, batch_size=LOADED, augment=kind)
    some = source.subset([index % len(source) for index in range(count)])
    before = _children_seconds()
    for _ in make_loader(config, [some], epoch=0, train=True):
        pass
    return 1000 * (_children_seconds() - before)


def _children_seconds() -> float:
    """CPU of the child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _augmenting(sample: Sample) -> dict[str, float]:
    """Milliseconds of CPU of each augmentation in one thread, and of each step of the heavy one, taken for certain."""
    import albumentations as A

    cv2.setNumThreads(0)
    image, target = sample.image_HWC, sample.target_HWK[..., :1].copy()
    found = {kind: _call_ms(lambda n, kind=kind: augment(image, target, kind, n)) for kind in ("light", "heavy")}
    for step in _pipeline("heavy").transforms:
        for one in getattr(step, "transforms", [step]):
            one.p = 1.0
            alone = A.Compose([one])
            found[f"of heavy: {type(one).__name__}"] = _call_ms(lambda _, alone=alone: alone(image=image, mask=target))
    return found


def _call_ms(work: Callable[[int], Any]) -> float:
    """Mean milliseconds of a call, the first one left out: what a seed does by chance belongs to it."""
    work(0)
    start = time.process_time()
    for number in range(1, CALLS + 1):
        work(number)
    return 1000 * (time.process_time() - start) / CALLS


if __name__ == "__main__":
    run_alone(measure)
