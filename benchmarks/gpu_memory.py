"""GPU memory of real training steps against the forecast: half of the configurations calibrate, the others judge.

``python -m benchmarks.gpu_memory`` needs a CUDA GPU. It writes ``benchmarks/results/gpu_memory.json`` with device and
versions, and prints what ``src/roofscale/forecast/gpu_terms.yaml`` should say. It has not been run yet: no GPU was at
hand.
"""

import dataclasses
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from benchmarks.measure import machine
from roofscale.compute import GIB, Compute
from roofscale.config import RunConfig
from roofscale.data.sample import CHANNELS, Batch
from roofscale.forecast.allocator import MIB
from roofscale.forecast.gpu import GpuForecaster, Terms

OUT = Path(__file__).parent / "results" / "gpu_memory.json"
ENCODERS = ("resnet34", "efficientnet_b3", "convnext_tiny")
DECODERS = ("unet", "fpn")
SIZES = ((512, 8), (1024, 2), (1024, 4))  # px and batch: what an A10G holds of all encoders
WORKSPACES_MIB = (0, 32, 64, 128, 256, 512, 1024)
STEPS = 3
TARGET_MEDIAN, TARGET_WORST = 0.03, 0.08  # of the reserved peak, on the judged half

T = TypeVar("T")


@dataclass(frozen=True)
class Cell:
    """One configuration, measured and foreseen; sizes in MiB."""

    config: dict[str, Any]
    allocated: float
    reserved: float
    context: float  # what the driver counts beyond what is reserved
    foreseen_allocated: float
    foreseen_reserved: dict[str, float]  # by assumed workspace


def configurations() -> list[RunConfig]:
    """Every combination: 3 encoders, 2 decoders, 3 sizes, 2 precisions."""
    combined = itertools.product(ENCODERS, DECODERS, SIZES, ("bf16", "fp32"))
    return [
        RunConfig(encoder=encoder, decoder=decoder, image_size=size, batch_size=batch, precision=precision)
        for encoder, decoder, (size, batch), precision in combined
    ]


def halves(cells: Sequence[T]) -> tuple[list[T], list[T]]:
    """Those that calibrate and those that judge, in the order of ``configurations``: both precisions are in both, of
    one size and the next by turns."""
    calibrating = [one for place, one in enumerate(cells) if place % 4 in (0, 3)]
    return calibrating, [one for place, one in enumerate(cells) if place % 4 in (1, 2)]


def calibrate(cells: Sequence[Cell]) -> tuple[float, float]:
    """The workspace that makes the reserved peaks come out best, and the median context; MiB."""
    best = min(WORKSPACES_MIB, key=lambda mib: statistics.fmean(abs(error(cell, mib)) for cell in cells))
    return float(best), statistics.median(cell.context for cell in cells)


def error(cell: Cell, workspace_mib: float) -> float:
    """Of the forecast of the reserved peak, as a share of what was measured."""
    return cell.foreseen_reserved[f"{workspace_mib:g}"] / cell.reserved - 1


@dataclass
class Repeated:
    """One batch again and again, in pinned memory as a loader has it."""

    batch: Batch
    position: int = 0

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(STEPS):
            yield Batch(*(tensor.pin_memory() for tensor in self.batch[:-1]), self.batch.ids)


def measure_here(config: RunConfig) -> dict[str, float]:
    """Take real steps on the GPU, in this process, with the next batch copied meanwhile."""
    from roofscale.train.ahead import ahead
    from roofscale.train.trainer import Trainer

    trainer = Trainer(config, STEPS)
    size = config.image_size
    batch = Batch(
        torch.randint(0, 256, (config.batch_size, 3, size, size), dtype=torch.uint8),
        torch.randint(0, 2, (config.batch_size, len(CHANNELS), size, size), dtype=torch.uint8),
        torch.ones(config.batch_size, len(CHANNELS), dtype=torch.bool),
        [str(number) for number in range(config.batch_size)],
    )
    for fetched in ahead(Repeated(batch), trainer.side):
        trainer.step(fetched.batch)
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return {
        "allocated": torch.cuda.max_memory_allocated() / MIB,
        "reserved": torch.cuda.max_memory_reserved() / MIB,
        "context": (total - free - torch.cuda.memory_reserved()) / MIB,
    }


def cell(config: RunConfig, where: Compute) -> Cell | None:
    """Measure in a fresh process, whose allocator nobody has used; None where the GPU is too small."""
    command = [sys.executable, "-m", "benchmarks.gpu_memory", json.dumps(config.as_dict())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "OutOfMemoryError" in done.stderr:
        return None
    if done.returncode:
        raise RuntimeError(done.stderr)
    forecaster = GpuForecaster(config, where)
    found, reserved = forecaster.at(config.batch_size), {}
    for mib in WORKSPACES_MIB:
        forecaster.terms = dataclasses.replace(Terms.load(), workspace_mib=mib)
        reserved[f"{mib:g}"] = forecaster.at(config.batch_size).reserved_mib
    return Cell(config.as_dict(), **json.loads(done.stdout), foreseen_allocated=found.allocated_mib,
                foreseen_reserved=reserved)  # fmt: skip


def main() -> int:
    """Measure, calibrate, judge; 0 where the targets were met."""
    if sys.argv[1:]:
        print(json.dumps(measure_here(RunConfig().with_overrides(json.loads(sys.argv[1])))))
        return 0
    if not torch.cuda.is_available():
        print("This needs a CUDA GPU, and torch finds none.", file=sys.stderr)
        return 2
    memory = torch.cuda.get_device_properties(0).total_memory / GIB
    where = Compute("this GPU", 0, 0, gpu=torch.cuda.get_device_name(), gpu_count=1, gpu_memory_gib=memory)
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
