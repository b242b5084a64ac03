"""Which trials are known beforehand to leave their memory, and how likely the others are to stay within it."""

import dataclasses

import pytest
from tests.phases.synthetic_machine import BASE, KIND, LIMIT_MIB, SPEC, peak_mib, tensors_mib

from roofscale.config import RunConfig
from roofscale.forecast.host_memory import MemoryProfile, PeakObservation
from roofscale.measurement import Outcome
from roofscale.memory_margin import MEMORY_MARGIN
from roofscale.phases.search.memory_guard import MemoryBudget, MemoryGuard
from roofscale.phases.search.trial_result import SKIPPED, TrialResult
from roofscale.stats.intervals import Estimate

SIZES = ((1, 0), (1, 2), (2, 0), (2, 2), (4, 0), (4, 2))


def at(batch: int, workers: int, **more: int) -> RunConfig:
    return dataclasses.replace(BASE, batch_size=batch, num_workers=workers, **more)


@pytest.fixture(autouse=True)
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryProfile, "tensors_mib", tensors_mib, raising=False)


@pytest.fixture
def points() -> tuple[PeakObservation, ...]:
    return tuple(PeakObservation(at(*size), KIND, peak_mib(at(*size)), "probe") for size in SIZES)


def test_what_the_forecast_puts_over_the_limit_is_skipped_with_its_figures(points: tuple[PeakObservation, ...]) -> None:
    sight = MemoryGuard(MemoryBudget(LIMIT_MIB, None, KIND, points), ())
    skipped = sight.known_too_large(at(10, 2))
    assert skipped
    assert skipped.outcome == SKIPPED
    assert skipped.share == pytest.approx(peak_mib(at(10, 2)) / LIMIT_MIB, rel=0.02)
    assert f"{peak_mib(at(10, 2)):,.0f}"[:2] in skipped.why
    assert f"80% of {LIMIT_MIB:,.0f}" in skipped.why
    assert sight.known_too_large(at(2, 2)) is None


def test_the_probability_falls_as_the_peak_nears_the_limit(points: tuple[PeakObservation, ...]) -> None:
    sight = MemoryGuard(MemoryBudget(LIMIT_MIB, None, KIND, points), ())
    likely = [sight.probability_within(at(batch, 1)) for batch in range(1, 10)]
    assert likely == sorted(likely, reverse=True)
    assert (likely[0] > 0.99, likely[-1] < 0.01) == (True, True)
    edge = next(batch for batch in range(1, 10) if peak_mib(at(batch, 1)) > MEMORY_MARGIN * LIMIT_MIB)
    assert likely[edge - 2] > 0.5 > likely[edge - 1]


def test_without_enough_points_nothing_is_forecast(points: tuple[PeakObservation, ...]) -> None:
    sight = MemoryGuard(MemoryBudget(LIMIT_MIB, None, KIND, points[:1]), ())
    assert not sight.can_forecast(SPEC.largest(BASE))
    assert sight.known_too_large(at(16, 3)) is None
    assert sight.probability_within(at(16, 3)) == 1.0


def test_the_trials_own_peaks_count_and_those_told_from_earlier_runs_not_twice(
    points: tuple[PeakObservation, ...],
) -> None:
    ran = [
        TrialResult(p.config, Outcome.OK, 0.5, Estimate(0.0, 0.01, 9.0), p.peak_mib, samples=8, run_id="trial")
        for p in points
    ]
    told = [dataclasses.replace(one, samples=0) for one in ran]
    assert MemoryGuard(MemoryBudget(LIMIT_MIB, None, KIND), ran).can_forecast(at(8, 2))
    assert not MemoryGuard(MemoryBudget(LIMIT_MIB, None, KIND), told).can_forecast(at(8, 2))


@pytest.mark.parametrize(
    "over", [TrialResult(at(6, 1), Outcome.HOST_OOM, 1.0), TrialResult(at(6, 1), Outcome.OK, 0.85)]
)
def test_what_is_as_large_as_one_that_left_its_memory_is_skipped(over: TrialResult) -> None:
    sight = MemoryGuard(MemoryBudget(LIMIT_MIB), [over])
    assert sight.known_too_large(at(6, 2))
    assert sight.known_too_large(at(7, 1))
    assert sight.known_too_large(at(7, 0)) is None  # fewer workers may make room
    assert sight.known_too_large(at(5, 3)) is None


def test_a_full_dev_shm_is_forecast(points: tuple[PeakObservation, ...]) -> None:
    sight = MemoryGuard(MemoryBudget(1e6, 0.5, KIND, points), ())
    skipped = sight.known_too_large(at(4, 2, prefetch_factor=2))
    assert skipped
    assert "shared memory" in skipped.why
    assert sight.known_too_large(at(4, 0)) is None


@pytest.mark.slow
def test_a_gpus_memory_is_forecast_where_it_trains_on_one() -> None:
    config = RunConfig(encoder="resnet18", image_size=512, compute="ml.g5.xlarge")
    sight = MemoryGuard(MemoryBudget(16384), ())
    small, large = (dataclasses.replace(config, batch_size=size) for size in (2, 256))
    assert sight.known_too_large(small) is None
    assert sight.probability_within(small) > 0.99
    skipped = sight.known_too_large(large)
    assert skipped
    assert "MiB of GPU memory" in skipped.why
    assert skipped.over_margin > 0
    assert sight.probability_within(large) < 0.01
