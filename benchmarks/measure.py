"""What every benchmark shares: comparison by turns, one result type, and the command line of a single one."""

import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from roofscale.config import RunConfig
from roofscale.data.sources import DataSplit, open_sources, resolve_root

ROOT = Path(__file__).resolve().parents[1]
GENERATED = ROOT / "data" / "generated"


@dataclass(frozen=True)
class Result:
    """One line of the table."""

    measure: str
    value: float | None  # None: could not be measured here, ``note`` says why
    target: float
    unit: str = "ratio"
    at_most: bool = False  # the target is an upper bound
    spread: tuple[float, float] | None = None  # least and greatest of the single rounds
    note: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)  # every single value measured

    @property
    def verdict(self) -> str:
        """'met', 'missed by 3 %' or 'not measured'."""
        if self.value is None:
            return "not measured"
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
    """Compare two rates measured alternately: A B, B A, A B, ...

    The value is the median of the ratios of each round, because what disturbs a machine lasts longer than one round
    and then disturbs both sides of it; the changing order takes care of drift within a round.
    """
    pairs = []
    for number in range(rounds):
        if number % 2:
            theirs_rate, ours_rate = theirs(), ours()
        else:
            ours_rate, theirs_rate = ours(), theirs()
        pairs.append((ours_rate, theirs_rate))
        print(f"  {name}, round {number + 1} of {rounds}: {ours_rate:.3f} over {theirs_rate:.3f}", file=sys.stderr)
    ratios = [a / b for a, b in pairs]
    return Result(
        name,
        statistics.median(ratios),
        target,
        spread=(min(ratios), max(ratios)),
        note=note,
        details={"ours": [a for a, _ in pairs], "theirs": [b for _, b in pairs], **(details or {})},
    )


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
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
    """The generated data that a config without a data root stands for."""
    root, _ = resolve_root(config, GENERATED)
    return open_sources(config, root)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for one measurement, removed afterwards."""
    # `mlflow run` leaves a process that tidies up after it, which may still write here.
    with TemporaryDirectory(prefix="roofscale-bench-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def run_alone(measure: Callable[[], Sequence[Result]]) -> None:
    """Run one benchmark from its own command line; its results go as JSON to the file named there, or are printed."""
    start = time.perf_counter()
    results = measure()
    lines = [{**dataclasses.asdict(one), "verdict": one.verdict} for one in results]
    text = json.dumps({"seconds": time.perf_counter() - start, "results": lines}, indent=1)
    if sys.argv[1:]:
        Path(sys.argv[1]).write_text(text, encoding="utf-8")
    else:
        print(text)
