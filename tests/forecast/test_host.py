"""The forecast of host memory: exact on exact points, honest on noisy ones, silent beyond what was measured."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from roofscale.config import RunConfig
from roofscale.data.sample import CHANNELS, Batch
from roofscale.errors import ConfigError
from roofscale.forecast.host_memory import (
    MIN_SPREAD,
    SCALE_SPREAD,
    MemoryProfile,
    PeakObservation,
    fit_host_model,
    shared_mib,
)
from roofscale.forecast.probes import initial_probes
from roofscale.memory_margin import MEMORY_MARGIN, MemoryFit

SIZES = tuple(itertools.product((1, 2, 4), (0, 2)))


@pytest.fixture(autouse=True, scope="module")
def tensors() -> Iterator[None]:
    """Stands in for the trace; tests/forecast/test_tensors.py has the real one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryProfile, "tensors_mib", lambda self, batch: 85 + 446 * batch)
        yield


def config(batch: int = 2, workers: int = 0, **knobs) -> RunConfig:
    return RunConfig().with_overrides({"batch_size": batch, "num_workers": workers, "max_samples": 0, **knobs})


def kind(ran: RunConfig = RunConfig()) -> MemoryProfile:  # noqa: B008  # frozen
    return MemoryProfile.of(ran, "fp32", 2)


def point(batch: int, workers: int, mib: float, **knobs) -> PeakObservation:
    ran = config(batch, workers, **knobs)
    return PeakObservation(ran, kind(ran), mib, f"run {batch} {workers}")


def peak(batch: int, workers: int, **knobs) -> float:
    """A formula of the size of U-Net on ResNet-34 at 512 px in fp32."""
    return 885 + 446 * batch + 46 * workers + shared_mib(config(batch, workers, **knobs))


def model(sizes=SIZES, noise=None):
    factors = np.ones(len(sizes)) if noise is None else 1 + noise
    return fit_host_model(kind(), [point(*size, peak(*size) * f) for size, f in zip(sizes, factors, strict=True)])


@pytest.mark.parametrize("prefetch", [1, 2, 5])
def test_shared_memory_is_that_of_the_batches_in_flight(prefetch: int) -> None:
    one = Batch(torch.empty(3, 3, 64, 64, dtype=torch.uint8), torch.empty(3, len(CHANNELS), 64, 64, dtype=torch.uint8),
                torch.ones(3, len(CHANNELS), dtype=torch.bool), [])  # fmt: skip
    size = one.image_NCHW.nbytes + one.target_NKHW.nbytes
    ran = config(3, 4, image_size=64, prefetch_factor=prefetch)
    assert shared_mib(ran) * 2**20 == size * (4 * prefetch + 1)
    assert shared_mib(config(3, 0)) == 0


def test_exact_points_give_their_own_formula_back() -> None:
    parts = model().forecast(config(8, 4), 16384).parts
    assert (parts.base, parts.tensors, parts.workers) == pytest.approx((800, 85 + 446 * 8, 46 * 4))
    assert model().peak(config(8, 4, prefetch_factor=3)).mib == pytest.approx(peak(8, 4, prefetch_factor=3))
    forecast = model().peak(config(8, 4))  # six runs that agree by chance do not make a sure forecast
    assert forecast.high_mib - forecast.mib > 1.6 * MIN_SPREAD * forecast.mib


@pytest.mark.parametrize("scale", [0.9, 1.0, 1.1])
def test_the_scale_is_that_of_the_runs_where_they_tell_and_near_one_where_they_do_not(scale: float) -> None:
    def scaled(*sizes: tuple[int, int]) -> float:
        points = [point(*size, peak(*size) + (scale - 1) * (85 + 446 * size[0])) for size in sizes]
        return float(fit_host_model(kind(), points).coefficients[1])

    assert scaled((4, 0), (4, 0), (4, 0)) == pytest.approx(1, abs=1e-9)
    few, many = (abs(scaled(*((b, 0) for b in sizes)) - scale) for sizes in ((1, 2, 4), (1, 2, 4, 8, 16, 16)))
    assert many <= few <= abs(scale - 1) + 1e-9
    assert many < SCALE_SPREAD / 2


def test_a_scale_far_from_one_widens_the_interval() -> None:
    """Then runs and trace contradict each other, and neither is to be relied upon."""
    strange = [point(*size, peak(*size) + 0.4 * 446 * size[0]) for size in SIZES]
    assert fit_host_model(kind(), strange).spread > model().spread + MIN_SPREAD / 2


@pytest.mark.parametrize(("noise", "least", "most"), [(0.05, 0.86, 0.94), (MIN_SPREAD / 4, 0.97, 1.0)])
def test_the_interval_holds_a_new_run_as_often_as_it_says(noise: float, least: float, most: float) -> None:
    random = np.random.default_rng(4)
    asked, truth = config(12, 3), peak(12, 3)
    held = 0
    for _ in range(500):
        forecast = model(noise=noise * random.normal(size=len(SIZES))).peak(asked)
        held += forecast.low_mib <= truth * (1 + noise * random.normal()) <= forecast.high_mib
    assert least <= held / 500 <= most


@pytest.mark.parametrize(
    ("points", "words"),
    [([], "0 measured runs.*at least 3"), ([(1, 0), (2, 0)], "2 measured runs.*at least 3"),
     ([(1, 0), (2, 0), (4, 2)], "3 measured runs.*at least 4")],
)  # fmt: skip
def test_too_little_is_refused_with_a_remedy(points, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s){words}.*--probe"):
        model(points)


@pytest.mark.parametrize("asked", [config(17), config(2, 5)])
def test_beyond_the_measured_range_it_refuses(asked: RunConfig) -> None:
    with pytest.raises(ConfigError, match="--probe"):
        model().forecast(asked, 1e9)
    model().forecast(config(16, 4), 1e9)


def test_another_count_of_workers_needs_two_that_were_measured() -> None:
    only_two = model([(1, 2), (2, 2), (4, 2), (8, 2)])
    assert only_two.forecast(config(8, 2), 16384).peak.mib == pytest.approx(peak(8, 2))
    with pytest.raises(ConfigError, match="two different counts"):
        only_two.forecast(config(8, 0), 16384)


def test_where_batch_and_workers_only_change_together_the_trace_tells_them_apart() -> None:
    together = model([(1, 1), (2, 2), (4, 4)] * 2)
    assert together.peak(config(4, 0)).mib == pytest.approx(peak(4, 0))
    assert together.leverage(config(4, 0)) > 1.5 * model().leverage(config(4, 0))


def test_points_of_another_kind_or_with_no_full_batch_do_not_count() -> None:
    sound = [point(*size, peak(*size)) for size in SIZES]
    other_malloc = PeakObservation(config(4), MemoryProfile.of(config(4), "fp32", 2, "MALLOC_ARENA_MAX=2"), 99, "")
    strange = [point(4, 0, 99, encoder="resnet18"), point(8, 0, 99, max_samples=7), point(8, 0, float("nan")),
               other_malloc]  # fmt: skip
    assert fit_host_model(kind(), [*sound, *strange]).points == tuple(sound)


def test_forked_workers_keep_the_weights_and_in_a_second_pass_all_of_the_state() -> None:
    def copied(ran: RunConfig, mib: float) -> PeakObservation:
        extra = mib if ran.num_workers else 0
        return PeakObservation(
            ran, kind(), peak(ran.batch_size, ran.num_workers) + extra, "", 400.0 if extra else float("nan")
        )

    points = [copied(config(*size), 100.0) for size in SIZES]
    found = fit_host_model(kind(), points)
    assert found.parts(config(4, 4)).copied == 100
    assert found.peak(config(4, 4)).mib == pytest.approx(peak(4, 4) + 100)
    for knobs in ({"epochs": 2}, {"datasets": "rid,airs"}):
        assert found.peak(config(4, 4, **knobs)).mib == pytest.approx(peak(4, 4) + 400)
        assert found.peak(config(4, 0, **knobs)).mib == pytest.approx(peak(4, 0))
    assert found.peak(config(4, 4, datasets="rid,airs", schedule="mixed")).mib == pytest.approx(peak(4, 4) + 100)
    # A long run among the points says the same of a short one.
    longer = copied(config(8, 2, epochs=2), 400.0)
    assert fit_host_model(kind(), [*points, longer]).peak(config(4, 4)).mib == pytest.approx(peak(4, 4) + 100)


@pytest.mark.parametrize(("gib", "fit"), [(32, MemoryFit.FITS), (2, MemoryFit.TOO_LARGE), (10.4, MemoryFit.UNCERTAIN)])
def test_the_verdict_is_where_the_interval_lies(gib: float, fit: MemoryFit) -> None:
    assert model().forecast(config(16, 2), gib * 1024).fit is fit


def test_another_margin_lets_more_fit() -> None:
    asked = config(16, 2)
    memory = 1.01 * model().peak(asked).high_mib / 0.9
    assert model().forecast(asked, memory, max_share=0.9).fit is MemoryFit.FITS
    assert model().forecast(asked, memory).fit is not MemoryFit.FITS
    assert model().forecast(asked, memory, max_share=0.9).largest_batch == 16
    assert model().forecast(asked, memory).largest_batch < 16


@pytest.mark.parametrize(
    ("times", "fit"),
    [(0.9, MemoryFit.TOO_LARGE), (1.1, MemoryFit.UNCERTAIN), (1.3, MemoryFit.FITS), (None, MemoryFit.FITS)],
)
def test_a_full_dev_shm_is_a_limit_of_its_own(times: float | None, fit: MemoryFit) -> None:
    asked = config(8, 4)
    free = None if times is None else shared_mib(asked) * times
    assert model().forecast(asked, 64 * 1024, free).fit is fit


@pytest.mark.parametrize("asked", [(16, 0), (16, 4), (8, 3), (4, 4), (1, 1)])
def test_no_other_cheap_probe_narrows_the_interval_more(asked: tuple[int, int]) -> None:
    """By brute force: each candidate is added to the points as it is forecast, and all is fitted again."""
    before, target = model(), config(*asked)
    leverage = {}
    for size in itertools.product((1, 2, 4, 8), (0, 2, 4)):
        if size not in SIZES and size[0] <= asked[0]:
            points = [*before.points, point(*size, peak(*size))]
            leverage[size] = fit_host_model(kind(), points).leverage(target)
    best = before.next_probe(target, 16384)
    assert leverage[best.batch_size, best.num_workers] == pytest.approx(min(leverage.values()))
    after = fit_host_model(kind(), [*before.points, point(best.batch_size, best.num_workers, peak(best.batch_size,
                     best.num_workers))]).peak(target)  # fmt: skip
    assert best.reach_mib == pytest.approx(after.high_mib - after.mib)
    assert best.reach_mib < before.peak(target).high_mib - before.peak(target).mib


def test_a_probe_that_would_not_fit_itself_is_not_proposed() -> None:
    best = model().next_probe(config(8, 4), 3000)
    assert model().peak(config(best.batch_size, best.num_workers)).high_mib <= MEMORY_MARGIN * 3000
    assert model().next_probe(config(8, 4), 100) is None


@given(
    memory_mib=st.floats(500, 30_000),
    shm_mib=st.none() | st.floats(1, 500),
    workers=st.integers(0, 4),
    noise=st.lists(st.floats(-0.05, 0.05), min_size=len(SIZES), max_size=len(SIZES)),
)
def test_the_largest_batch_fits_and_the_next_one_does_not(memory_mib, shm_mib, workers, noise) -> None:
    found = model(noise=np.array(noise))

    def fit(size: int) -> MemoryFit:
        return found.forecast(config(size, workers), memory_mib, shm_mib).fit

    forecast = found.forecast(config(1, workers), memory_mib, shm_mib)
    assert 0 <= forecast.largest_batch <= forecast.furthest_batch == 16
    assert forecast.largest_batch == 0 or fit(forecast.largest_batch) is MemoryFit.FITS
    assert forecast.largest_batch == 16 or fit(forecast.largest_batch + 1) is not MemoryFit.FITS


@given(size=st.integers(1, 300), workers=st.integers(0, 40))
def test_the_first_probes_suffice_for_what_is_asked(size: int, workers: int) -> None:
    asked = config(size, workers)
    probes = initial_probes(asked)
    points = [PeakObservation(one, kind(), peak(one.batch_size, one.num_workers), "") for one in probes]
    assert fit_host_model(kind(), points).forecast(asked, 1e9).peak.mib == pytest.approx(peak(size, workers))
    assert all(one.batch_size <= max(4, size) and one.max_samples == 3 * one.batch_size for one in probes)


def test_a_run_whose_threads_follow_the_free_cores_is_of_the_kind_of_all_of_them() -> None:
    facts = {"precision": "fp32", "threads": "1", "malloc": ""}
    assert MemoryProfile.of_run(RunConfig(threads=1), facts).threads == 1
    assert MemoryProfile.of_run(RunConfig(), {**facts, "cores_free": "1.0 of 4"}).threads == 4
