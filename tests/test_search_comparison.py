"""The command around the comparison of searches, with an invented machine in place of the runner."""

import json
import math
from pathlib import Path

import pytest
from benchmarks.search_comparison import comparison, runs
from benchmarks.search_comparison.grid import Grid
from benchmarks.search_comparison.runs import FINAL_ROUNDS, NEAR_BEST, RIVALS, TRAININGS, Bench

from roofscale import compute
from roofscale.config import RunConfig
from roofscale.measurement import Measurement, Outcome, StepRecord
from roofscale.phases.search.space import SearchSpec
from roofscale.runners import RunInterrupted
from roofscale.runners.local import MEASUREMENT, TRAIN
from roofscale.stats.intervals import MAX_OTHER_LOAD

BASE = RunConfig(encoder="resnet18", image_size=64, max_samples=8, val_samples=2, num_workers=0, threads=1)
SPEC = SearchSpec({"batch_size": (1, 4), "num_workers": (0, 1)}, max_trials=6)
STEPS = 8


class Machine:
    """Measures what it is asked to, without running it; ``others`` is how busy it is, run by run."""

    def __init__(self) -> None:
        self.asked: list[tuple[Path, RunConfig]] = []
        self.others: list[float] = []
        self.outcome = Outcome.OK

    def __call__(self, folder, command=TRAIN):
        self.folder, self.command = folder, command
        return self.run

    def run(self, config):
        self.asked.append((self.folder, config))
        peak = 300 + 100 * config.batch_size + 80 * config.num_workers + len(self.asked) % 2
        limit = compute.get(config.compute).memory_gib * 1024
        outcome = self.outcome if self.outcome is not Outcome.OK or peak <= limit else Outcome.HOST_OOM
        others = self.others.pop(0) if self.others else 0.01
        metrics = {
            "memory/peak_mib": peak,
            "memory/share": peak / limit,
            "cpu/others": others,
            "speed/samples_per_s": 1 / _pace(config),
        }
        if self.command is not TRAIN:
            metrics["search/batch_size"] = 2
        steps = _steps(config, len(self.asked)) if outcome is Outcome.OK else ()
        found = Measurement(outcome, "", config.fingerprint, steps=steps, metrics=metrics)
        self.folder.mkdir(parents=True)
        found.save(self.folder / MEASUREMENT)
        return found


def _pace(config):
    return (0.02 + 0.05 / config.batch_size) / (1 + config.num_workers)


def _steps(config, number):
    seconds = _pace(config) * config.batch_size
    return tuple(
        StepRecord(i, 0, "rid", i * config.batch_size, 1.0, 1.0, 1e-3, seconds * (1 + (i + number) % 3 / 100), 0.0, i)
        for i in range(1, STEPS + 1)
    )


@pytest.fixture
def machine(monkeypatch):
    made = Machine()
    monkeypatch.setattr(runs, "LocalRunner", made)
    monkeypatch.setattr(comparison, "resolve_data", lambda configs, cache, say: configs)
    monkeypatch.setattr(runs, "_RIVALS_FILE", Path("nowhere.py"))
    return made


def compared(folder):
    code = comparison.compare_searches(SPEC, BASE.with_overrides({"data_root": "/some/where"}), folder, folder, seeds=2)
    return code, json.loads((folder / "comparison.json").read_text(encoding="utf-8"))


def test_all_of_it_is_left_in_one_file(machine, tmp_path, capsys):
    code, content = compared(tmp_path)
    said = capsys.readouterr().out
    assert "replayed on the measured grid: no trial of these was run anew" in said
    assert content["grid"]["configs"] == 8
    assert len(content["runs"]) >= 8 + 3 + FINAL_ROUNDS  # a third again, and the best
    assert content["confirmed"]["trainings"]["ok"] == TRAININGS
    assert {one["outcome"] for one in content["confirmed"]["edge"]} == {"ok", "host_oom"}
    assert all(one["expected"] == one["outcome"] for one in content["confirmed"]["edge"])
    assert "/some/where" not in json.dumps(content)
    assert code == (0 if content["summaries"][-1]["met"] else 1)


def test_without_a_named_limit_a_third_is_left_out(machine, tmp_path):
    _, content = compared(tmp_path)
    assert content["base"]["compute"].startswith("local:")
    assert content["grid"]["over_limit"] in (2, 3)  # of 8


def test_nothing_is_run_twice(machine, tmp_path):
    compared(tmp_path)
    count = len(machine.asked)
    compared(tmp_path)
    assert len(machine.asked) == count


def test_rivals_that_are_not_here_are_said(machine, tmp_path, capsys):
    _, content = compared(tmp_path)
    assert content["rivals"] == []
    assert capsys.readouterr().out.count("left out: ") == len(RIVALS)


def test_rivals_are_judged_by_the_grid(machine, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "_RIVALS_FILE", Path(__file__))
    monkeypatch.setattr(runs.PathFinder, "find_spec", lambda *_: True)
    _, content = compared(tmp_path)
    assert [one["found"] for one in content["rivals"]] == [2] * len(RIVALS)
    best = _pace(BASE.with_overrides(dict(zip(comparison.KNOBS, content["grid"]["best"], strict=True))))
    (ratio,) = {one["ratio"] for one in content["rivals"]}
    assert ratio == pytest.approx(best / _pace(BASE.with_overrides({"batch_size": 2})), rel=0.02)


def test_a_trial_on_a_busy_machine_is_repeated(machine, tmp_path):
    machine.others = [0.5, MAX_OTHER_LOAD / 2]
    spec = SearchSpec({"batch_size": (1, 1)})
    runs = list(Bench(tmp_path, spec).grid_runs(BASE))
    assert len(machine.asked) == 3  # twice the first, once its repetition
    assert runs[0].others == MAX_OTHER_LOAD / 2


def test_what_may_be_the_best_is_measured_again_by_turns(machine, tmp_path):
    bench = Bench(tmp_path, SearchSpec({"batch_size": (2, 8), "num_workers": (1, 1)}))
    grid = Grid(bench.grid_runs(BASE))
    before, memory = len(machine.asked), 10_000.0
    runs = list(bench.finalist_runs(grid, memory, BASE))
    near = [place for place in grid.runs if grid.rate(place) >= NEAR_BEST * grid.rate(grid.best(memory))]
    assert 1 < len(near) < len(grid.runs)
    assert [run.place for run in runs] == [*reversed(near), *near, *reversed(near)]
    assert len(machine.asked) - before == FINAL_ROUNDS * len(near)


def test_where_it_stays_busy_the_calmest_counts(machine, tmp_path):
    machine.others = [0.5, 0.3, 0.4]
    runs = list(Bench(tmp_path, SearchSpec({"batch_size": (1, 1)})).grid_runs(BASE))
    assert runs[0].others == 0.3


def test_an_interrupted_run_is_not_kept(machine, tmp_path):
    machine.outcome = Outcome.INTERRUPTED
    bench = Bench(tmp_path, SPEC)
    with pytest.raises(RunInterrupted):
        list(bench.grid_runs(BASE))
    assert not list(tmp_path.rglob(MEASUREMENT))
    machine.outcome = Outcome.OK
    assert all(math.isfinite(run.peak_mib) for run in bench.grid_runs(BASE))
