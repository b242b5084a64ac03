"""The search over an invented machine: what it runs, skips, chooses, survives and takes up again."""

import dataclasses
import math
import statistics
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from tests.phases.synthetic_machine import (
    BASE,
    LIMIT_MIB,
    SPEC,
    Invented,
    best_rate,
    peak_mib,
    rate,
    search,
    tensors_mib,
)

from roofscale.errors import RoofscaleError
from roofscale.forecast.host_memory import MemoryProfile
from roofscale.measurement import Outcome
from roofscale.memory_margin import MEMORY_MARGIN
from roofscale.phases.search.step_search import open_storage
from roofscale.phases.search.study import open_study
from roofscale.phases.search.trial_result import SKIPPED, TrialResult
from roofscale.phases.search.trial_runner import TrialFailed
from roofscale.runners import RunInterrupted
from roofscale.stats.intervals import Estimate


@pytest.fixture(autouse=True)
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryProfile, "tensors_mib", tensors_mib, raising=False)


def test_it_finds_the_knee_in_few_trials_and_runs_none_out_of_memory() -> None:
    runners = [Invented(seed) for seed in range(6)]
    choices = [search(runner).run() for runner in runners]
    found = [rate(choice.chosen.config) / best_rate() for choice in choices if choice]
    assert len(found) == len(runners)
    assert statistics.median(found) > 0.93
    assert min(found) > 0.85
    assert max(len(runner.ran) for runner in runners) <= 16  # of 112
    assert sum(runner.died for runner in runners) <= 1
    within = [peak_mib(choice.chosen.config) / LIMIT_MIB for choice in choices if choice]
    assert max(within) <= MEMORY_MARGIN * 1.03  # the peaks vary by 1 %


def test_what_is_known_to_be_too_large_is_recorded_as_pruned_with_the_reason() -> None:
    runner = Invented()
    searched = search(runner)
    searched.run()
    pruned = searched.study.get_trials(states=(TrialState.PRUNED,))
    assert len(pruned) == len(runner.skipped) > 0
    for trial in pruned:
        said = trial.user_attrs["result"]
        assert said["outcome"] == SKIPPED
        assert "forecast" in said["why"] or "at least as large as" in said["why"]
        assert trial.intermediate_values[0] < 0  # penalised by how far over it is
        assert trial.constraints["memory"] > 0
        assert not trial.user_attrs["feasible"]
    truth = [peak_mib(one.config) / LIMIT_MIB for one in runner.skipped]
    assert min(truth) > MEMORY_MARGIN


def test_a_peak_over_the_limit_is_worth_less_the_further_over_it_is() -> None:
    runner = Invented()
    searched = search(runner, spec=dataclasses.replace(SPEC, space={"batch_size": (6, 16), "num_workers": (3, 3)}))
    assert searched.run() is None  # nothing of it fits
    over = [t for t in searched.study.get_trials(states=(TrialState.COMPLETE,)) if t.constraints["memory"] > 0]
    assert over
    assert [t.value for t in over] == [-t.constraints["memory"] for t in over]
    assert not searched.study.get_trials(states=(TrialState.FAIL,))


def test_the_pace_of_a_slower_trial_is_not_measured_to_the_end() -> None:
    runner = Invented()
    search(runner).run()
    assert runner.trials[0].stop_below == 0.0  # nothing to be slower than
    best = max(rate(config) for config in runner.ran if peak_mib(config) < MEMORY_MARGIN * LIMIT_MIB)
    assert 0.9 * best < runner.trials[-1].stop_below < best
    assert {trial.stop_precision for trial in runner.trials} == {SPEC.precision}


def test_earlier_runs_are_told_and_not_repeated() -> None:
    pace = Estimate(-math.log(rate(BASE)), 0.0, math.inf)
    known = TrialResult(BASE, Outcome.OK, peak_mib(BASE) / LIMIT_MIB, pace, peak_mib(BASE), run_id="of phase 2")
    runner = Invented()
    searched = search(runner, known=(known,))
    searched.run()
    assert BASE not in runner.ran
    assert searched.study.trials[0].user_attrs["prior_run"] == "of phase 2"
    again = search(runner, searched.study, known=(known,))
    again.run()
    assert sum("prior_run" in trial.user_attrs for trial in again.study.trials) == 1


def test_a_trial_that_crashes_ends_itself_and_not_the_study() -> None:
    runner = Invented(endings={2: lambda: TrialFailed("trial 0 ended as crashed")})
    searched = search(runner)
    choice = searched.run()
    assert choice
    assert searched.study.trials[0].state is TrialState.FAIL
    assert len(runner.ran) >= 5


def test_a_study_in_which_everything_crashes_is_given_up() -> None:
    runner = Invented(endings={size: lambda: TrialFailed("data_error: no such file") for size in range(1, 17)})
    with pytest.raises(RoofscaleError, match=r"3 trials failed.*no such file"):
        search(runner).run()


def test_an_interrupted_search_goes_on_and_runs_nothing_twice(tmp_path: Path) -> None:
    def opened() -> optuna.Study:
        return open_study(open_storage("", tmp_path), "kept")

    stopped = Invented(endings={4: lambda: RunInterrupted("asked to")})  # batch 4 is one of the forecast's probes
    with pytest.raises(RunInterrupted):
        search(stopped, opened()).run()
    resumed = Invented()
    choice = search(resumed, opened()).run()
    assert choice
    assert resumed.ran[0].batch_size == 4
    assert not set(resumed.ran) & set(stopped.ran)


def test_a_killed_search_goes_on_with_the_trial_that_was_under_way(tmp_path: Path) -> None:
    def opened() -> optuna.Study:
        return open_study(open_storage("", tmp_path), "kept")

    opened().enqueue_trial(SPEC.values(BASE))
    under_way = opened().ask()  # and nothing more is heard of it
    for knob, (low, high) in SPEC.space.items():
        under_way.suggest_int(knob, low, high)
    runner = Invented()
    search(runner, opened()).run()
    assert runner.ran[0] == BASE
    assert opened().trials[0].state is TrialState.FAIL
    assert not opened().get_trials(states=(TrialState.RUNNING, TrialState.WAITING))


def test_a_config_that_another_worker_runs_is_pruned_and_run_once_that_worker_was_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner = Invented()
    searched = search(runner, spec=dataclasses.replace(SPEC, max_trials=1))
    searched.shared, searched.is_conductor = True, False
    for _ in range(2):
        searched.study.enqueue_trial(SPEC.values(BASE))
    others = searched.study.ask()
    for knob, (low, high) in SPEC.space.items():
        others.suggest_int(knob, low, high)
    # Its worker is killed, as the heartbeat shows.
    monkeypatch.setattr(optuna.storages, "fail_stale_trials", lambda study: study.tell(others, state=TrialState.FAIL))
    searched.run()
    assert searched.study.trials[1].state is TrialState.PRUNED
    assert runner.ran == [BASE]


def test_a_finished_search_runs_nothing_more(tmp_path: Path) -> None:
    first = search(Invented(), open_study(open_storage("", tmp_path), "kept")).run()
    runner = Invented()
    second = search(runner, open_study(open_storage("", tmp_path), "kept")).run()
    assert runner.ran == []
    assert first
    assert second
    assert second.chosen.config == first.chosen.config
