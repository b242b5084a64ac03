"""A search whose trials run side by side: none twice, none beyond the most, and a stop ends all of them."""

import dataclasses
import statistics
import threading
import time
from collections.abc import Mapping
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

from roofscale.config import RunConfig
from roofscale.errors import RoofscaleError
from roofscale.forecast.host_memory import MemoryProfile
from roofscale.phases.search.step_search import open_storage
from roofscale.phases.search.study import Search, open_study
from roofscale.phases.search.trial_result import TrialResult
from roofscale.phases.search.trial_runner import TrialFailed
from roofscale.runners import RunInterrupted
from roofscale.runners.job_pool import JobPool

MOST = 3


class Slow(Invented):
    """Counts how many of its trials run at the same time."""

    now = 0
    most = 0
    lock = threading.Lock()

    def run(self, number: int, config: RunConfig, trial: RunConfig, forecast: Mapping[str, float]) -> TrialResult:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            time.sleep(0.02)
            return super().run(number, config, trial, forecast)
        finally:
            with self.lock:
                self.now -= 1


@pytest.fixture(autouse=True)
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryProfile, "tensors_mib", tensors_mib, raising=False)


def side_by_side(runner: Invented, study: optuna.Study | None = None, most: int = MOST) -> Search:
    return dataclasses.replace(search(runner, study), pool=JobPool(most))


def test_as_good_a_choice_with_trials_at_the_same_time_and_none_twice() -> None:
    runners = [Slow(seed) for seed in range(3)]
    found = []
    for runner in runners:
        searched = side_by_side(runner)
        choice = searched.run()
        assert choice
        assert peak_mib(choice.chosen.config) < LIMIT_MIB
        found.append(rate(choice.chosen.config) / best_rate())
        assert 1 < runner.most <= MOST
        assert len(set(runner.ran)) == len(runner.ran) <= SPEC.max_trials
        assert not searched.study.get_trials(states=(TrialState.RUNNING, TrialState.WAITING, TrialState.FAIL))
    assert statistics.median(found) > 0.9
    assert sum(runner.died for runner in runners) <= 2


def test_the_most_trials_are_kept_to() -> None:
    runner = Slow()
    dataclasses.replace(side_by_side(runner, most=4), spec=dataclasses.replace(SPEC, max_trials=5)).run()
    assert len(runner.ran) <= 5


def test_a_stop_of_one_is_a_stop_of_all_and_the_same_study_goes_on(tmp_path: Path) -> None:
    study = open_study(open_storage("", tmp_path), "s")
    first = Slow(endings={BASE.batch_size: lambda: RunInterrupted("asked to stop")})
    with pytest.raises(RunInterrupted):
        side_by_side(first, study).run()
    ended = len(first.ran)
    assert ended <= MOST
    again = Slow()
    assert side_by_side(again, open_study(open_storage("", tmp_path), "s")).run()
    assert not set(first.ran) & set(again.ran)


def test_a_study_in_which_everything_crashes_is_given_up_by_all() -> None:
    crashes = Slow(endings={batch: lambda: TrialFailed("it crashed") for batch in range(1, 17)})
    with pytest.raises(RoofscaleError, match="trials failed, the search was given up"):
        side_by_side(crashes).run()
    assert crashes.ran == []
