"""Seconds of a training step on a machine with other load, and the gain of each setting of the threads.

Three loads: none; one core kept busy by a spinning process; another training with one thread per core. Under each, by
turns: one thread per core of the compute (as before), one thread, settings of GNU OpenMP (threads that sleep while they
wait, or that spin for less time), and ``threads=0``, which follows the free cores. ``OMP_DYNAMIC=true`` is not among
them: the first step did not end within six minutes.

``python -m benchmarks.busy_machine FILE`` takes about half an hour on two cores and writes FILE.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil

from benchmarks.measure import Result, in_turns, run_alone, say_each, scratch_folder
from roofscale.config import RunConfig
from roofscale.files import write_json
from roofscale.measurement import Measurement
from roofscale.runners.local import TRAIN, LocalRunner
from roofscale.runners.supervise import Listener, SilentListener

ROUNDS = 3
CORES = len(psutil.Process().cpu_affinity() or ()) or psutil.cpu_count() or 1
# Few validation images, because only steps are timed. The first step of a run includes set-up and is left out.
CONFIG = RunConfig(val_samples=2, max_samples=10)
TARGETS = {"quiet": 1.02, "one core busy": 2.5, "beside another training": 4.0}
WAYS: Mapping[str, tuple[int, Mapping[str, str]]] = {  # threads and environment variables
    "as before": (CORES, {}),
    "one thread": (1, {}),
    "OMP_WAIT_POLICY=passive": (CORES, {"OMP_WAIT_POLICY": "passive"}),
    "GOMP_SPINCOUNT=1000": (CORES, {"GOMP_SPINCOUNT": "1000"}),
    "follows what is free": (0, {}),
}


def trained(
    threads: int, environment: Mapping[str, str], listener: Listener | None = None, steps: int = 5
) -> Measurement:
    """Train in a separate process with these settings."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)  # the runner passes it to the training process
    config = CONFIG.with_overrides({"threads": threads, "max_samples": steps * CONFIG.batch_size})
    try:
        with scratch_folder() as folder:
            return LocalRunner(folder / "run", listener or SilentListener())(config)
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def step_seconds_of(threads: int, environment: Mapping[str, str]) -> float:
    """Return the median seconds of a step, without the first."""
    return statistics.median(step.seconds for step in trained(threads, environment).steps[1:])


@contextmanager
def neighbour(case: str) -> Iterator[None]:
    """Put the load of this case on the machine."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        command: tuple[str, ...] = (sys.executable, "-c", "while True: pass")
        if case == "beside another training":
            endless = CONFIG.with_overrides({"threads": CORES, "max_samples": 0, "epochs": 1000})
            write_json(Path(name) / "config.json", endless.as_dict())
            command = (*TRAIN, name)
        busy = None if case == "quiet" else subprocess.Popen(command, start_new_session=True)
        try:
            if busy and "training" in case:
                _wait_for_a_step(Path(name) / "events.jsonl", busy)
            yield
        finally:
            if busy:
                for process in (*psutil.Process(busy.pid).children(recursive=True), busy):
                    process.kill()
                busy.wait()


def _wait_for_a_step(events: Path, busy: "subprocess.Popen[bytes]") -> None:
    while not (events.exists() and '"event": "step"' in events.read_text(encoding="utf-8")):
        if busy.poll() is not None:
            raise RuntimeError(f"the other training ended with {busy.returncode}")
        psutil.Process().cpu_percent(interval=0.5)


def measure() -> list[Result]:
    """Compare all settings under all loads."""
    seconds: dict[str, list[dict[str, float]]] = {}
    for case in TARGETS:
        ways = {name: partial(step_seconds_of, *way) for name, way in WAYS.items()}
        with neighbour(case):
            seconds[case] = in_turns(ways, ROUNDS, say_each)
    quiet = [measured["as before"] for measured in seconds["quiet"]]
    results = []
    for case, rounds in seconds.items():
        for way in WAYS:
            ratios = [measured[way] / before for measured, before in zip(rounds, quiet, strict=True)]
            target = TARGETS[case] if way == "follows what is free" else None
            took = [measured[way] for measured in rounds]
            results.append(
                Result(
                    f"{case}, {way}: step over a quiet one as before",
                    statistics.median(ratios),
                    target,
                    at_most=True,
                    spread=(min(ratios), max(ratios)),
                    details={"seconds a step": took},
                )
            )
    return results


if __name__ == "__main__":
    run_alone(measure)
