"""Does phase 1 pass healthy training and fail planted faults? Ten seeds each, through the real ladder.

``python -m benchmarks.phase1_verdicts [--fault none|lr|masks|leak|loader] [--seeds 10] [--set "image_size=128 ..."]``
writes one JSON line a seed to ``--out`` and prints the count. A fault counts as caught where the phase failed at the
criterion that should catch it.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT, scratch_folder
from roofscale.config import RunConfig
from roofscale.data.sources import resolve_root
from roofscale.measurement import Measurement
from roofscale.phases.attempt import Attempts
from roofscale.phases.judge import Verdict
from roofscale.phases.ladder import ClimbResult, Ladder, StepResult
from roofscale.phases.plan import Step, load_phase
from roofscale.runners.local import LocalRunner
from roofscale.runners.supervise import Listener, SilentListener

# The criteria that should catch each fault; the first to be met ends the phase.
CATCHES = {
    "lr": {"bounded"},
    "masks": {"learning"},
    "leak": {"no_leak"},
    "loader": {"data_stall"},
}
LR_FACTOR = 100
LOADER_FACTOR = 10  # how many times slower the loader delivers than training consumes


class _Silent:
    def begin(self, step: Step, config: RunConfig, note: str) -> Listener:
        """Show nothing."""
        return SilentListener()

    def judged(self, result: StepResult, run: Any) -> None:
        """Publish nothing."""


def climb(folder: Path, overrides: dict[str, Any], fault: str, only: str) -> ClimbResult:
    """Climb phase 1, or ``only`` one step of it, once in a folder of its own, with a fault in the training process."""
    from roofscale.tracking import Tracker

    phase = load_phase(ROOT / "experiments" / "phase1.yaml")
    plan = phase.resolve(overrides=overrides)
    root, _ = resolve_root(max((config for _, config in plan), key=lambda c: c.max_samples), ROOT / "data/generated")
    plan = [(step, c.with_overrides({"data_root": str(root)})) for step, c in plan if only in ("", step.name)]
    command = (sys.executable, "-m", "benchmarks.faulty_train", fault)
    make: Callable[[Path, Listener], Callable[[RunConfig], Measurement]] = partial(LocalRunner, command=command)
    return Ladder(phase, plan, Tracker("verdicts"), Attempts(folder, "verdicts"), make, _Silent(), {}).climb()


def one(seed: int, fault: str, overrides: dict[str, Any], only: str) -> dict[str, Any]:
    """One climb's verdict, and what failed it."""
    settings = {**overrides, "seed": seed}
    planted = fault
    if fault == "lr":
        settings["lr"] = LR_FACTOR * float(settings.get("lr", RunConfig().lr))
        planted = "none"
    if fault == "loader":
        planted = f"loader={_slow_read_seconds(settings):.4f}"
    with scratch_folder() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        climbed = climb(folder, settings, planted, only)
    if climbed.interrupted:  # the ladder took the signal; without this the next seed would begin
        raise KeyboardInterrupt
    failed = {
        result.step.name: {c.name: c.evidence for c in result.verdict.criteria if c.verdict is not Verdict.PASSED}
        for result in climbed.results
    }
    names = {name for found in failed.values() for name in found}
    caught = climbed.verdict is Verdict.FAILED and bool(names & CATCHES.get(fault, set()))
    right = climbed.verdict is Verdict.PASSED if fault == "none" else caught
    repeats = {result.step.name: len(result.repeats) for result in climbed.results}
    return {"seed": seed, "fault": fault, "verdict": climbed.verdict, "right": right, "not_passed": failed,
            "repeats": repeats, "only": only, "settings": {k: str(v) for k, v in settings.items()}}  # fmt: skip


def _slow_read_seconds(settings: dict[str, Any]) -> float:
    """What each read must take so that all workers together deliver a tenth of what a healthy step consumes."""
    config = RunConfig().with_overrides({**settings, "max_samples": 10})
    root, _ = resolve_root(config.with_overrides({"max_samples": 100}), ROOT / "data/generated")
    with scratch_folder() as folder:
        healthy = LocalRunner(folder / "healthy")(config.with_overrides({"data_root": str(root)}))
    return LOADER_FACTOR * healthy.metric("speed/seconds_per_sample") * max(1, config.num_workers)


def main() -> int:
    """Run the seeds; 0 where at least nine in ten healthy ones passed, or every fault was caught."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--fault", choices=("none", *CATCHES), default="none")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--only", default="", help="one step instead of the whole phase, to save time with a fault")
    parser.add_argument("--set", default="", help="overrides, KEY=VALUE words")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/phase1_verdicts.jsonl")
    asked = parser.parse_args()
    overrides = dict(word.split("=", 1) for word in asked.set.split())
    right = 0
    for seed in range(asked.first_seed, asked.first_seed + asked.seeds):
        found = one(seed, asked.fault, overrides, asked.only)
        right += found["right"]
        with asked.out.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(found) + "\n")
        print(json.dumps(found), file=sys.stderr, flush=True)
    wanted = 0.9 * asked.seeds if asked.fault == "none" else asked.seeds
    print(f"{asked.fault}: {right} of {asked.seeds} as they should be")
    return 0 if right >= wanted else 1


if __name__ == "__main__":
    sys.exit(main())
