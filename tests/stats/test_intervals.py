"""Intervals, against scipy's and against resampling."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats
from tests.synthetic_measurements import Part, simulate

from roofscale.runners.build_measurement import without_first_steps
from roofscale.stats import intervals as i
from roofscale.stats.curves import Verdict


def test_a_difference_of_means_is_welchs() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(2, 1, 12), random.normal(1, 3, 7)
    mine = i.interval(i.difference(*(i.mean(values) for values in (a, b))))  # type: ignore[arg-type]
    theirs = stats.ttest_ind(a, b, equal_var=False).confidence_interval(i.CONFIDENCE)
    assert (mine.low, mine.high) == pytest.approx((theirs.low, theirs.high))


def test_a_known_variance_only_widens() -> None:
    estimate = i.Estimate(0.0, 0.04, 5.0)
    wider = i.interval(i.add_variance(estimate, 0.04))
    assert wider.high > i.interval(estimate).high
    assert i.interval(i.Estimate(0.0, 0.04, math.inf)).high == pytest.approx(1.645 * 0.2, rel=1e-3)


@pytest.mark.parametrize("freedom", [2.0, 3, 4.7, 29.0, 1e6, math.inf])
def test_the_quantile_is_that_of_scipys_distribution_to_the_last_digit(freedom: float) -> None:
    assert i.interval(i.Estimate(0.0, 1.0, freedom)).high == stats.t.ppf((1 + i.CONFIDENCE) / 2, freedom)


def test_the_uncertainty_of_a_rate_is_that_of_resampling_it() -> None:
    random = np.random.default_rng(1)
    weights = np.array([16.0] * 9 + [4.0])
    amounts = weights * 0.5 * random.lognormal(0, 0.1, 10)
    found = i.log_rate([list(zip(weights, amounts, strict=True))])
    assert found
    assert math.exp(found.value) == pytest.approx(amounts.sum() / weights.sum())
    drawn = random.integers(0, 10, (20_000, 10))
    resampled = np.log(amounts[drawn].sum(axis=1) / weights[drawn].sum(axis=1))
    assert math.sqrt(found.variance) == pytest.approx(resampled.std() * math.sqrt(10 / 9), rel=0.05)


@pytest.mark.parametrize("seconds", [math.nan, math.inf, 0.0])
def test_a_pace_of_impossible_or_too_few_times_is_unknown(seconds: float) -> None:
    steps = without_first_steps(simulate(np.random.default_rng(0), [Part(steps=10)]).steps)
    assert i.log_pace([steps])
    broken = [(dataclasses.replace(step, seconds=seconds), size) for step, size in steps[:1]]
    assert i.log_pace([broken + steps[1:]]) is None
    assert i.log_pace([steps[: i.MIN_WINDOWS - 1]]) is None
    assert i.log_pace([steps[:2], steps[2:4]]), "two runs of two steps each"


def test_runs_of_one_config_differ_by_more_than_their_steps_show() -> None:
    """The 90 % interval of a ratio of equal runs holds 1 in nine of ten, though each run has a pace of its own."""
    random = np.random.default_rng(2)
    held = 0
    for _ in range(200):
        a, b = (
            i.log_pace([without_first_steps(simulate(random, [Part(steps=40)], run_sd=0.025).steps)]) for _ in range(2)
        )
        assert a
        assert b
        found = i.interval(i.difference(a, b))
        held += found.low <= 0 <= found.high
    assert held >= 0.84 * 200


@pytest.mark.parametrize("rows", [12, 40, 200])
def test_a_level_of_lasting_noise_is_not_overconfident(rows: int) -> None:
    from tests.synthetic_curves import utilisation_curve

    random = np.random.default_rng(rows)
    held = 0
    for _ in range(300):
        found = i.batch_means([utilisation_curve(random, rows, 0.5)])
        assert found
        interval = i.interval(found)
        held += interval.low <= 0.5 <= interval.high
    assert held >= 0.78 * 300, "blocks of a short series still are alike"


def test_an_interval_across_an_edge_decides_nothing() -> None:
    assert i.compare_to_band(1.1, 1.2, 1.05, math.inf) is Verdict.PASSED
    assert i.compare_to_band(0.9, 1.0, 1.05, math.inf) is Verdict.FAILED
    assert i.compare_to_band(1.0, 1.1, 1.05, math.inf) is Verdict.INSUFFICIENT_EVIDENCE
    assert i.compare_to_band(math.nan, math.nan, 0.0, 1.0) is Verdict.INSUFFICIENT_EVIDENCE


def test_measures_of_one_thing_are_pooled_by_their_variances() -> None:
    exact, rough = i.Estimate(1.0, 0.01, math.inf), i.Estimate(1.1, 0.03, math.inf)
    both = i.pooled([exact, rough])
    assert both.value == pytest.approx((3 * 1.0 + 1.1) / 4)
    assert both.variance == pytest.approx(1 / (1 / 0.01 + 1 / 0.03))
    assert i.pooled([rough]) == rough


def test_measures_that_scatter_more_than_they_allow_are_known_less_well() -> None:
    apart = [i.Estimate(value, 0.01, math.inf) for value in (0.0, 1.0, 2.0)]
    assert i.pooled(apart).variance == pytest.approx(0.01 / 3 * 100)  # chi-square 200 over two degrees of freedom
    assert i.pooled(apart).freedom == 2
