"""Validation IoU on real aerial crops: 480 to train on, 60 to validate, random weights, U-Net with ResNet-34."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT, Result, run_alone, scratch_folder
from roofscale.config import RunConfig
from roofscale.data.sources import open_sources
from roofscale.train.loop import Run

SAMPLES = Path(os.environ.get("ROOFSCALE_REAL_SAMPLES", ROOT.parent / "shared" / "samples"))
NAME = "val IoU after training on 480 real crops"
CONFIG = RunConfig(
    datasets=("airs",),
    image_size=224,
    max_samples=0,
    val_samples=0,
    batch_size=8,
    epochs=12,
    lr=1e-3,
    checkpoint_seconds=3600,
)


def measure() -> list[Result]:
    """Train once and report the IoU of the last epoch, not of the best, which would be chosen on the same crops."""
    if not SAMPLES.is_dir():
        return [Result(NAME, None, 0.75, unit="IoU", note=f"no real samples in {SAMPLES.name}/")]
    curve: list[float] = []

    def listen(event: str, fields: Mapping[str, Any]) -> None:
        if event == "validation":
            curve.append(fields["validation"]["metrics"]["iou"])

    start = time.perf_counter()
    with scratch_folder() as folder:
        run = Run(CONFIG, open_sources(CONFIG, SAMPLES), folder, listen, lambda: False)
        run.fit()
    minutes = (time.perf_counter() - start) / 60
    note = f"{CONFIG.epochs} epochs, batch {CONFIG.batch_size}, lr {CONFIG.lr:g}, {CONFIG.augment} augmentation"
    return [Result(NAME, curve[-1], 0.75, unit="IoU", note=f"{note}; {minutes:.1f} minutes", details={"iou": curve})]


if __name__ == "__main__":
    run_alone(measure)
