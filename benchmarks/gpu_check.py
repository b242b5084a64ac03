"""The checks that only a GPU can make, in one script of eight minutes: ``make gpu-check``.

By hand: ``PYTHONPATH=.bench:src python -m benchmarks.gpu_check OUT.json``. On a machine that has Python, torch,
torchvision, timm and OpenCV alone, the other packages that it imports must be carried along in .bench. Each part writes
its results at once, and a part that fails is listed with its error, so that one fault costs no other part. Without a
GPU it makes the same checks on small sizes on the CPU: a stand-in, which shows that the script works and says nothing
of a GPU. No GPU has run it yet.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import GENERATED, machine, scratch_folder, this_gpu
from benchmarks.steps import in_fresh_process
from roofscale import compute
from roofscale.config import RunConfig
from roofscale.data.sources import resolve_data
from roofscale.forecast.gpu_memory import GpuForecaster
from roofscale.runners.local import LocalRunner
from roofscale.runners.supervise import SilentListener, StopRequest

SECONDS = 480
ON_GPU = torch.cuda.is_available()
COMMON: dict[str, Any] = {"datasets": "rid", "max_samples": 32, "val_samples": 4, "epochs": 1}
SMALL: dict[str, Any] = {"encoder": "resnet18", "image_size": 64, "batch_size": 4, "threads": 1, "num_workers": 0}
LARGE: dict[str, Any] = {"encoder": "resnet34", "image_size": 512, "batch_size": 8, "num_workers": 4}

Part = Callable[[], dict[str, Any]]


def config(**changes: Any) -> RunConfig:
    """Return phase 5's settings on little data, or small ones without a GPU."""
    return RunConfig().with_overrides({**COMMON, **(LARGE if ON_GPU else SMALL), **changes})


class _StopAt(SilentListener):
    """Listener that asks a run to stop after some steps; 0 lets it run."""

    def __init__(self, steps: int) -> None:
        self.steps, self.request, self.losses = steps, StopRequest(), []

    def event(self, event: Any) -> None:
        """Count the steps."""
        if event["event"] == "step":
            self.losses.append(event.get("loss"))
            if len(self.losses) == self.steps:
                self.request.request()


def trained(asked: RunConfig, folder: Path, stop_at: int = 0) -> dict[str, Any]:
    """Run a training as a phase does, in a process of its own; return its outcome, losses and metrics."""
    (asked,) = resolve_data([asked], GENERATED, lambda _: None)
    listener = _StopAt(stop_at)
    measured = LocalRunner(folder, listener, stop_request=listener.request)(asked)
    losses = {record.step: record.loss for record in measured.steps}
    found = {"outcome": str(measured.outcome), "detail": measured.detail, "metrics": dict(measured.metrics)}
    return {**found, "losses": losses}


def precisions() -> dict[str, Any]:
    """Train in each precision; on a GPU bf16 and fp16."""
    found = {}
    for precision in ("fp32", "bf16", "fp16") if ON_GPU else ("fp32", "bf16"):
        with scratch_folder() as folder:
            found[precision] = trained(config(precision=precision), folder)
    return found


def out_of_memory() -> dict[str, Any]:
    """Train a batch that no GPU holds; its outcome must be gpu_oom."""
    if not ON_GPU:
        return {"skipped": "a CPU has no memory of a GPU"}
    with scratch_folder() as folder:
        return trained(config(batch_size=4096, max_samples=4096, precision="fp32"), folder)


def resumed() -> dict[str, Any]:
    """Stop a training and go on; the losses must be those of an undisturbed one."""
    with scratch_folder() as whole, scratch_folder() as parts:
        undisturbed = trained(config(epochs=2), whole)
        first = trained(config(epochs=2), parts, stop_at=5)
        second = trained(config(epochs=2), parts)
    losses = {**first["losses"], **second["losses"]}
    return {"same_losses": losses == undisturbed["losses"], "steps": len(losses),
            "outcomes": [one["outcome"] for one in (undisturbed, first, second)]}  # fmt: skip


def memory() -> dict[str, Any]:
    """Compare the forecast with max_memory_allocated and max_memory_reserved of 12 configurations."""
    where = this_gpu() if ON_GPU else compute.get("ml.g5.xlarge")
    sizes = ((512, 8), (1024, 4)) if ON_GPU else ((64, 2),)
    encoders = ("resnet34", "efficientnet_b3", "convnext_tiny") if ON_GPU else ("resnet18",)
    cells = []
    for encoder in encoders:
        for side, batch in sizes:
            for precision in ("bf16", "fp32"):
                asked = config(encoder=encoder, image_size=side, batch_size=batch, precision=precision)
                measured = in_fresh_process(asked)
                found = GpuForecaster.of_run(asked, where).forecast(batch)
                forecast = {"allocated_mib": found.allocated_mib, "reserved_mib": found.reserved_mib,
                            "low_mib": found.low_mib, "high_mib": found.high_mib}  # fmt: skip
                cells.append({"encoder": encoder, "side": side, "batch": batch, "precision": precision,
                              "measured": measured, "forecast": forecast})  # fmt: skip
    taken = [one for one in cells if one["measured"] and "allocated_mib" in one["measured"]]
    errors = [one["forecast"]["allocated_mib"] / one["measured"]["allocated_mib"] - 1 for one in taken]
    return {"cells": cells, "median_error": statistics.median(map(abs, errors)) if errors else None}


def speed() -> dict[str, Any]:
    """Compare samples/s with Lightning's defaults and with the same recipe, and the step with its estimate."""
    try:
        import pytorch_lightning  # noqa: F401
    except ImportError as error:
        return {"skipped": f"Lightning is not on the path: {error}"}
    words = [f"{key}={value}" for key, value in {**(LARGE if ON_GPU else SMALL), "augment": "none"}.items()]
    with scratch_folder() as folder:
        out = folder / "table.json"
        command = [sys.executable, "-m", "benchmarks.gpu_table", str(out), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS / 2, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        content: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return {"results": content["results"]}


def estimate() -> dict[str, Any]:
    """Compare the time of a step with its estimate."""
    asked = config(precision="bf16")
    measured = in_fresh_process(asked)
    where = this_gpu() if ON_GPU else compute.get("ml.g5.xlarge")
    return {"measured": measured, "estimate": asdict(GpuForecaster.of_run(asked, where).step(asked.batch_size))}


PARTS: dict[str, Part] = {
    "precisions": precisions,
    "out of memory": out_of_memory,
    "resumed": resumed,
    "memory": memory,
    "estimate": estimate,
    "speed": speed,
}


def main(words: Sequence[str]) -> int:
    """Make each check, write after each; return how many failed."""
    if len(words) != 1:
        print("usage: python -m benchmarks.gpu_check OUT.json", file=sys.stderr)
        return 2
    out, started = Path(words[0]), time.monotonic()
    found: dict[str, Any] = {"machine": machine(), "on_gpu": ON_GPU, "parts": {}}
    failed = 0
    for name, part in PARTS.items():
        begun = time.monotonic()
        if begun - started > SECONDS:
            found["parts"][name] = {"skipped": f"{SECONDS} s are over"}
            continue
        try:
            found["parts"][name] = part()
        except Exception as error:  # one fault costs no other part
            found["parts"][name] = {"error": f"{type(error).__name__}: {str(error)[:2000]}"}
            failed += 1
        found["parts"][name]["seconds"] = time.monotonic() - begun
        out.write_text(json.dumps(found, indent=1, default=str) + "\n", encoding="utf-8")
        print(f"{name}: {found['parts'][name].get('error', 'done')}", file=sys.stderr)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
