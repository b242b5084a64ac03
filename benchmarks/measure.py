"""Shared by all benchmarks: comparison by turns, the result type, and the command line of one benchmark."""

import dataclasses
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch

from roofscale.compute import GIB, Compute
from roofscale.config import RunConfig
from roofscale.data.sources import DataSplit, open_sources, resolve_data_root
from roofscale.forecast.roofline_model import known_peaks
from roofscale.train import malloc

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[1]
GENERATED = ROOT / "data" / "generated"
RESULTS = ROOT / "benchmarks" / "results"  # holds a folder for each day


def todays_file(name: str) -> Path:
    """Return where to write results of this name today; make the folder."""
    folder = RESULTS / datetime.date.today().isoformat()
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def newest_file(name: str) -> Path:
    """Return the newest results of this name on record; where to write them today if there are none."""
    return max(RESULTS.glob(f"*/{name}"), default=None) or todays_file(name)


@dataclass(frozen=True)
class Result:
    """One line of the table."""

    measure: str
    value: float | None  # None: could not be measured here, see ``note``
    target: float | None  # None: reported, not judged
    unit: str = "ratio"
    at_most: bool = False  # the target is an upper bound
    spread: tuple[float, float] | None = None  # least and greatest of the single rounds
    note: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)  # every single value measured

    @property
    def verdict(self) -> str:
        """Return 'met', 'missed by 3.0%', 'not measured' or, without a target, an empty text."""
        if self.value is None:
            return "not measured"
        if self.target is None:
            return ""
        if (self.value <= self.target) if self.at_most else (self.value >= self.target):
            return "met"
        return f"missed by {abs(self.value / self.target - 1):.1%}"


def by_turns(
    name: str,
    ours: Callable[[], float],
    theirs: Callable[[], float],
    *,
    rounds: int,
    target: float,
    note: str = "",
    details: Mapping[str, Any] | None = None,
) -> Result:
    """Compare two rates measured by turns."""

    def say(number: int, _: str, rates: Mapping[str, float]) -> None:
        if len(rates) == 2:
            line = f"  {name}, round {number} of {rounds}: {rates['ours']:.3f} over {rates['theirs']:.3f}"
            print(line, file=sys.stderr)

    measured = in_turns({"ours": ours, "theirs": theirs}, rounds, say)
    ratios = [one["ours"] / one["theirs"] for one in measured]
    return Result(
        name,
        statistics.median(ratios),
        target,
        spread=(min(ratios), max(ratios)),
        note=note,
        details={**{side: [one[side] for one in measured] for side in ("ours", "theirs")}, **(details or {})},
    )


def in_turns(
    ways: Mapping[str, Callable[[], T]], rounds: int, say: Callable[[int, str, Mapping[str, T]], None]
) -> list[dict[str, T]]:
    """Measure in several ways by turns, A B C, C B A, A B C, ...; return the results of each round.

    Take ratios within a round: a disturbance of the machine usually lasts longer than a round and then affects all
    ways alike. The alternating order cancels drift within a round.

    Args:
        ways: to measure, by name.
        rounds: how many.
        say: called with the round, counted from 1, the way measured last, and the results of the round so far.
    """
    found: list[dict[str, T]] = []
    for number in range(rounds):
        measured: dict[str, T] = {}
        for name in list(ways)[:: -1 if number % 2 else 1]:
            measured[name] = ways[name]()
            say(number + 1, name, measured)
        found.append(measured)
    return found


def say_each(number: int, name: str, measured: Mapping[str, Any]) -> None:
    """Print the last result; the ``say`` of ``in_turns``."""
    print(f"  round {number}, {name}: {measured[name]}", file=sys.stderr)


def now() -> float:
    """Return the time in seconds after synchronising the GPU, so that queued kernels are counted."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def in_own_process(module: str, *words: str, environment: Mapping[str, str] | None = None) -> Any:
    """Run a module with ``words`` in a new process, whose allocator is unused, and return the JSON that it prints; None
    if it ran out of GPU memory.

    Raises:
        RuntimeError: the process failed otherwise.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *words], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, **(environment or {})},
    )  # fmt: skip
    if "OutOfMemoryError" in done.stderr:
        return None
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(words)}: exit {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])  # libraries may print before it


def as_training_process() -> None:
    """Start this Python again with the allocator settings of a training process, if it has none."""
    if added := malloc.training_environment():
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **added})


def gpu_from_driver_name(device: str) -> str:
    """Return the GPU model of ``gpu_peaks.yaml`` in a driver's device name, such as V100 for "Tesla V100-SXM2-16GB".

    The device name itself if no model matches.
    """
    words = re.split(r"[^A-Za-z0-9]+", device)
    return next((model for model in known_peaks() if model in words), device)


def this_gpu() -> Compute:
    """Return the GPU of this machine, under the name that the forecasts use."""
    memory = torch.cuda.get_device_properties(0).total_memory / GIB
    return Compute("this GPU", 0, 0, gpu_from_driver_name(torch.cuda.get_device_name()), 1, memory)


def machine() -> dict[str, Any]:
    """Return the machine, versions and commit of a measurement."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8") if sys.platform == "linux" else ""
    models = [line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name")]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "native_bf16": torch.cpu._is_avx512_bf16_supported(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit.stdout.strip(),
    }


def open_generated(config: RunConfig) -> dict[str, DataSplit]:
    """Open the generated data that a config without a data root reads."""
    root, _ = resolve_data_root(config, GENERATED)
    return open_sources(config, root)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Provide a folder for one measurement, removed afterwards."""
    with TemporaryDirectory(prefix="roofscale-bench-") as name:
        yield Path(name)


def run_alone(measure: Callable[[], Sequence[Result]]) -> None:
    """Run one benchmark from its command line; write its results as JSON to the file named there, or print them."""
    start = time.perf_counter()
    results = measure()
    lines = [{**dataclasses.asdict(one), "verdict": one.verdict} for one in results]
    text = json.dumps({"seconds": time.perf_counter() - start, "results": lines}, indent=1)
    if sys.argv[1:]:
        Path(sys.argv[1]).write_text(text, encoding="utf-8")
    else:
        print(text)
