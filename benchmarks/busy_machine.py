"""What a training step takes on a machine that is not all ours, and what each remedy gains.

Three machines: quiet; one core kept busy by a process that spins; beside another training of as many threads as there
are cores. On each, by turns: threads as many as the compute has cores (as before), one thread, what GNU OpenMP offers
(its threads wait asleep, or spin for less, or are as many as the load leaves), and ``threads=0``, which follows the
cores that are free.

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
# Few validation images: it is steps that count here. The first step of a run pays for set-up, and is left out.
CONFIG = RunConfig(val_samples=2, max_samples=10)
TARGETS = {"quiet": 1.02, "one core busy": 2.5, "beside another training": 4.0}
WAYS: Mapping[str, tuple[int, Mapping[str, str]]] = {  # threads, and what the environment says
    "as before": (CORES, {}),
    "one thread": (1, {}),
    "OMP_WAIT_POLICY=passive": (CORES, {"OMP_WAIT_POLICY": "passive"}),
    "GOMP_SPINCOUNT=1000": (CORES, {"GOMP_SPINCOUNT": "1000"}),
    "GOMP_SPINCOUNT=100000": (CORES, {"GOMP_SPINCOUNT": "100000"}),
    "OMP_DYNAMIC=true": (CORES, {"OMP_DYNAMIC": "true"}),
    "follows what is free": (0, {}),
}


def trained(
    threads: int, environment: Mapping[str, str], listener: Listener | None = None, steps: int = 5
) -> Measurement:
    """Train in a process of its own under these settings."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)  # the runner hands it on
    config = CONFIG.with_overrides({"threads": threads, "max_samples": steps * CONFIG.batch_size})
    try:
        with scratch_folder() as folder:
            return LocalRunner(folder / "run", listener or SilentListener())(config)
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def step_seconds_of(threads: int, environment: Mapping[str, str]) -> float:
    """The median step of a training, the first left out."""
    return statistics.median(step.seconds for step in trained(threads, environment).steps[1:])


@contextmanager
def neighbour(case: str) -> Iterator[None]:
    """Have the machine as it is in this case."""
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
    """Compare all ways in all cases."""
    seconds: dict[str, list[dict[str, float]]] = {}
    for case in TARGETS:
        ways = {name: partial(step_seconds_of, *way) for name, way in WAYS.items()}
        with neighbour(case):
            seconds[case] = in_turns(ways, ROUNDS, say_each)
    quiet = [one["as before"] for one in seconds["quiet"]]
    found = []
    for case, rounds in seconds.items():
        for way in WAYS:
            ratios = [one[way] / before for one, before in zip(rounds, quiet, strict=True)]
            target = TARGETS[case] if way == "follows what is free" else None
            took = [one[way] for one in rounds]
            found.append(
                Result(
                    f"{case}, {way}: step over a quiet one as before",
                    statistics.median(ratios),
                    target,
                    at_most=True,
                    spread=(min(ratios), max(ratios)),
                    details={"seconds a step": took},
                )
            )
    return found


if __name__ == "__main__":
    run_alone(measure)
