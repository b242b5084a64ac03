"""What each switch of the training step does to its speed and its memory, one switch at a time, by turns.

``python -m benchmarks.switches [KEY=VALUE]...`` takes steps on one batch in memory, each config in a process of its
own, and writes ``benchmarks/results/switches.json``. On a machine with a GPU it measures there. A ratio is to the same
round's run of the base, which is measured before the switches in one round and after them in the next. On a CPU the
clock is that of the process, with one thread, so that other work on the machine counts for little.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from benchmarks.measure import ROOT, machine
from roofscale.config import RunConfig
from roofscale.data.sample import CHANNELS, Batch

OUT = Path(__file__).parent / "results" / "switches.json"
BASE = {"image_size": 256, "batch_size": 8, "threads": 1}  # as many px as a batch of two at 512
SWITCHES: tuple[dict[str, Any], ...] = (
    {"precision": "fp32"},
    {"channels_last": False},
    {"micro_batches": 2},
    {"activation_checkpointing": True},
    {"ema": 0.99},
    {"compile": True},
)
ROUNDS = 3
STEPS = 6  # timed, after the one that pays for set-up and for compiling; a rate is that of their median


def measure_here(config: RunConfig) -> dict[str, float]:
    """Take steps in this process: samples/s, peak MiB, and the seconds of the first step."""
    from roofscale.train.trainer import Trainer

    if config.threads:
        torch.set_num_threads(config.threads)
    trainer, size = Trainer(config, STEPS + 1), config.image_size
    batch = Batch(
        torch.randint(0, 256, (config.batch_size, 3, size, size), dtype=torch.uint8),
        torch.randint(0, 2, (config.batch_size, len(CHANNELS), size, size), dtype=torch.uint8),
        torch.ones(config.batch_size, len(CHANNELS), dtype=torch.bool),
        [str(number) for number in range(config.batch_size)],
    )
    on_gpu, seconds = trainer.where.device.type == "cuda", []
    clock, started = (time.perf_counter if on_gpu else time.process_time), time.perf_counter()
    for _ in range(STEPS + 1):
        before = clock()
        trainer.step(batch)  # reads the loss and so waits for a GPU
        trainer.progress.step += 1
        seconds.append(clock() - before)
        if len(seconds) == 1:
            first = time.perf_counter() - started
    return {
        "samples_per_s": config.batch_size / statistics.median(seconds[1:]),
        "peak_mib": torch.cuda.max_memory_reserved() / 2**20 if on_gpu else _peak_rss_mib(),
        "first_step_seconds": first,
    }


def _peak_rss_mib() -> float:
    """Of this process; compilers that it starts are processes of their own."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def one(config: RunConfig) -> dict[str, float]:
    """Measure in a fresh process, whose memory nobody has used."""
    command = [sys.executable, "-m", "benchmarks.switches", "--here", json.dumps(config.as_dict())]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def rounds(base: RunConfig, switches: Sequence[Mapping[str, Any]]) -> list[dict[str, dict[str, float]]]:
    """All configs by turns, in the other direction every second round."""
    configs = {"base": base} | {_words(base, change): base.with_overrides(change) for change in switches}
    found = []
    for number in range(ROUNDS):
        measured = {}
        for name in list(configs)[:: -1 if number % 2 else 1]:
            measured[name] = one(configs[name])
            print(f"round {number + 1} of {ROUNDS}, {name}: {measured[name]}", file=sys.stderr)
        found.append(measured)
    return found


def _words(base: RunConfig, change: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in base.with_overrides(change).changed_from(base).items())


def effects(measured: Sequence[Mapping[str, Mapping[str, float]]]) -> list[dict[str, Any]]:
    """Of each switch: the ratios to the base of speed and memory, median, least and greatest of the rounds."""
    found = []
    for name in (name for name in measured[0] if name != "base"):
        row: dict[str, Any] = {"switch": name}
        for what in ("samples_per_s", "peak_mib"):
            ratios = sorted(one[name][what] / one["base"][what] for one in measured)
            row[what] = {"ratio": statistics.median(ratios), "least": ratios[0], "greatest": ratios[-1]}
        row["first_step_seconds"] = statistics.median(one[name]["first_step_seconds"] for one in measured)
        found.append(row)
    return found


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """The effects as markdown."""
    rows = []
    for row in found:
        cells = ("{ratio:.2f} ({least:.2f} to {greatest:.2f})".format(**row[w]) for w in ("samples_per_s", "peak_mib"))
        rows.append((row["switch"], *cells, f"{row['first_step_seconds']:.1f}"))
    return tabulate(rows, ("switch", "samples/s over the base", "peak memory over the base", "first step, s"), "github")


def main(words: Sequence[str]) -> int:
    """Measure and write; ``words`` override the base."""
    if words[:1] == ["--here"]:
        print(json.dumps(measure_here(RunConfig().with_overrides(json.loads(words[1])))))
        return 0
    on, base = machine(), RunConfig().with_overrides(BASE).with_overrides(words)
    measured = rounds(base, SWITCHES)
    found = effects(measured)
    content = {"machine": on, "base": base.changed_from(RunConfig()), "effects": found, "rounds": measured}
    OUT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
