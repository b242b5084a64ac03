"""Milliseconds of one core that a sample of 1024 px costs: reading it, each augmentation, and putting it into a batch.

What a loader process needs for a sample, over the number of loader processes, is the least time a sample can take. It
is held against a step of phase 5 as the roofline foresees it: no step on a GPU has been timed here.
"""

import math
import sys
import time
from collections.abc import Callable
from typing import Any

import cv2

from benchmarks.measure import Result, machine, run_alone, scratch_folder
from roofscale import compute
from roofscale.config import RunConfig
from roofscale.data import airs
from roofscale.data.augment import _pipeline, augment
from roofscale.data.cache import Chore
from roofscale.data.generate import GenerateSpec, generate
from roofscale.data.loader import make_loader
from roofscale.data.sample import Pixels
from roofscale.data.sources import open_sources
from roofscale.data.tile_cache import copies_of
from roofscale.forecast.gpu import foresee_step
from roofscale.forecast.roofline import ERROR

SIDE, WORKERS, BATCH = 1024, 4, 16  # of phase 5
ROUNDS = 32


def measure() -> list[Result]:
    """Time each part on its own, in one thread as in a loader process."""
    cv2.setNumThreads(0)
    with scratch_folder() as root:
        generate(root, GenerateSpec(("airs",), airs_tiles=(1, 1, 0), airs_tile_px=4096))
        config = RunConfig(
            datasets=("airs",), image_size=SIDE, max_samples=0, val_samples=0, num_workers=0, batch_size=4,
            augment="none",
        )  # fmt: skip
        train = open_sources(config, root)["airs"].train
        assert isinstance(train, airs.AirsSource)
        copied = train.with_copies(copies_of(train.tiles, root / "copies", 2**30, Chore(1, print)))
        sample = train.read(5)
        image, target = sample.image_HWC, sample.target_HWK[..., :1].copy()
        rows = {
            "read, tiled deflate": _ms(lambda n: train.read(n % len(train))),
            "read, copy": _ms(lambda n: copied.read(n % len(train))),
            "batch, without reading": _batch_ms(config, train) - _ms(lambda n: train.read(n % len(train))),
        }
        for kind in ("none", "light", "heavy"):
            rows[f"augment={kind}"] = _ms(lambda n, kind=kind: augment(image, target, kind, n))
        rows |= {f"  of heavy: {name}": ms for name, ms in _parts(image, target).items()}
    for name, ms in rows.items():
        print(f"{ms:8.2f} ms  {name}", file=sys.stderr)
    return [_fed(kind, rows) for kind in ("light", "heavy")]


def _fed(kind: str, rows: dict[str, float]) -> Result:
    """How many samples a second the loader processes of phase 5 can make, each with a core of its own."""
    ms = rows["read, copy"] + rows["batch, without reading"] + rows[f"augment={kind}"]
    note = f"{ms:.0f} ms of one core a sample: read from a copy, augment={kind}, batch; {WORKERS} workers, {SIDE} px"
    return Result(
        f"samples/s that {WORKERS} loader processes can make, augment={kind}", 1000 * WORKERS / ms, _wanted(), "1/s",
        note=note, details={"ms": rows, **machine()},
    )  # fmt: skip


def _wanted() -> float:
    """Samples/s that phase 5 may train at: the fast end of what a roofline foresees of its step, known within 40 %."""
    config = RunConfig(image_size=SIDE, batch_size=BATCH, num_workers=WORKERS, compute="ml.g5.xlarge")
    step = foresee_step(config, compute.get(config.compute))
    return step.samples / step.seconds * math.exp(1.645 * ERROR)  # of the 90 % interval


def _ms(work: Callable[[int], Any]) -> float:
    """Mean milliseconds of CPU of a call, the first one left out: what a seed does by chance belongs to it."""
    work(0)
    start = time.process_time()
    for number in range(1, ROUNDS + 1):
        work(number)
    return 1000 * (time.process_time() - start) / ROUNDS


def _batch_ms(config: RunConfig, train: airs.AirsSource) -> float:
    """Milliseconds of CPU of a sample that is read, not varied, and put into a batch."""
    start = time.process_time()
    count = sum(len(batch.ids) for batch in make_loader(config, [train], epoch=0, train=True))
    return 1000 * (time.process_time() - start) / count


def _parts(image: Pixels, target: Pixels) -> dict[str, float]:
    """Each step of the heavy pipeline, taken for certain."""
    import albumentations as A

    found = {}
    for step in _pipeline("heavy").transforms:
        for one in getattr(step, "transforms", [step]):
            one.p = 1.0
            alone = A.Compose([one])
            found[type(one).__name__] = _ms(lambda _, alone=alone: alone(image=image, mask=target))
    return found


if __name__ == "__main__":
    run_alone(measure)
