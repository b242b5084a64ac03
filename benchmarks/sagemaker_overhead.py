"""What the launcher of SageMaker jobs costs: its memory, the time around a job, and the time to submit twenty.

On the simulator that ``make test-sagemaker`` uses, where jobs really run, in containers on this machine.
"""

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.sagemaker import simulator

from benchmarks.measure import ROOT, Result, run_alone, scratch_folder
from roofscale.config import RunConfig
from roofscale.measurement import Measurement
from roofscale.runners.sagemaker import request
from roofscale.runners.sagemaker.job import new_job, tags_of
from roofscale.runners.sagemaker.jobs_api import SageMakerClient
from roofscale.runners.sagemaker.settings import load

ROUNDS = 3
JOBS = 20
SMALL = ("encoder=resnet18", "image_size=64", "val_samples=6", "threads=1", "num_workers=0", "max_samples=10",
         "precision=fp32", "compute=ml.m5.xlarge")  # fmt: skip
EXPERIMENTS = ROOT / "experiments"
PHASE = ("phase", "1", "--file", str(EXPERIMENTS / "phase1.yaml"), "--overlay", str(EXPERIMENTS / "smoke.yaml"),
         "--set", "encoder=resnet18", "--compute", "ml.m5.xlarge", "--runner", "sagemaker", "--json")  # fmt: skip


def measure() -> list[Result]:
    """All of it, one after the other."""
    targets = (
        ("overhead of a job over the same run on this machine, without the service's own start", 3.0, "s"),
        (f"submission of {JOBS} jobs", 20.0, "s"),
        ("launcher's memory, phase 1 as jobs", 1024.0, "MiB"),
        ("launcher's memory, phase 1 as 3 jobs at a time", 1024.0, "MiB"),
    )
    if not simulator.SIMULATOR.is_dir():
        return [
            Result(name, None, target, unit, at_most=True, note="no simulator here") for name, target, unit in targets
        ]
    with scratch_folder() as folder, simulator.running(folder) as environment:
        measured = [_overheads(folder, environment), _submission(folder, environment)]
        measured += [_memory(folder, environment, max_jobs) for max_jobs in (1, 3)]
    return [
        Result(name, statistics.median(values), target, unit, True, (min(values), max(values)), note, {"all": values})
        for (name, target, unit), (values, note) in zip(targets, measured, strict=True)
    ]


def _overheads(folder: Path, environment: Mapping[str, str]) -> tuple[list[float], str]:
    """Seconds by which a job, from command to exit, takes longer than the same run here, its start left out."""
    found, starts = [], []
    for seed in range(ROUNDS + 1):
        seconds = {}
        for runner in ("local", "sagemaker") if seed % 2 else ("sagemaker", "local"):
            words = ("train", "--json", "--fresh", "--runner", runner, *SMALL, f"seed={seed}")
            began = time.monotonic()
            done = subprocess.run(
                [sys.executable, "-m", "roofscale", *words],
                cwd=folder, env=environment, capture_output=True, text=True, check=True,
            )  # fmt: skip
            seconds[runner] = time.monotonic() - began
            left = Measurement.load(folder / json.loads(done.stdout)["folder"] / "measurement.json")
            if runner == "sagemaker":
                starts.append(left.metric("cost/start_seconds"))
        found.append(seconds["sagemaker"] - starts[-1] - seconds["local"])
        print(f"  {seconds}, of which start {starts[-1]:.2f} s", file=sys.stderr)
    kept = found[1:]  # the first makes the data, and fills the caches
    return kept, f"train, 10 samples of 64 px; the service's start: {statistics.median(starts):.2f} s"


def _submission(folder: Path, environment: Mapping[str, str]) -> tuple[list[float], str]:
    """Seconds for twenty jobs, from no connection to the last answer; of an image that ends at once."""
    with _inside(folder, environment):
        settings = load()
        config = RunConfig().with_overrides([*SMALL, "data_root=s3://sim-bucket/none"])
        began = time.monotonic()
        cloud = SageMakerClient(settings)

        def submit(number: int) -> None:
            place = folder / "runs/roofscale-submission/001" / f"{number:02d}-one"
            job = new_job(place)
            asked = request.build_request(config, settings, job, tags_of(place))
            asked["AlgorithmSpecification"]["TrainingImage"] = "python-base"
            cloud.running(job.key)
            cloud.write(f"{request.config_uri(settings, job)}/config.json", json.dumps(config.as_dict()).encode())
            cloud.submit(asked)

        with ThreadPoolExecutor(JOBS) as pool:
            list(pool.map(submit, range(JOBS)))
        return [time.monotonic() - began], f"{JOBS} threads, one connection; the service is a simulator on loopback"


def _memory(folder: Path, environment: Mapping[str, str], max_jobs: int) -> tuple[list[float], str]:
    """The kernel's peak of the launcher's resident memory, MiB."""
    command = subprocess.Popen(
        [sys.executable, "-m", "roofscale", *PHASE, "--fresh"],
        cwd=folder,
        env={**environment, "ROOFSCALE_SAGEMAKER_MAX_PARALLEL_JOBS": str(max_jobs)},
        stdout=subprocess.PIPE,
    )
    peak = 0.0
    watcher = threading.Thread(target=command.communicate)  # or its pipe fills
    watcher.start()
    while watcher.is_alive():
        peak = max(peak, _high_water_mib(command.pid))
        time.sleep(0.2)
    watcher.join()
    assert command.returncode in (0, 1, 3), command.returncode  # a verdict of phase 1; an error is 1 as well
    return [peak], "VmHWM; smoke overlay with ResNet-18, an MLflow store in SQLite"


def _high_water_mib(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


@contextmanager
def _inside(folder: Path, environment: Mapping[str, str]) -> Iterator[None]:
    """As if this process were a launcher."""
    before, where = dict(os.environ), Path.cwd()
    os.environ.update(environment)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(where)
        os.environ.clear()
        os.environ.update(before)


if __name__ == "__main__":
    run_alone(measure)
