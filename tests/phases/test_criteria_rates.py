"""Error rates of the criteria that compare steps and data sets, on simulated runs; the rest is in tests/stats."""

from collections import Counter

import numpy as np
import pytest
from tests.fault_cases import FAULTY, HEALTHY, Case
from tests.synthetic_curves import most_events

from roofscale.stats.curves import Verdict

TRIALS = 200
STEPS = (14, 40)  # 200 samples at batch 16, and what is enough for nearly all
UNDECIDED = {"faster, as fast"}  # on the wrong side of the limit by as little as noise: not passing is all one can ask


def verdicts(case: Case, steps: int) -> Counter[Verdict]:
    random = np.random.default_rng(steps)
    return Counter(case(random, steps).verdict for _ in range(TRIALS))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_step_fails_at_most_once_in_twenty(name: str, steps: int) -> None:
    found = verdicts(HEALTHY[name], steps)
    assert found[Verdict.FAILED] <= most_events(TRIALS, 0.05), found
    if steps == STEPS[-1]:
        assert found[Verdict.PASSED] >= TRIALS / 2, found


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", FAULTY)
def test_a_faulty_step_passes_at_most_once_in_twenty(name: str, steps: int) -> None:
    found = verdicts(FAULTY[name], steps)
    assert found[Verdict.PASSED] <= most_events(TRIALS, 0.05), found
    if steps == STEPS[-1] and name not in UNDECIDED:
        assert found[Verdict.FAILED] >= 0.8 * TRIALS, found
