"""Speed and peak memory of a training process that keeps freed memory (decision 0021), by batch size and by turns.

``python -m benchmarks.kept_memory [KEY=VALUE]...`` takes steps on one batch in memory, each time in a process of its
own, and writes ``benchmarks/results/<date>/kept_memory.json``. A ratio is to the same round's process with glibc's
defaults.
"""

import json
import statistics
import sys
from collections.abc import Sequence

from benchmarks.measure import in_turns, machine, say_each, todays_file
from benchmarks.steps import in_fresh_process
from roofscale.config import RunConfig
from roofscale.report.format import markdown

BATCHES = (2, 4, 8)
ROUNDS = 3
DEFAULTS = {"MALLOC_ARENA_TEST": "8"}  # glibc's own value on 64 bits: any setting of the user's leaves malloc as it is
METRICS = ("samples_per_s", "peak_mib")


def main(words: Sequence[str]) -> int:
    """Measure, write and print; ``words`` override the default config."""
    on, base, found = machine(), RunConfig().with_overrides(words), []
    for batch in BATCHES:
        config = base.with_overrides({"batch_size": batch})
        ways = {
            "kept": lambda config=config: in_fresh_process(config),
            "defaults": lambda config=config: in_fresh_process(config, DEFAULTS),
        }
        rounds = in_turns(ways, ROUNDS, say_each)
        ratios = {name: sorted(one["kept"][name] / one["defaults"][name] for one in rounds) for name in METRICS}
        found.append({"batch_size": batch, "ratios": ratios, "rounds": rounds})
    content = {"machine": on, "config": base.diff(RunConfig()), "batches": found}
    todays_file("kept_memory.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    rows = [(str(one["batch_size"]), *map(_described, one["ratios"].values())) for one in found]
    print(markdown(("batch size", "samples/s over glibc's defaults", "peak memory over them"), rows))
    return 0


def _described(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
