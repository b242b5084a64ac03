"""How far is the forecast of host memory from peaks that it was not fitted to?

``python -m benchmarks.host_forecast [--encoders resnet34 mobilenetv2_100] [--cells 3/1 16/4 8/2/2] [--set "..."]``
makes each encoder's probes, forecasts each held-out cell (batch/workers, or batch/workers/passes) from them alone, and
only then runs it. A cell may be said to be under the limit while it is over it (for some size of compute) only where
its peak lies above the interval. Settings of the allocator are taken from the environment (``MALLOC_ARENA_MAX=2 python
-m ...``). Further calls add to the results file.
"""

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import GENERATED, machine, scratch_folder, todays_file
from roofscale.cli.console import ProgressBar, console, plain
from roofscale.compute import get
from roofscale.config import RunConfig
from roofscale.data.sources import resolve_data
from roofscale.forecast import host_memory
from roofscale.forecast.host_memory import HostModel
from roofscale.forecast.probes import Probes, local_profile, probe_config
from roofscale.measurement import Outcome
from roofscale.runners.local import LocalRunner
from roofscale.train import malloc

LARGEST = (16, 4)  # batch and workers that the probes are chosen for
STEPS = 4  # of a pass of a held-out run; the six on a cached batch come on top
CELLS = ("3/1", "6/0", "6/3", "8/4", "12/2", "16/0", "16/4", "4/2/2")  # none of them is a probe
TARGET = {"median": 0.02, "worst": 0.06}


def measure_encoder(
    base: RunConfig, cells: Sequence[str], folder: Path, kept: Path, until: float
) -> Iterator[dict[str, Any]]:
    """Each cell's forecast, interval and measured peak, as soon as it is there; none is begun after ``until``."""
    out = console(quiet=True)
    largest = base.with_overrides({"batch_size": LARGEST[0], "num_workers": LARGEST[1]})
    probes = Probes(kept, local_profile(base, get(base.compute)))
    begun = time.monotonic()
    probes.run(probes.missing(largest, probes.points()), GENERATED, plain(out), ProgressBar)
    print(f"probes of {base.encoder}: {time.monotonic() - begun:.0f} s", file=sys.stderr)
    model = host_memory.fit_host_model(probes.kind, probes.points())
    for cell in cells:
        if time.monotonic() > until:
            return
        size, workers, passes = (*map(int, cell.split("/")), 1)[:3]
        longer = {"max_samples": STEPS * size, "val_samples": size, "epochs": passes}
        config = probe_config(base, size, workers).with_overrides(longer)
        yield measure_cell(resolve_data([config], GENERATED, plain(out))[0], cell, model, folder)


def measure_cell(config: RunConfig, cell: str, model: HostModel, folder: Path) -> dict[str, Any]:
    """Forecast first, then run."""
    forecast = model.forecast(config, get(config.compute).memory_gib * 1024)
    measured = LocalRunner(folder / cell.replace("/", "-"), ProgressBar(f"{config.encoder} {cell}"))(config)
    assert measured.outcome is Outcome.OK, measured.detail
    mib = measured.metric("memory/peak_mib")
    return {
        "encoder": config.encoder,
        "cell": cell,
        "kind": str(model.kind),
        "probes": {f"{p.config.batch_size}/{p.config.num_workers}": round(p.peak_mib, 1) for p in model.points},
        "forecast_mib": round(forecast.peak.mib, 1),
        "low_mib": round(forecast.peak.low_mib, 1),
        "high_mib": round(forecast.peak.high_mib, 1),
        "measured_mib": round(mib, 1),
        "error": round(forecast.peak.mib / mib - 1, 4),
        "memory_source": measured.facts["memory_source"],
    }


def summary(cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The errors against the targets, and how often the interval held."""
    errors = [abs(cell["error"]) for cell in cells]
    return {
        "cells": len(cells),
        "median_error": statistics.median(errors),
        "worst_error": max(errors),
        "met": statistics.median(errors) <= TARGET["median"] and max(errors) <= TARGET["worst"],
        "in_interval": sum(cell["low_mib"] <= cell["measured_mib"] <= cell["high_mib"] for cell in cells),
        "false_fits_possible": sum(cell["measured_mib"] > cell["high_mib"] for cell in cells),
    }


def command() -> str:
    """What was called, with the allocator's settings before it."""
    return f"{malloc.allocator_settings()} python -m benchmarks.host_forecast {shlex.join(sys.argv[1:])}".strip()


def main() -> int:
    """Measure; 0 where all cells on file together meet the targets and none lies above its interval."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--encoders", nargs="+", default=["resnet34", "mobilenetv2_100"])
    parser.add_argument("--cells", nargs="*", default=CELLS, help="batch/workers or batch/workers/passes")
    parser.add_argument("--seconds", type=float, default=7200.0, help="no cell is begun after that time")
    parser.add_argument("--probes", type=Path, help="folder that keeps probes from one call to the next")
    parser.add_argument("--set", default="", help="overrides, KEY=VALUE words")
    parser.add_argument("--out", type=Path, default=todays_file("host_forecast.json"))
    asked = parser.parse_args()
    until = time.monotonic() + asked.seconds
    before = json.loads(asked.out.read_text(encoding="utf-8")) if asked.out.exists() else {}
    kept, commands = before.get("results", []), [*before.get("commands", []), command()]
    for encoder in asked.encoders:
        base = RunConfig().with_overrides([f"encoder={encoder}", *asked.set.split()])
        with scratch_folder() as folder:
            for found in measure_encoder(base, asked.cells, folder, asked.probes or folder / "probes", until):
                print(json.dumps(found), file=sys.stderr, flush=True)
                kept.append(found)
                content = {"machine": machine(), "commands": commands, "summary": summary(kept), "by_kind": {
                    kind: summary([one for one in kept if one["kind"] == kind])
                    for kind in dict.fromkeys(one["kind"] for one in kept)
                }, "results": kept}  # fmt: skip
                asked.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if not kept:
        return 0  # probes alone
    done = summary(kept)
    print(json.dumps(done, indent=1))
    return 0 if done["met"] and not done["false_fits_possible"] else 1


if __name__ == "__main__":
    sys.exit(main())
