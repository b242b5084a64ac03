"""The criteria's error rates on simulated curves: false alarms at most 1 in 20, planted faults caught."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tests.synthetic_curves import loss_curve, memory_curve, most_events, validation_losses

from roofscale.stats import curves
from roofscale.stats.curves import Verdict
from roofscale.stats.leak import no_leak

TRIALS = 120
SHORT, LONG = (10, 25, 50), (200, 2000)
FALSE_ALARMS = 0.05


def trials_of(count):
    return TRIALS if count < 200 else 40


def norms(losses):
    return np.ones_like(losses)


@pytest.mark.parametrize("decays", [False, True])
@pytest.mark.parametrize("count", SHORT + LONG)
def test_stable_and_smooth_raise_at_most_one_false_alarm_in_twenty(count, decays):
    random = np.random.default_rng(count)
    trials = trials_of(count)
    samples = [loss_curve(random, count, decays=decays, sd=random.uniform(0.2, 0.4)) for _ in range(trials)]
    unstable = sum(curves.stable(c, norms(c)).verdict is not Verdict.PASSED for c in samples)
    assert unstable <= most_events(trials, FALSE_ALARMS)
    if count >= 25:
        rough = sum(curves.smooth(c).verdict is not Verdict.PASSED for c in samples)
        assert rough <= most_events(trials, FALSE_ALARMS)


def test_a_healthy_phase_passes_its_curve_criteria_jointly():
    random = np.random.default_rng(4)
    good = 0
    for _ in range(TRIALS):
        losses = {count: loss_curve(random, count, sd=random.uniform(0.2, 0.4)) for count in SHORT}
        memories = [memory_curve(random, count) for count in (25, 50)]
        findings = [curves.stable(c, norms(c)) for c in losses.values()]
        findings += [curves.smooth(losses[count]) for count in (25, 50)] + [no_leak(m) for m in memories]
        good += all(finding.verdict is Verdict.PASSED for finding in findings)
    assert good >= 0.95 * TRIALS


@pytest.mark.parametrize("count", SHORT)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_never_passes(count, bad):
    losses = loss_curve(np.random.default_rng(0), count)
    spoilt = losses.copy()
    spoilt[count // 2] = bad
    assert curves.stable(spoilt, norms(losses)).verdict is Verdict.FAILED
    assert curves.stable(losses, spoilt).verdict is Verdict.FAILED
    assert curves.smooth(spoilt).verdict is Verdict.FAILED
    before, after, constant = validation_losses(np.random.default_rng(0))
    after[3] = bad
    assert curves.learning(before, after, constant).verdict is Verdict.FAILED


@pytest.mark.parametrize("count", SHORT + LONG)
def test_stable_catches_a_loss_that_explodes_in_the_last_third(count):
    random = np.random.default_rng(count)
    caught = 0
    for _ in range(50):
        losses = loss_curve(random, count, sd=0.3)
        third = math.ceil(count / 3)
        losses[-third:] *= np.geomspace(8, 60, third)
        caught += curves.stable(losses, norms(losses)).verdict is Verdict.FAILED
    assert caught >= 48


@pytest.mark.parametrize("count", [25, 50, 200])
def test_spikes_are_counted_and_break_smooth(count):
    random = np.random.default_rng(count)
    caught = 0
    for _ in range(50):
        losses = loss_curve(random, count, sd=0.2)
        losses[random.integers(10, count)] *= 15
        caught += curves.smooth(losses).verdict is Verdict.FAILED
    assert caught >= 48
    losses[[6, 12, 18]] *= 30
    assert curves.spikes(losses).sum() >= 3


def test_one_spike_of_a_long_run_is_stable_and_many_are_not():
    losses = loss_curve(np.random.default_rng(1), 200, sd=0.2)
    losses[100] *= 15
    assert curves.stable(losses, norms(losses)).verdict is Verdict.PASSED
    losses[10:190:12] *= 15
    assert curves.stable(losses, norms(losses)).verdict is Verdict.FAILED


@pytest.mark.parametrize("count", [25, 50])
def test_smooth_catches_a_loss_that_swings(count):
    losses = loss_curve(np.random.default_rng(count), count, sd=0.2)
    swings = np.where(np.arange(count) // 5 % 2, 3.0, 1.0)
    assert curves.smooth(losses * swings).verdict is Verdict.FAILED


def test_too_few_steps_are_insufficient_evidence():
    losses = loss_curve(np.random.default_rng(0), 9)
    assert curves.stable(losses, norms(losses)).verdict is Verdict.INSUFFICIENT_EVIDENCE
    assert curves.stable([], []).verdict is Verdict.INSUFFICIENT_EVIDENCE
    assert curves.smooth(loss_curve(np.random.default_rng(0), 24)).verdict is Verdict.INSUFFICIENT_EVIDENCE
    assert no_leak([1000.0] * 7).verdict is Verdict.INSUFFICIENT_EVIDENCE
    assert no_leak([math.nan] * 50).verdict is Verdict.INSUFFICIENT_EVIDENCE


def test_learning_by_chance_passes_at_most_one_in_twenty_and_real_learning_passes():
    random = np.random.default_rng(2)
    lucky = sum(curves.learning(*validation_losses(random, gain=0.0)).verdict is Verdict.PASSED for _ in range(TRIALS))
    learnt = sum(
        curves.learning(*validation_losses(random, gain=0.15)).verdict is Verdict.PASSED for _ in range(TRIALS)
    )
    assert lucky <= most_events(TRIALS, 0.01)
    assert learnt >= 0.98 * TRIALS


def test_a_net_that_learnt_only_how_much_roof_there_is_has_learnt_nothing():
    before, _, constant = validation_losses(np.random.default_rng(0))
    finding = curves.learning(before + 5, constant, constant)
    assert finding.verdict is Verdict.FAILED
    assert finding.numbers["p_before"] < 1e-6
    assert finding.numbers["p_constant"] == 1.0


def test_a_significant_but_tiny_drop_is_no_learning():
    _, after, constant = validation_losses(np.random.default_rng(0))
    finding = curves.learning(after + 0.001, after, constant)
    assert finding.numbers["p_before"] < 0.01
    assert finding.verdict is Verdict.FAILED


def test_the_least_number_of_validation_samples_reaches_its_power():
    needed = curves.learning_min_samples(0.01)
    assert needed == 25
    random = np.random.default_rng(3)
    found = [curves.wilcoxon_p(random.normal(curves.LEARNING_EFFECT, 1, needed)) < 0.01 for _ in range(1000)]
    assert np.mean(found) >= curves.LEARNING_POWER
    short = validation_losses(random, needed - 1, gain=5.0)
    assert curves.learning(*short).verdict is Verdict.INSUFFICIENT_EVIDENCE


def test_validation_that_blows_up_is_not_bounded():
    before, after, constant = validation_losses(np.random.default_rng(0))
    assert curves.bounded(before, after, constant, max_ratio=3).verdict is Verdict.PASSED
    assert curves.bounded(before, 4 * constant, constant, max_ratio=3).verdict is Verdict.FAILED
    assert curves.bounded(5 * constant, 4 * constant, constant, max_ratio=3).verdict is Verdict.PASSED
    assert curves.bounded(before, after * math.inf, constant, max_ratio=3).verdict is Verdict.FAILED
    assert curves.bounded([], [], [], max_ratio=3).verdict is Verdict.INSUFFICIENT_EVIDENCE


@pytest.mark.parametrize("sd", [3.0, 15.0, 40.0])
@pytest.mark.parametrize("count", [25, 50, 200])
def test_a_plateau_is_no_leak_and_twenty_mib_a_step_is(count, sd):
    random = np.random.default_rng(count)
    plateaus = [no_leak(memory_curve(random, count, sd=sd)).verdict for _ in range(100)]
    leaks = [no_leak(memory_curve(random, count, sd=sd, leak=20.0)).verdict for _ in range(100)]
    assert plateaus.count(Verdict.FAILED) <= most_events(100, 0.01)
    assert plateaus.count(Verdict.PASSED) >= 97
    assert leaks.count(Verdict.FAILED) >= 97
    assert leaks.count(Verdict.PASSED) <= most_events(100, 0.01)


@pytest.mark.parametrize("count", [25, 50])
def test_a_single_allocation_is_no_leak(count):
    random = np.random.default_rng(count)
    verdicts = [no_leak(memory_curve(random, count, sd=10.0, allocations=1)).verdict for _ in range(100)]
    assert verdicts.count(Verdict.FAILED) <= most_events(100, FALSE_ALARMS)
    assert verdicts.count(Verdict.PASSED) >= 95


def test_a_leak_hides_in_noise_only_as_insufficient_evidence():
    random = np.random.default_rng(0)
    verdicts = [no_leak(memory_curve(random, 10, sd=60.0, leak=20.0)).verdict for _ in range(200)]
    assert verdicts.count(Verdict.INSUFFICIENT_EVIDENCE) > 100
    assert verdicts.count(Verdict.PASSED) <= most_events(200, 0.05)


def test_a_slow_leak_counts_over_a_long_run():
    memory = memory_curve(np.random.default_rng(0), 2000, leak=2.0)
    assert no_leak(memory).verdict is Verdict.FAILED
    assert no_leak(memory_curve(np.random.default_rng(0), 2000, leak=0.01)).verdict is Verdict.PASSED


def test_the_trend_agrees_with_the_exact_kendall_test_on_independent_values():
    values = np.random.default_rng(5).normal(size=15) - 0.25 * np.arange(15)
    found = curves.trend(values)
    exact = stats.kendalltau(np.arange(15), values, alternative="less", method="exact").pvalue
    assert found.p_down >= 0.8 * exact
    assert found.p_down < 0.5 < found.p_up
    assert found.slope == pytest.approx(stats.theilslopes(values).slope)
    assert math.isnan(curves.trend(values[:9]).slope)


@settings(max_examples=40)
@given(st.lists(st.floats(0.01, 100), min_size=0, max_size=60), st.floats(0.01, 100))
def test_verdicts_do_not_depend_on_the_scale_of_the_loss(losses, factor):
    scaled = [factor * loss for loss in losses]
    assert curves.smooth(losses, max_roughness=0.3).verdict in set(Verdict)
    ours, theirs = curves.spikes(np.array(losses)), curves.spikes(np.array(scaled))
    assert ours.sum() == pytest.approx(theirs.sum(), abs=1)  # a residual on the very threshold may round either way
    if len(losses) >= 25:
        assert curves.roughness(np.array(losses)) == pytest.approx(curves.roughness(np.array(scaled)), abs=1e-6)


@given(st.lists(st.sampled_from(list(Verdict)), max_size=6))
def test_combine_is_the_worst_and_never_passes_on_nothing(verdicts):
    expected = min(verdicts, key=[Verdict.FAILED, Verdict.INSUFFICIENT_EVIDENCE, Verdict.PASSED].index, default=None)
    assert curves.combine(verdicts) is (expected or Verdict.INSUFFICIENT_EVIDENCE)
