"""Forecast of GPU memory against training steps of this project on a GPU.

``python -m benchmarks.gpu_memory`` needs a CUDA GPU. It writes ``benchmarks/results/<date>/gpu_memory.json``
with device and versions. Not run yet, for lack of a GPU; ``gpu_published`` compares with what others have measured.
"""

import dataclasses
import itertools
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.measure import machine, this_gpu, todays_file
from benchmarks.steps import in_fresh_process
from roofscale.compute import Compute
from roofscale.config import RunConfig
from roofscale.forecast.gpu_memory import GpuForecaster

ENCODERS = ("resnet34", "efficientnet_b3", "convnext_tiny")
DECODERS = ("unet", "fpn")
SIZES = ((512, 8), (1024, 2), (1024, 4))  # px and batch: what an A10G holds of all encoders
TARGET_MEDIAN, TARGET_WORST = 0.03, 0.08  # of the allocated peak


@dataclass(frozen=True)
class Cell:
    """One configuration, measured and forecast; sizes in MiB."""

    config: dict[str, Any]
    allocated: float
    reserved: float
    context: float  # used according to the driver, beyond what is reserved
    forecast_allocated: float
    forecast_reserved: float


def configurations() -> list[RunConfig]:
    """Return every combination of 3 encoders, 2 decoders, 3 sizes, 2 precisions."""
    combined = itertools.product(ENCODERS, DECODERS, SIZES, ("bf16", "fp32"))
    return [
        RunConfig(encoder=encoder, decoder=decoder, image_size=size, batch_size=batch, precision=precision)
        for encoder, decoder, (size, batch), precision in combined
    ]


def error(cell: Cell, peak: str = "allocated") -> float:
    """Return the relative error of the forecast of the allocated or of the reserved peak."""
    return getattr(cell, f"forecast_{peak}") / getattr(cell, peak) - 1  # type: ignore[no-any-return]


def cell(config: RunConfig, where: Compute) -> Cell | None:
    """Measure in a new process, whose allocator is unused; None if the GPU is too small."""
    measured = in_fresh_process(config)
    if measured is None:
        return None
    found = GpuForecaster.of_run(config, where).forecast(config.batch_size)
    return Cell(config.as_dict(), measured["allocated_mib"], measured["peak_mib"], measured["context_mib"],
                found.allocated_mib, found.reserved_mib)  # fmt: skip


def verdict(cells: Sequence[Cell]) -> dict[str, float]:
    """Return the errors of both peaks and the median context; an error below zero: the forecast was too low."""
    found = {"context_mib": statistics.median(cell.context for cell in cells)}
    for peak in ("allocated", "reserved"):
        errors = [error(one, peak) for one in cells]
        found[f"{peak}_median_error"] = statistics.median(map(abs, errors))
        found[f"{peak}_lowest_error"], found[f"{peak}_highest_error"] = min(errors), max(errors)
    return found


def main() -> int:
    """Measure and compare; return 0 if the targets were met."""
    if not torch.cuda.is_available():
        print("This needs a CUDA GPU, and torch finds none.", file=sys.stderr)
        return 2
    where = this_gpu()
    cells = [found for config in tqdm(configurations(), unit="config") if (found := cell(config, where))]
    judged = verdict(cells)
    found = {"machine": machine(), "judged": judged, "cells": [dataclasses.asdict(one) for one in cells]}
    todays_file("gpu_memory.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(judged, indent=1))
    worst = max(abs(judged["allocated_lowest_error"]), judged["allocated_highest_error"])
    return 0 if judged["allocated_median_error"] <= TARGET_MEDIAN and worst <= TARGET_WORST else 1


if __name__ == "__main__":
    sys.exit(main())
