"""Does phase 1 pass healthy training and fail planted faults? Ten seeds each, through the real phase runner.

``python -m benchmarks.phase1_verdicts [--fault none|lr|masks|leak|loader] [--seeds 10] [--set "image_size=128 ..."]``
writes one JSON line a seed to ``--out`` and prints the count; a seed that is there under the same settings is not
climbed again. A fault counts as caught where a run failed at the criterion that should catch it, and the phase did not
pass with the fault in it. ``--busy`` climbs beside a process that keeps one core busy, ``--busy other`` beside one that
the user has started, such as a training with one thread.
"""

import argparse
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from benchmarks.measure import ROOT, newest_file, scratch_folder
from roofscale.config import RunConfig
from roofscale.data.sources import resolve_data_root
from roofscale.measurement import Measurement
from roofscale.phases.attempt import Attempts
from roofscale.phases.judge import Verdict
from roofscale.phases.phase_file import Step, load_phase
from roofscale.phases.phase_runner import PhaseRunner
from roofscale.phases.results import PhaseResult, StepResult
from roofscale.runners.local import LocalRunner
from roofscale.runners.supervise import Listener, SilentListener

# The criteria that should catch each fault; the first to be met ends the phase.
CATCHES = {
    "lr": {"bounded"},
    "masks": {"learning"},
    "leak": {"no_leak"},
    "loader": {"data_stall"},
}
# What takes a fault away: a phase that passed with it changed has passed rightly.
MENDED_BY = {"lr": {"lr"}, "loader": {"num_workers", "prefetch_factor"}}
RECORD = "phase1_verdicts.jsonl"
EXPERIMENT = "verdicts"
LR_FACTOR = 100
LOADER_FACTOR = 10  # how many times slower the loader delivers than training consumes


# Ends with its parent, also if that is killed.
_SPIN = """
import os
while os.getppid() == {parent}:
    for _ in range(1_000_000):
        pass
"""


class _Silent:
    def begin(self, step: Step, config: RunConfig, note: str) -> Listener:
        """Show nothing."""
        return SilentListener()

    def judged(self, result: StepResult, run: Any) -> None:
        """Publish nothing."""


def climb(folder: Path, overrides: dict[str, Any], fault: str, only: str) -> PhaseResult:
    """Climb phase 1, or ``only`` one step of it, once in a folder of its own, with a fault in the training process."""
    from roofscale.tracking import Tracker

    phase = load_phase(ROOT / "experiments" / "phase1.yaml")
    plan = phase.resolve(overrides=overrides)
    root, _ = resolve_data_root(
        max((config for _, config in plan), key=lambda c: c.max_samples), ROOT / "data/generated"
    )
    plan = [(step, c.with_overrides({"data_root": str(root)})) for step, c in plan if only in ("", step.name)]
    phase = dataclasses.replace(phase, steps=tuple(step for step, _ in plan))  # it is complete with these
    command = (sys.executable, "-m", "benchmarks.faulty_train", fault)
    make: Callable[[Path, Listener], Callable[[RunConfig], Measurement]] = partial(LocalRunner, command=command)
    phase_runner = PhaseRunner(
        phase=phase,
        plan=plan,
        tracker=Tracker(EXPERIMENT, folder),
        attempts=Attempts(folder, EXPERIMENT),
        make_runner=make,
        observer=_Silent(),
        tags={},
    )
    return phase_runner.run_phase()


@contextmanager
def one_core_busy() -> Iterator[None]:
    """Keep one core busy, whichever the scheduler takes, as long as the block lasts."""
    words = [sys.executable, "-I", "-S", "-c", _SPIN.format(parent=os.getpid())]
    spinning = subprocess.Popen(words, start_new_session=True)  # Ctrl-C is for the climb, which ends this one
    try:
        yield
    finally:
        spinning.kill()
        spinning.wait()


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
        # Where nothing is said of artifacts, MLflow leaves them in the working folder.
        MlflowClient().create_experiment(EXPERIMENT, (folder / "artifacts").as_uri())
        climbed = climb(folder, settings, planted, only)
    if climbed.interrupted:  # the phase runner took the signal; without this the next seed would begin
        raise KeyboardInterrupt
    failed = {
        result.step.name: {c.name: c.evidence for c in result.verdict.criteria if c.verdict is not Verdict.PASSED}
        for result in climbed.results
    }
    remedies = {
        result.step.name: [
            {"changed": run.fallback.changed if run.fallback else "", "failed": run.verdict.named(Verdict.FAILED)}
            for run in result.runs
        ]
        for result in climbed.results
        if result.tries
    }
    passed = climbed.verdict is Verdict.PASSED
    right = passed if fault == "none" else _caught(climbed, fault) and (not passed or _mended(climbed, fault))
    repeats = {result.step.name: len(result.repeats) for result in climbed.results}
    return {"seed": seed, "fault": fault, "verdict": climbed.verdict, "right": right, "not_passed": failed,
            "remedies": remedies, "repeats": repeats}  # fmt: skip


def _caught(climbed: PhaseResult, fault: str) -> bool:
    """Whether a run failed at a criterion that should catch the fault."""
    return any(CATCHES[fault] & set(run.verdict.named(Verdict.FAILED)) for run in climbed.all_runs())


def _mended(climbed: PhaseResult, fault: str) -> bool:
    """Whether a step passed with that changed which takes the fault away."""
    changed = {result.fallback.changed.partition("=")[0] for result in climbed.results if result.fallback}
    return bool(changed & MENDED_BY.get(fault, set()))


def _slow_read_seconds(settings: dict[str, Any]) -> float:
    """What each read must take so that all workers together deliver a tenth of what a healthy step consumes."""
    config = RunConfig().with_overrides({**settings, "max_samples": 10})
    root, _ = resolve_data_root(config.with_overrides({"max_samples": 100}), ROOT / "data/generated")
    with scratch_folder() as folder:
        healthy = LocalRunner(folder / "healthy")(config.with_overrides({"data_root": str(root)}))
    return LOADER_FACTOR * healthy.metric("speed/seconds_per_sample") * max(1, config.num_workers)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The climbs in a file of JSON lines; none where there is no file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def _stop(_number: int, _frame: Any) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Run the seeds; 0 where at least nine in ten healthy ones passed, or every fault was caught."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--fault", choices=("none", *CATCHES), default="none")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--only", default="", help="one step instead of the whole phase, to save time with a fault")
    parser.add_argument("--set", default="", help="overrides, KEY=VALUE words")
    parser.add_argument(
        "--busy", nargs="?", choices=("spin", "other"), const="spin", default=False, help="beside a busy core"
    )
    parser.add_argument("--out", type=Path, default=newest_file(RECORD))
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, _stop)  # outside of a run, whose runner takes it
    try:
        right = sum(_climbed(seed, asked) for seed in range(asked.first_seed, asked.first_seed + asked.seeds))
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on with the seeds that are not on record.", file=sys.stderr)
        return 130
    wanted = 0.9 * asked.seeds if asked.fault == "none" else asked.seeds
    print(f"{asked.fault}{', one core busy' if asked.busy else ''}: {right} of {asked.seeds} as they should be")
    return 0 if right >= wanted else 1


def _climbed(seed: int, asked: argparse.Namespace) -> bool:
    """Return whether a seed has the right verdict; climb and record it unless it is recorded."""
    overrides = dict(word.split("=", 1) for word in asked.set.split())
    how: Mapping[str, Any] = {
        "seed": seed, "fault": asked.fault, "only": asked.only, "busy": asked.busy, "settings": overrides
    }  # fmt: skip
    known = (line for line in read_lines(asked.out) if all(line.get(name) == value for name, value in how.items()))
    found = next(known, None)
    if found is None:
        with one_core_busy() if asked.busy == "spin" else nullcontext():
            found = {**one(seed, asked.fault, overrides, asked.only), **how}
        with asked.out.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(found) + "\n")
        print(json.dumps(found), file=sys.stderr, flush=True)
    return bool(found["right"])


if __name__ == "__main__":
    sys.exit(main())
