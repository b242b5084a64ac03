"""End-to-end samples a second over the same training step on a cached batch: what the loader costs."""

import itertools
import os
import time

from benchmarks.measure import Result, as_training_process, by_turns, open_generated, run_alone
from roofscale.config import RunConfig
from roofscale.data.loader import make_loader
from roofscale.data.sample import Batch, Source
from roofscale.train.trainer import Trainer

STEPS = 20
ROUNDS = 4
TRIAL_STEPS = 8
CONFIG = RunConfig(image_size=512, max_samples=100)


def measure() -> list[Result]:
    """Choose the worker count by a short trial, then compare; starting the loader is part of ours."""
    source = open_generated(CONFIG)["rid"].train
    trainer = Trainer(CONFIG, total_steps=1000)
    cached = next(iter(make_loader(CONFIG.with_overrides({"num_workers": 0}), [source], epoch=0, train=True)))
    _cached_rate(trainer, cached, 3)  # the first steps choose kernels and fill the allocator
    trials = {workers: _loaded_rate(trainer, source, workers, TRIAL_STEPS) for workers in _worker_counts()}
    best = max(trials, key=lambda workers: trials[workers])
    return [
        by_turns(
            "end-to-end samples/s over a cached-batch loop",
            lambda: _loaded_rate(trainer, source, best, STEPS),
            lambda: _cached_rate(trainer, cached, STEPS),
            rounds=ROUNDS,
            target=0.95,
            note=f"512 px, batch {CONFIG.batch_size}, {best} workers, {trainer.execution.precision}",
            details={"trial_samples_per_s_by_workers": trials},
        )
    ]


def _worker_counts() -> list[int]:
    return sorted({0, 1, 2, os.cpu_count() or 1})


def _loaded_rate(trainer: Trainer, source: Source, workers: int, steps: int) -> float:
    config = CONFIG.with_overrides({"num_workers": workers})
    start = time.perf_counter()
    for batch in itertools.islice(make_loader(config, [source], epoch=0, train=True), steps):
        trainer.step(batch)
    return steps * CONFIG.batch_size / (time.perf_counter() - start)


def _cached_rate(trainer: Trainer, batch: Batch, steps: int) -> float:
    start = time.perf_counter()
    for _ in range(steps):
        trainer.step(batch)
    return steps * CONFIG.batch_size / (time.perf_counter() - start)


if __name__ == "__main__":
    as_training_process()
    run_alone(measure)
