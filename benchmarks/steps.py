"""Training steps on one batch in memory: how fast, and with how much memory. ``switches`` and ``gpu_memory`` share it.

``python -m benchmarks.steps CONFIG_JSON`` takes them in a process of its own and prints what it found as JSON.
"""

import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from benchmarks.measure import in_own_process, now
from roofscale.compute import MIB
from roofscale.config import RunConfig
from roofscale.data.sample import CHANNELS, Batch
from roofscale.train import malloc
from roofscale.train.prefetch import prefetch
from roofscale.train.trainer import Trainer

STEPS = 6  # timed, after the one that pays for set-up and for compiling; a rate is that of their median


@dataclass
class Repeated:
    """One batch again and again, in pinned memory as a loader has it."""

    batch: Batch
    times: int
    position: int = 0

    def __iter__(self) -> Iterator[Batch]:
        batch = self.batch
        if torch.cuda.is_available():
            batch = Batch(*(tensor.pin_memory() for tensor in batch[:-1]), batch.ids)
        for _ in range(self.times):
            yield batch


def random_batch(config: RunConfig) -> Batch:
    """A batch of noise, all of it labelled."""
    count, size = config.batch_size, config.image_size
    return Batch(
        torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8),
        torch.randint(0, 2, (count, len(CHANNELS), size, size), dtype=torch.uint8),
        torch.ones(count, len(CHANNELS), dtype=torch.bool),
        [str(number) for number in range(count)],
    )


def taken(config: RunConfig) -> dict[str, float]:
    """Take steps in this process, on a GPU with the next batch copied meanwhile.

    On a CPU with one thread the clock is that of the process, so that other work on the machine counts for little.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    trainer = Trainer(config, STEPS + 1)
    on_gpu = trainer.execution.device.type == "cuda"
    clock = time.process_time if config.threads == 1 and not on_gpu else now
    started, laps = now(), [clock()]
    first = 0.0
    for fetched in prefetch(Repeated(random_batch(config), STEPS + 1), trainer.prefetcher):
        trainer.step(fetched.batch)
        trainer.progress.step += 1
        laps.append(clock())
        first = first or now() - started
    seconds = [after - before for before, after in pairwise(laps[1:])]
    return {
        "samples_per_s": config.batch_size / statistics.median(seconds),
        "first_step_seconds": first,
        **(_gpu_mib() if on_gpu else {"peak_mib": _peak_rss_mib()}),
    }


def _gpu_mib() -> dict[str, float]:
    free, total = torch.cuda.mem_get_info()
    return {
        "peak_mib": torch.cuda.max_memory_reserved() / MIB,
        "allocated_mib": torch.cuda.max_memory_allocated() / MIB,
        "context_mib": (total - free - torch.cuda.memory_reserved()) / MIB,  # what the driver counts beyond
    }


def _peak_rss_mib() -> float:
    """Of this process; compilers that it starts are processes of their own."""
    if sys.platform == "linux":  # where ru_maxrss would count what the process had been forked from
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def in_fresh_process(config: RunConfig, environment: Mapping[str, str] | None = None) -> dict[str, float] | None:
    """As ``taken``, in a new process with a training's allocator settings; None if the GPU is too small."""
    added = dict(environment or {})
    added |= malloc.training_environment({**os.environ, **added})
    found: dict[str, float] | None = in_own_process("benchmarks.steps", json.dumps(config.as_dict()), environment=added)
    return found


if __name__ == "__main__":
    print(json.dumps(taken(RunConfig().with_overrides(json.loads(sys.argv[1])))))
