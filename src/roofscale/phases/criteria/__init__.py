"""The criteria that a phase file may ask for: name, meaning, limits with their sources, and a pure function each.

The statistics live in ``stats.curves``, ``stats.leak`` and ``stats.intervals``; here they meet a step's measurement,
the ones it is compared with, and the repeats of the same step under other seeds.

How repeats pool: validation losses are averaged per sample over the seeds before a paired test, because the losses of
one sample under several seeds are not independent; step times are pooled; memory counts by its worst run; curves are
judged run by run, where any failed run fails and a run without enough evidence weighs nothing beside one with it.
What a step is compared with, the step before it or the base step, brings all of its seeds in the same way.
"""

import types
from collections.abc import Mapping

from roofscale.phases.criteria import completion, curves, datasets, equal_samples, resources, speed
from roofscale.phases.criteria.evidence import MAX_PACE_DRIFT, Criterion, EarlierStep, Evidence, Limit
from roofscale.phases.criteria.expectations import COMPARED, Comparison, compare
from roofscale.phases.criteria.speed import BatchPoint, knee

__all__ = [
    "COMPARED",
    "CRITERIA",
    "MAX_PACE_DRIFT",
    "BatchPoint",
    "Comparison",
    "Criterion",
    "EarlierStep",
    "Evidence",
    "Limit",
    "compare",
    "knee",
]

CRITERIA: Mapping[str, Criterion] = types.MappingProxyType(
    {
        **completion.CRITERIA,
        **resources.CRITERIA,
        **speed.CRITERIA,
        **curves.CRITERIA,
        **equal_samples.CRITERIA,
        **datasets.CRITERIA,
    }
)
