"""``make phase1`` in a fresh clone of the committed state: environment, data, four trainings and verdicts."""

import os
import subprocess
import sys
import time

from benchmarks.measure import ROOT, Result, run_alone, scratch_folder

INHERITED = ("MLFLOW_", "PYTHONPATH", "VIRTUAL_ENV")


def measure() -> list[Result]:
    """Time it once; nothing is taken from pip's cache."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(INHERITED)}
    with scratch_folder() as folder:
        clone = folder / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        start = time.perf_counter()
        done = subprocess.run(
            ["make", "phase1"], cwd=clone, env={**environment, "PIP_NO_CACHE_DIR": "1"}, stdout=sys.stderr, check=False
        )
        minutes = (time.perf_counter() - start) / 60
    return [
        Result(
            "make phase1 from nothing",
            minutes,
            target=10,
            unit="minutes",
            at_most=True,
            note=f"exit {done.returncode}; downloads included",
        )
    ]


if __name__ == "__main__":
    run_alone(measure)
