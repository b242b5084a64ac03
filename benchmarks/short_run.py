"""Where the time of phase 1's ten-sample run goes, and, given another checkout, how long it takes beside that one's.

``python -m benchmarks.short_run FILE [CHECKOUT]``: runs of this one and of CHECKOUT by turns, each launched by a
process of its own, with the figures in FILE. The parts are told from the run's events, and add up to its seconds.
"""

import json
import os
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT, in_turns, machine, say_each, scratch_folder
from roofscale.files import write_json

ROUNDS = 3
_RUN = """
import sys, time
from pathlib import Path
from roofscale.config import RunConfig
from roofscale.runners.local import LocalRunner
LocalRunner(Path(sys.argv[1]))(RunConfig(max_samples=10, compute="ml.m5.xlarge"))
"""


def run(checkout: Path) -> dict[str, Any]:
    """Seconds of a run's parts, its losses and its peak of memory, with the package of a checkout."""
    with scratch_folder() as folder:
        environment = {**os.environ, "PYTHONPATH": str(checkout / "src")}
        subprocess.run([sys.executable, "-c", _RUN, str(folder)], cwd=ROOT, env=environment, check=True)
        measured = json.loads((folder / "measurement.json").read_text(encoding="utf-8"))
        lines = (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines if line]
    metrics = measured["metrics"]
    first = measured["steps"][0]
    began = first["time"] - first["seconds"] - metrics["speed/setup_seconds"]
    return {
        "seconds": metrics["speed/run_seconds"],
        "parts": parts(events, began, began + metrics["speed/run_seconds"]),
        "peak_mib": metrics["memory/peak_mib"],
        "losses": [step["loss"] for step in measured["steps"]],
        "validated": [validation["losses"] for validation in measured["validations"]],
        "cpu_others": metrics["cpu/others"],
    }


def parts(events: list[Mapping[str, Any]], began: float, ended: float) -> dict[str, float]:
    """Seconds by what ended with each event: the start's, validations', steps', what followed them, and the end."""
    found: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    before = began
    for event in events:
        kind = event["event"]
        if kind == "stage" or (kind == "note" and seen["start"]):
            continue  # what it announces is counted where it ends
        seen[kind] += 1
        name = {
            "note": "process and imports",
            "start": "net and data",
            "validation": f"validation {seen[kind]}",
            "step": "steps",
            "metrics": "sheet and cached batch",
        }.get(kind, "end")
        found[name] += event["time"] - before
        before = event["time"]
    return {**found, "after the end event": ended - before}


def main() -> None:
    """Measure and write."""
    out, *other = map(Path, sys.argv[1:])
    ways = {"ours": lambda: run(ROOT)} | ({"theirs": lambda: run(other[0].resolve())} if other else {})
    rounds = in_turns(ways, ROUNDS, say_each)
    report: dict[str, Any] = {"machine": machine(), "rounds": rounds}
    report["parts"] = {
        name: {part: statistics.median(one[name]["parts"][part] for one in rounds) for part in rounds[0][name]["parts"]}
        for name in ways
    }
    if other:
        ratios = [one["ours"]["seconds"] / one["theirs"]["seconds"] for one in rounds]
        report["ratio"] = {"median": statistics.median(ratios), "spread": [min(ratios), max(ratios)]}
        alike = ("losses", "validated")
        report["same_losses"] = all(one["ours"][what] == one["theirs"][what] for one in rounds for what in alike)
        report["peak_mib"] = {name: [one[name]["peak_mib"] for one in rounds] for name in ways}
    for one in rounds:
        for name in ways:
            del one[name]["validated"]
    write_json(out, report)


if __name__ == "__main__":
    main()
