"""Short runs from which the host memory of larger ones can be foreseen."""

import dataclasses
import math

from roofscale.config import RunConfig
from roofscale.forecast.host_memory import FURTHEST_BATCH, FURTHEST_WORKERS


def initial_probes(config: RunConfig) -> tuple[RunConfig, ...]:
    """The short runs from which a config can be forecast: three batch sizes with two worker counts, smallest first."""
    least = config.least_batch
    batches = (least, least + 1, max(least + 3, math.ceil(config.batch_size / FURTHEST_BATCH)))
    workers = (0, max(2, math.ceil(config.num_workers / FURTHEST_WORKERS)))
    return tuple(probe_config(config, size, count) for size in batches for count in workers)


def probe_config(config: RunConfig, batch_size: int, num_workers: int) -> RunConfig:
    """A run of three steps, as short as one can be that takes as much memory as a long one: the optimiser's state is
    there from the second step on, and the six steps on a cached batch that end a run count too."""
    return dataclasses.replace(
        config,
        datasets=config.datasets[:1],
        batch_size=batch_size,
        num_workers=num_workers,
        max_samples=3 * batch_size,
        val_samples=2,
        epochs=1,
    )
