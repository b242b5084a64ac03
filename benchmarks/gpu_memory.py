"""Forecast of GPU memory against training steps: half of the configurations calibrate, the others test.

``python -m benchmarks.gpu_memory`` needs a CUDA GPU. It writes ``benchmarks/results/gpu_memory.json`` with device and
versions, and prints the values for ``src/roofscale/forecast/gpu_terms.yaml``. Not run yet, for lack of a GPU.
"""

import dataclasses
import itertools
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from benchmarks.measure import machine, this_gpu
from benchmarks.steps import in_fresh_process
from roofscale.compute import Compute
from roofscale.config import RunConfig
from roofscale.forecast.gpu_memory import FixedCosts, GpuForecaster

OUT = Path(__file__).parent / "results" / "gpu_memory.json"
ENCODERS = ("resnet34", "efficientnet_b3", "convnext_tiny")
DECODERS = ("unet", "fpn")
SIZES = ((512, 8), (1024, 2), (1024, 4))  # px and batch: what an A10G holds of all encoders
WORKSPACES_MIB = (0, 32, 64, 128, 256, 512, 1024)
TARGET_MEDIAN, TARGET_WORST = 0.03, 0.08  # of the reserved peak, on the judged half

T = TypeVar("T")


@dataclass(frozen=True)
class Cell:
    """One configuration, measured and forecast; sizes in MiB."""

    config: dict[str, Any]
    allocated: float
    reserved: float
    context: float  # used according to the driver, beyond what is reserved
    foreseen_allocated: float
    foreseen_reserved: dict[str, float]  # by assumed workspace


def configurations() -> list[RunConfig]:
    """Return every combination of 3 encoders, 2 decoders, 3 sizes, 2 precisions."""
    combined = itertools.product(ENCODERS, DECODERS, SIZES, ("bf16", "fp32"))
    return [
        RunConfig(encoder=encoder, decoder=decoder, image_size=size, batch_size=batch, precision=precision)
        for encoder, decoder, (size, batch), precision in combined
    ]


def halves(cells: Sequence[T]) -> tuple[list[T], list[T]]:
    """Split cells in the order of ``configurations`` into those that calibrate and those that test; the precision
    of each half alternates from one size to the next."""
    calibrating = [cell for index, cell in enumerate(cells) if index % 4 in (0, 3)]
    return calibrating, [cell for index, cell in enumerate(cells) if index % 4 in (1, 2)]


def calibrate(cells: Sequence[Cell]) -> tuple[float, float]:
    """Return the workspace with the smallest mean error of the reserved peaks, and the median context; MiB."""
    best = min(WORKSPACES_MIB, key=lambda mib: statistics.fmean(abs(error(cell, mib)) for cell in cells))
    return float(best), statistics.median(cell.context for cell in cells)


def error(cell: Cell, workspace_mib: float) -> float:
    """Return the relative error of the forecast of the reserved peak."""
    return cell.foreseen_reserved[f"{workspace_mib:g}"] / cell.reserved - 1


def cell(config: RunConfig, where: Compute) -> Cell | None:
    """Measure in a new process, whose allocator is unused; None if the GPU is too small."""
    measured = in_fresh_process(config)
    if measured is None:
        return None
    forecaster = GpuForecaster(config, where)
    found, reserved = forecaster.forecast(config.batch_size), {}
    for mib in WORKSPACES_MIB:
        forecaster.terms = dataclasses.replace(FixedCosts.load(), workspace_mib=mib)
        reserved[f"{mib:g}"] = forecaster.forecast(config.batch_size).reserved_mib
    return Cell(config.as_dict(), measured["allocated_mib"], measured["peak_mib"], measured["context_mib"],
                found.allocated_mib, reserved)  # fmt: skip


def main() -> int:
    """Measure, calibrate and test; return 0 if the targets were met."""
    if not torch.cuda.is_available():
        print("This needs a CUDA GPU, and torch finds none.", file=sys.stderr)
        return 2
    where = this_gpu()
    cells = [found for config in tqdm(configurations(), unit="config") if (found := cell(config, where))]
    calibrating, judging = halves(cells)
    workspace, context = calibrate(calibrating)
    errors = [error(one, workspace) for one in judging]
    verdict = {
        "workspace_mib": workspace,
        "context_mib": context,
        "median_error": statistics.median(map(abs, errors)),
        "worst_error": max(map(abs, errors)),
        "lowest_error": min(errors),  # below zero: the forecast was too low
    }
    found = {"machine": machine(), "judged": verdict, "cells": [dataclasses.asdict(one) for one in cells]}
    OUT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(verdict, indent=1))
    met = verdict["median_error"] <= TARGET_MEDIAN and verdict["worst_error"] <= TARGET_WORST
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
