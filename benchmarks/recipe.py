"""Validation IoU of the recipe on real aerial crops: 480 to train on, 60 to validate, random weights, several seeds.

``python -m benchmarks.recipe [KEY=VALUE]...`` trains ``experiments/recipe.yaml``, with what is overridden, and writes
``benchmarks/results/<date>/recipe.json``; what was tried on the way to it is in ``2026-11-25/recipe_tried.json`` there.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import ROOT, Result, as_training_process, machine, run_alone, scratch_folder, todays_file
from roofscale import config as configs
from roofscale.config import RunConfig
from roofscale.data.sources import open_sources
from roofscale.train.loop import TrainingLoop

SAMPLES = Path(os.environ.get("ROOFSCALE_REAL_SAMPLES", ROOT.parent / "shared" / "samples"))
RECIPE = ROOT / "experiments" / "recipe.yaml"
CROPS = {"datasets": ["airs"], "image_size": 224, "max_samples": 0, "val_samples": 0, "checkpoint_seconds": 3600}
SEEDS = (0, 1, 2)
OUT = "recipe.json"
NAME, AIM = "val IoU after training on 480 real crops", 0.80


def train(config: RunConfig) -> dict[str, Any]:
    """Train once; the IoU after each pass, that of untrained weights first, and the minutes it took."""
    curve: list[float] = []

    def listen(event: str, fields: Mapping[str, Any]) -> None:
        if event == "validation":
            curve.append(fields["validation"]["metrics"]["iou"])
            print(f"seed {config.seed}, pass {len(curve) - 1} of {config.epochs}: {curve[-1]:.3f}", file=sys.stderr)

    torch.set_num_threads(config.threads or torch.get_num_threads())  # as the training process does
    start = time.perf_counter()
    with scratch_folder() as folder:
        TrainingLoop(config, open_sources(config, SAMPLES), folder, listen, lambda: False).fit()
    return {"seed": config.seed, "iou": curve, "minutes": (time.perf_counter() - start) / 60}


def measure() -> list[Result]:
    """With each seed. The IoU is that of the last pass: that of the best would be chosen on the same crops."""
    if not SAMPLES.is_dir():
        return [Result(NAME, None, AIM, unit="IoU", note=f"no real samples in {SAMPLES.name}/")]
    config = recipe()
    runs = [train(config.with_overrides({"seed": seed})) for seed in SEEDS]
    last = [run["iou"][-1] for run in runs]
    note = f"mean of {len(last)} seeds, standard deviation {statistics.stdev(last):.3f}; {config.epochs} epochs"
    details = {"config": config.diff(RunConfig()), "runs": runs}
    return [Result(NAME, statistics.fmean(last), AIM, "IoU", spread=(min(last), max(last)), note=note, details=details)]


def recipe(words: Sequence[str] = ()) -> RunConfig:
    """The recipe on all crops, with what is overridden."""
    return configs.load(RECIPE, CROPS).with_overrides(words)


def main(words: Sequence[str]) -> int:
    """Train with each seed, or with the one among the ``words``, which override the recipe; write after each.

    Today's results of the same recipe under other seeds stay in the file.
    """
    config = recipe(words)
    changed = config.with_overrides({"seed": 0}).diff(RunConfig())
    for seed in SEEDS if not any(word.startswith("seed=") for word in words) else (config.seed,):
        trained = train(config.with_overrides({"seed": seed}))
        runs = {**recorded(changed), seed: trained}  # read now: another process may have added its seed
        last = [run["iou"][-1] for run in runs.values()]
        content = {"machine": machine(), "config": changed, "mean_iou": statistics.fmean(last)}
        todays_file(OUT).write_text(
            json.dumps({**content, "runs": list(runs.values())}, indent=1) + "\n", encoding="utf-8"
        )
        print(f"seed {seed}: {trained['iou'][-1]:.3f}; mean of {len(runs)} seeds {content['mean_iou']:.3f}")
    return 0


def recorded(config: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """Return today's results of this recipe by seed."""
    file = todays_file(OUT)
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"config": None}
    return {run["seed"]: run for run in found["runs"]} if found["config"] == config else {}


if __name__ == "__main__":
    as_training_process()
    if len(sys.argv) == 2 and sys.argv[1].endswith(".json"):  # as benchmarks.run asks
        run_alone(measure)
    else:
        sys.exit(main(sys.argv[1:]))
