"""The knee, the Pareto front, and what a trial is worth."""

import dataclasses
import math

import pytest
from scipy import stats

from roofscale.config import RunConfig
from roofscale.measurement import Measurement, Outcome, StepRecord
from roofscale.phases.search.choice import Choice, choose, pareto, pool
from roofscale.phases.search.space import SearchSpec
from roofscale.phases.search.trial_result import SKIPPED, TrialResult, from_measurement, objective
from roofscale.phases.search.trial_runner import MOST_STEPS, later_pass_mib, shorten_for_trial
from roofscale.stats.intervals import Estimate

SPEC = SearchSpec({"batch_size": (1, 24), "num_workers": (0, 4)})


def tried(batch: int, rate: float, share: float = 0.5, workers: int = 2, deviation: float = 0.02) -> TrialResult:
    config = RunConfig(batch_size=batch, num_workers=workers)
    return TrialResult(config, Outcome.OK, share, Estimate(-math.log(rate), deviation**2, math.inf), run_id=str(batch))


def chosen(*able: TrialResult, tolerance: float = 0.05) -> Choice:
    choice = choose(able, dataclasses.replace(SPEC, tolerance=tolerance), seed=0)
    assert choice
    return choice


def test_the_choice_is_the_smallest_of_those_as_fast_as_the_fastest() -> None:
    sure = 0.002
    choice = chosen(*(tried(b, r, deviation=sure) for b, r in ((2, 90), (4, 96), (8, 100), (6, 97), (16, 99))))
    assert (choice.chosen.config.batch_size, choice.best.config.batch_size) == (4, 8)
    assert choice.ratio.centre == pytest.approx(0.96, abs=0.003)
    assert 0.95 < choice.ratio.low < choice.ratio.high < 0.97
    assert "batch_size=4" in str(choice)
    assert "0.96 (90% interval 0.9" in str(choice)


def test_what_may_lie_outside_the_tolerance_is_not_chosen() -> None:
    unsure = chosen(tried(2, 80), tried(4, 96), tried(8, 100), tried(16, 101))
    assert unsure.chosen.config.batch_size > 4
    assert unsure.ratio.low >= 0.95


def test_neighbours_make_a_config_better_known_than_its_own_trial_does() -> None:
    choice = chosen(*(tried(batch, 100) for batch in (6, 7, 8, 9, 10, 11)))
    of_two_trials = 2 * stats.norm.ppf(0.95) * math.sqrt(2) * 0.02  # width of the ratio's interval, of logarithms
    assert math.log(choice.ratio.high / choice.ratio.low) < of_two_trials / 2
    assert choice.chosen.config.batch_size == 6


def test_among_equal_batches_fewer_workers_are_smaller() -> None:
    choice = chosen(tried(4, 100, workers=3, deviation=0.002), tried(4, 99, workers=1, deviation=0.002))
    assert choice.chosen.config.num_workers == 1


def test_what_is_over_its_memory_or_never_ran_is_not_chosen() -> None:
    over, died = tried(8, 200, share=0.81), TrialResult(RunConfig(batch_size=16), Outcome.HOST_OOM, 1.2)
    skipped = TrialResult(RunConfig(batch_size=24), SKIPPED, 1.5)
    assert chosen(over, died, skipped, tried(2, 50)).chosen.config.batch_size == 2
    assert choose([over, died, skipped], SPEC, seed=0) is None


def test_a_config_that_ran_several_times_is_not_chosen_for_its_luckiest_run() -> None:
    lucky = [tried(4, rate, share) for rate, share in ((60, 0.3), (58, 0.5), (103, 0.3))]
    choice = chosen(*lucky, tried(8, 100), tried(8, 100))
    assert choice.chosen.config.batch_size == 8
    (pooled,) = pool(lucky)
    assert pooled.rate == pytest.approx((60 * 58 * 103) ** (1 / 3))
    assert pooled.share == 0.5
    assert [one.rate for one in choice.front] == pytest.approx([100])  # at the memory of batch 8, 0.5 as well
    died = TrialResult(lucky[0].config, Outcome.HOST_OOM, 1.2)
    assert not pool([*lucky, died])[0].feasible


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    points = [tried(2, 50, 0.2), tried(4, 80, 0.4), tried(6, 70, 0.5), tried(8, 80, 0.6), tried(16, 90, 0.7)]
    assert [one.config.batch_size for one in pareto(points)] == [2, 4, 16]


def test_the_objective_is_a_rate_or_a_rate_a_dollar_or_a_penalty() -> None:
    assert objective(tried(4, 10.0), None) == pytest.approx(10)
    assert objective(tried(4, 10.0), 0.5) == pytest.approx(72_000)  # 36,000 samples an hour
    slightly, far = (objective(tried(4, 1000.0, share=share), None) for share in (0.82, 1.2))
    assert far < slightly < 0
    assert slightly == pytest.approx(-0.025)


@pytest.mark.parametrize("outcome", [Outcome.HOST_OOM, Outcome.CUDA_OOM, Outcome.SHM_FULL])
def test_a_run_out_of_memory_took_all_of_it_at_the_least(outcome: Outcome) -> None:
    found = from_measurement(RunConfig(), Measurement(outcome, "", "", metrics={"memory/share": 0.7}), "run")
    assert (found.share, found.pace) == (1.0, None)
    assert math.isnan(found.peak_mib)
    assert TrialResult.from_dict(found.config, found.as_dict()).share == 1.0


def steps(count: int, epochs: int = 1) -> tuple[StepRecord, ...]:
    each = [(epoch, number) for epoch in range(epochs) for number in range(count // epochs)]
    return tuple(
        StepRecord(i + 1, epoch, "rid", 4 * (i + 1), 1.0, 1.0, 1e-3, 2.0, 0.0, 0.0) for i, (epoch, _) in enumerate(each)
    )


def test_a_measured_trial_has_the_pace_of_its_steps() -> None:
    metrics = {"memory/share": 0.5, "memory/peak_mib": 1000.0, "gpu/memory_share": 0.6}
    found = from_measurement(
        RunConfig(batch_size=4), Measurement(Outcome.OK, "", "", steps(9), metrics=metrics), "run", 200.0
    )
    assert found.rate == pytest.approx(2.0)
    assert found.peak_mib == 1200
    assert found.share == 0.6  # the host's, 0.5 x 1200 / 1000, is no larger
    assert found.samples == 36


def test_what_later_passes_copy_is_added_where_a_trial_saw_only_the_first() -> None:
    config = RunConfig(epochs=2)
    metrics = {"memory/copied_mib": 400.0}
    first, both = (Measurement(Outcome.OK, "", "", steps(8, epochs), metrics=metrics) for epochs in (1, 2))
    assert later_pass_mib(config, first) == 300
    assert later_pass_mib(config, both) == 0
    assert later_pass_mib(RunConfig(epochs=2, num_workers=0), first) == 0
    assert later_pass_mib(RunConfig(epochs=1), first) == 0


def test_a_trial_is_the_same_training_cut_short() -> None:
    config = RunConfig(batch_size=8, max_samples=32, epochs=2)
    trial = shorten_for_trial(config, SearchSpec({"batch_size": (1, 8)}, precision=0.02), best_rate=10.0)
    assert trial.epochs * 32 // 8 >= MOST_STEPS
    assert (trial.stop_precision, trial.stop_below) == (0.02, pytest.approx(9.5))
    assert (trial.batch_size, trial.max_samples, trial.num_workers) == (8, 32, config.num_workers)
