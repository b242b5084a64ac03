"""Ways of searching, replayed on small invented grids: nothing is trained here."""

import dataclasses
import math

import numpy as np
import pytest
from benchmarks.search_comparison.grid import Grid, GridRun
from benchmarks.search_comparison.replay import METHODS, TRIALS, Contest, Played, Replay, ended, play, summaries

from roofscale.config import RunConfig
from roofscale.errors import ConfigError
from roofscale.forecast.host_memory import MemoryProfile, shared_mib
from roofscale.measurement import Outcome
from roofscale.memory_margin import MEMORY_MARGIN
from roofscale.phases.search.choice import size_key
from roofscale.phases.search.space import SearchSpec
from roofscale.phases.search.trial_runner import shorten_for_trial

BASE = RunConfig(encoder="resnet18", image_size=192, max_samples=96)
SPEC = SearchSpec({"batch_size": (1, 8), "num_workers": (0, 2)})


def pace(config):
    """Seconds a sample of an invented machine: two workers load fast enough, and a larger batch computes faster."""
    compute = 0.02 + 0.06 / config.batch_size
    return compute + 0.03 if not config.num_workers else max(compute, 0.05 / config.num_workers)


def peak(config):
    return 500 + 60 * config.batch_size + 50 * config.num_workers + shared_mib(config)


def run_of(config, noise, steps=12, per_epoch=12):
    count = [(i // per_epoch, config.batch_size, pace(config) * config.batch_size * noise[i % 3]) for i in range(steps)]
    return GridRun(size_key(config), peak(config) * noise[0], 0.0, math.nan, 0.01, tuple(count))


@pytest.fixture(scope="module")
def grid():
    configs = list(SPEC.configs(BASE))
    return Grid([run_of(c, noise) for c in configs for noise in ((1.0, 1.01, 0.99), (1.01, 1.02, 1.0))])


@pytest.fixture(scope="module")
def contest(grid):
    return Contest(grid, SPEC, BASE, MemoryProfile.of(BASE, "bf16", 2), grid.memory_that_leaves_out(1 / 3))


def test_a_grid_run_leaves_out_each_pass_first_step():
    run = run_of(BASE.with_overrides({"batch_size": 4}), (1.0, 1.0, 1.0), steps=8, per_epoch=4)
    assert len(run.timed) == 6
    assert run.samples == 32
    assert math.exp(run.pace.value) == pytest.approx(pace(BASE.with_overrides({"batch_size": 4})))


def test_the_spread_is_that_within_configs(grid):
    rng = np.random.default_rng(0)
    place = next(iter(grid.runs))
    drawn = [grid.draw(place, rng) for _ in range(400)]
    assert np.std([run.pace.value for run in drawn]) == pytest.approx(grid.pace_spread, rel=0.1)
    assert np.mean([run.pace.value for run in drawn]) == pytest.approx(-math.log(grid.rate(place)), abs=0.002)
    assert grid.peak_spread == pytest.approx(math.log(1.01) / math.sqrt(2), rel=1e-6)


def test_the_best_is_the_fastest_that_fits(grid, contest):
    able = [c for c in SPEC.configs(BASE) if peak(c) * 1.005 <= MEMORY_MARGIN * contest.memory_mib]
    assert grid.best(contest.memory_mib) == size_key(min(able, key=pace))


def test_a_third_runs_out(grid, contest):
    assert len(grid.over(contest.memory_mib)) == len(grid.runs) // 3


def test_nothing_fits_is_said(grid):
    with pytest.raises(ConfigError, match="Give the compute more"):
        grid.best(300)


def test_without_a_repeated_run_the_spread_is_not_known():
    with pytest.raises(ConfigError, match="was run twice"):
        Grid([run_of(BASE, (1.0, 1.0, 1.0))])


def test_a_run_without_a_pace_is_refused():
    with pytest.raises(ConfigError, match="too short"):
        Grid([run_of(BASE, (1.0, 1.0, 1.0)), run_of(BASE, (1.0, 1.0, 1.0), steps=2)])


def test_the_spread_comes_from_those_that_were_repeated(grid):
    once = BASE.with_overrides({"batch_size": 9})
    runs = [run for same in grid.runs.values() for run in same]
    assert Grid([*runs, run_of(once, (1.3, 1.3, 1.3))]).pace_spread == pytest.approx(grid.pace_spread)


def test_a_played_trial_says_no_more_than_a_real_one(contest):
    replay = Replay(contest, 0)
    large = SPEC.largest(BASE)
    tried = replay.run(0, large, shorten_for_trial(large, SPEC))
    assert (tried.outcome, tried.share, tried.pace) == (Outcome.HOST_OOM, 1.0, None)
    assert math.isnan(tried.peak_mib)
    assert (replay.trials, replay.ran_out, replay.samples) == (1, 1, large.batch_size)


def test_a_played_trial_ends_where_it_is_certainly_slower(contest):
    config = BASE.with_overrides({"batch_size": 1, "num_workers": 0})
    run = dataclasses.replace(contest.grid.runs[size_key(config)][0], steps=_jagged(config))
    whole, cut = (
        ended(run, shorten_for_trial(config, SPEC)),
        ended(run, shorten_for_trial(config, SPEC, best_rate=1000.0)),
    )
    assert cut.samples < whole.samples == run.samples


def _jagged(config):
    """Steps too uneven for their pace to be known to 3 %."""
    return tuple((0, config.batch_size, pace(config) * (0.7 if i % 2 else 1.3)) for i in range(12))


@pytest.fixture(scope="module")
def played(contest):
    return [play(method, contest, seed) for method in METHODS for seed in range(2)]


def test_every_method_plays(played, contest):
    grid_trials = {one.trials for one in played if one.method == "grid"}
    assert grid_trials == {len(contest.grid.runs)}
    assert {one.trials for one in played if one.method in ("tpe", "random")} == {TRIALS}
    assert all(one.chosen in contest.grid.runs for one in played)


def test_ours_runs_into_the_limit_less_often_than_tpe(played):
    out = {method: [one.ran_out for one in played if one.method == method] for method in METHODS}
    assert max(out["ours"]) <= 1 < min(out["tpe"])
    assert len({one.ran_out for one in played if one.method == "grid"}) == 1


def test_ours_chooses_well_for_few_samples(played):
    ours = summaries(played)[-1]
    assert ours.method == "ours"
    assert ours.ratio[1] >= 0.9  # the knee gives up 5 % at most, and the noise is small
    assert ours.samples[1] < 0.5


def test_the_same_seed_plays_the_same(contest, played):
    assert play("ours", contest, 0) == next(one for one in played if (one.method, one.seed) == ("ours", 0))


def test_a_summary_is_judged_by_its_targets():
    whole = Played("grid", 0, (2, 0, 2), 1.0, 0.7, 60, 20, 1000)
    others = [dataclasses.replace(whole, method=method) for method in ("random", "tpe")]
    good = Played("ours", 0, (2, 0, 2), 0.98, 0.7, 12, 1, 200)
    for change, met in (({}, True), ({"ratio": 0.96}, False), ({"ran_out": 2}, False), ({"samples": 300}, False)):
        found = summaries([whole, *others, dataclasses.replace(good, **change)])[-1]
        assert found.met is met, change
