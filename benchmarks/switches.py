"""What each switch of the training step does to its speed and its memory, one switch at a time, by turns.

``python -m benchmarks.switches [KEY=VALUE]...`` takes steps on one batch in memory, each config in a process of its
own, and writes ``benchmarks/results/<date>/switches.json``. On a machine with a GPU it measures there. A ratio is to
the same round's run of the base, which is measured before the switches in one round and after them in the next.
"""

import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.measure import in_turns, machine, say_each, todays_file
from benchmarks.steps import in_fresh_process
from roofscale.config import RunConfig
from roofscale.forecast.gpu_memory import ALLOCATOR_VARIABLES
from roofscale.report.format import markdown

BASE = {"image_size": 256, "batch_size": 8, "threads": 1}  # as many px as a batch of two at 512
ROUNDS = 3

Rounds = Sequence[
    Mapping[str, Mapping[str, float] | None]
]  # of each: by name, what its steps took; None: out of memory


@dataclass(frozen=True)
class Switch:
    """What differs from the base."""

    knobs: Mapping[str, Any] = field(default_factory=dict)
    allocator: str = ""  # setting of CUDA's caching allocator

    @property
    def environment(self) -> dict[str, str]:
        """That of its process."""
        return {ALLOCATOR_VARIABLES[0]: self.allocator} if self.allocator else {}

    def config(self, base: RunConfig) -> RunConfig:
        """The base with it."""
        return base.with_overrides(self.knobs)

    def words(self, base: RunConfig) -> str:
        """Its name."""
        changes = {**self.config(base).diff(base), **self.environment}
        return " ".join(f"{key}={value}" for key, value in changes.items()) or "base"


SWITCHES = (
    Switch({"precision": "fp32"}),
    Switch({"channels_last": False}),
    Switch({"micro_batches": 2}),
    Switch({"activation_checkpointing": True}),
    Switch({"ema": 0.99}),
    Switch({"compile": True}),
)
ON_A_GPU = (*SWITCHES, Switch(allocator="expandable_segments:True"))


def rounds(base: RunConfig, switches: Sequence[Switch]) -> Rounds:
    """The base and all switches by turns."""

    def way(one: Switch) -> Callable[[], dict[str, float] | None]:
        return lambda: in_fresh_process(one.config(base), one.environment)

    return in_turns({one.words(base): way(one) for one in (Switch(), *switches)}, ROUNDS, say_each)


def effects(measured: Rounds) -> list[dict[str, Any]]:
    """Of each switch: the ratios to the base of speed and memory, median, least and greatest of the rounds; none where
    it, or the base, went out of memory."""
    found = []
    for name in (name for name in measured[0] if name != "base"):
        row: dict[str, Any] = {"switch": name}
        pairs = [(one[name], one["base"]) for one in measured]
        both = [(with_it, base) for with_it, base in pairs if with_it and base]
        for what in ("samples_per_s", "peak_mib") if both else ():
            ratios = sorted(with_it[what] / base[what] for with_it, base in both)
            row[what] = {"ratio": statistics.median(ratios), "least": ratios[0], "greatest": ratios[-1]}
        if taken := [with_it["first_step_seconds"] for with_it, _ in pairs if with_it]:
            row["first_step_seconds"] = statistics.median(taken)
        found.append(row)
    return found


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """The effects as markdown."""
    rows = []
    for row in found:
        cells = [
            "{ratio:.2f} ({least:.2f} to {greatest:.2f})".format(**row[what]) if what in row else "out of memory"
            for what in ("samples_per_s", "peak_mib")
        ]
        first = row.get("first_step_seconds")
        rows.append((row["switch"], *cells, "" if first is None else f"{first:.1f}"))
    return markdown(("switch", "samples/s over the base", "peak memory over the base", "first step, s"), rows)


def main(words: Sequence[str]) -> int:
    """Measure and write; ``words`` override the base."""
    on, base = machine(), RunConfig().with_overrides(BASE).with_overrides(words)
    measured = rounds(base, ON_A_GPU if on["gpu"] else SWITCHES)
    found = effects(measured)
    content = {"machine": on, "base": base.diff(RunConfig()), "effects": found, "rounds": measured}
    todays_file("switches.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
