"""Criteria that a phase file can use: name, meaning, limits with their sources, and a pure function each.

The statistics are in ``stats.curves``, ``stats.leak`` and ``stats.intervals``; here they are applied to the measurement
of a step, to those of the steps that it is compared with, and to repeats of the step under other seeds.

How repeats are pooled: validation losses are averaged per sample over the seeds before a paired test, because the
losses of one sample under several seeds are not independent; step times are pooled; memory is that of the worst run;
curves are judged run by run: any failed run fails, and runs with insufficient evidence are ignored if another run has
enough. The seeds of a step that is compared with, the step before or the base step, are pooled in the same way.
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
