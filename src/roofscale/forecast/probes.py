"""Configs of the short runs that a forecast of host memory is fitted to."""

import dataclasses
import math

from roofscale.config import RunConfig
from roofscale.forecast.host_memory import FURTHEST_BATCH, FURTHEST_WORKERS


def initial_probes(config: RunConfig) -> tuple[RunConfig, ...]:
    """Return the runs that a config is forecast from: three batch sizes with two worker counts, smallest first."""
    least = config.least_batch
    batches = (least, least + 1, max(least + 3, math.ceil(config.batch_size / FURTHEST_BATCH)))
    workers = (0, max(2, math.ceil(config.num_workers / FURTHEST_WORKERS)))
    return tuple(probe_config(config, size, count) for size in batches for count in workers)


def probe_config(config: RunConfig, batch_size: int, num_workers: int) -> RunConfig:
    """Return a run of three steps, the shortest with the peak memory of a long one.

    The optimiser allocates its state at the end of the first step, and a run of three steps ends with more of them on a
    cached batch.
    """
    return dataclasses.replace(
        config,
        datasets=config.datasets[:1],
        batch_size=batch_size,
        num_workers=num_workers,
        max_samples=3 * batch_size,
        val_samples=2,
        epochs=1,
    )
