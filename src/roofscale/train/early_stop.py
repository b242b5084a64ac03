"""When a run that only measures its pace has seen enough: a trial of a search costs as few steps as it can.

Steps after an epoch's first count, and at least as many as show what is not the first rush: the loader's processes hand
over their first batches at about the same time, and then one each in turn.
"""

import math
from collections.abc import Sequence

from roofscale.config import RunConfig
from roofscale.stats.intervals import TRIAL_SPREAD, Interval, add_variance, interval, log_rate

LEAST_STEPS = 4  # timed ones; memory is at its peak by then, as the optimiser's state is there from the second step on
LEAST_TURNS = 2  # of all loader processes


def min_timed_steps(num_workers: int) -> int:
    """The fewest timed steps that say something."""
    return max(LEAST_STEPS, LEAST_TURNS * num_workers)


def stop_reason(config: RunConfig, timed: Sequence[tuple[float, float]]) -> str:
    """Why the pace is known well enough to end, one line; empty where it is not.

    Args:
        config: of the run, whose ``stop_precision`` and ``stop_below`` say what is enough.
        timed: (samples, seconds) of the steps in order, each epoch's first left out.
    """
    pace = log_rate([timed]) if config.stop_precision and len(timed) >= min_timed_steps(config.num_workers) else None
    if pace is None:
        return ""
    within, between = interval(pace), interval(add_variance(pace, TRIAL_SPREAD**2))
    if math.expm1(within.high - within.centre) <= config.stop_precision:
        return f"{_rate(within):.3g} samples/s, known to within {config.stop_precision:.0%}"
    if math.exp(-between.low) < config.stop_below:
        return f"{_rate(within):.3g} samples/s, certainly below {config.stop_below:.3g}"
    return ""


def _rate(log_pace: Interval) -> float:
    return math.exp(-log_pace.centre)
