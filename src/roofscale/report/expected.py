"""What was expected beside what was measured, expectation by expectation."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from roofscale.phases.climb import ClimbResult, StepResult
from roofscale.phases.expectation import Expectation
from roofscale.phases.judge import Verdict
from roofscale.phases.plan import EXPECTATIONS
from roofscale.train.interval import place


@dataclass(frozen=True)
class Comparison:
    """One expectation of one run, with the interval of what was measured; NaN where it was not."""

    step: str
    expectation: Expectation
    measured: float  # a ratio, or absolute, as the expectation is
    low: float
    high: float
    verdict: Verdict


def comparisons(climb: ClimbResult) -> list[Comparison]:
    """Every expectation that a run of the climb was held to, in the order of the runs.

    A retreat is held to none: what was expected of the increment asked for says nothing of a smaller one.
    """
    return [found for run in climb.all_runs() for found in _of_run(run)]


def _of_run(run: StepResult) -> Iterator[Comparison]:
    judged = next((found for found in run.verdict.criteria if found.name == EXPECTATIONS), None)
    if judged is None:
        return
    for expected in run.step.expect:
        name = expected.metric
        measured, low, high = (judged.numbers.get(key, math.nan) for key in (name, f"{name}/low", f"{name}/high"))
        verdict = place(low, high, *expected.band)
        if verdict is Verdict.FAILED and judged.verdict is not Verdict.FAILED:
            verdict = Verdict.INSUFFICIENT_EVIDENCE  # the machine was disturbed, so that a miss proves nothing
        yield Comparison(run.step.name, expected, measured, low, high, verdict)
