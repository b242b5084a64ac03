"""The stopping rule of runs that only measure their pace, so that a trial of a search takes as few steps as possible.

The first step of an epoch does not count. The loader processes deliver their first batches at about the same time and
then in turn, so that a minimum number of steps is needed before the pace is the lasting one.
"""

import math
from collections.abc import Sequence

from roofscale.config import RunConfig
from roofscale.stats.intervals import TRIAL_SPREAD, Interval, add_variance, interval, log_rate

LEAST_STEPS = 4  # timed steps; memory has peaked by then, because the optimiser state exists from the second step on
LEAST_TURNS = 2  # batches from each loader process


def min_timed_steps(num_workers: int) -> int:
    """Return the fewest timed steps from which the pace is estimated."""
    return max(LEAST_STEPS, LEAST_TURNS * num_workers)


def stop_reason(config: RunConfig, timed: Sequence[tuple[float, float]]) -> str:
    """Return in one line why the pace is known well enough to stop; empty if it is not.

    The precision is that of this run's pace. Whether it is below ``stop_below`` is decided with the spread between runs
    included, because that is a comparison with other runs.

    Args:
        config: of the run, with ``stop_precision`` and ``stop_below``.
        timed: (samples, seconds) of the steps in order, without the first of each epoch.
    """
    pace = log_rate([timed]) if config.stop_precision and len(timed) >= min_timed_steps(config.num_workers) else None
    if pace is None:
        return ""
    within_run, between_runs = interval(pace), interval(add_variance(pace, TRIAL_SPREAD**2))
    if math.expm1(within_run.high - within_run.centre) <= config.stop_precision:
        return f"{_rate(within_run):.3g} samples/s, known to within {config.stop_precision:.0%}"
    if math.exp(-between_runs.low) < config.stop_below:
        return f"{_rate(within_run):.3g} samples/s, certainly below {config.stop_below:.3g}"
    return ""


def _rate(log_pace: Interval) -> float:
    return math.exp(-log_pace.centre)
