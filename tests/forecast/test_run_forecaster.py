"""Forecasts of a run: logged before it begins, improved by each run, and never the reason that a run stops."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.phases.test_phase_runner import Silent

from roofscale.config import RunConfig
from roofscale.errors import ConfigError
from roofscale.forecast import history
from roofscale.forecast import run_forecaster as commands
from roofscale.forecast.host_memory import MemoryProfile, PeakObservation, shared_mib
from roofscale.forecast.probes import instance_profile, local_profile
from roofscale.forecast.run_forecaster import RunForecaster
from roofscale.forecast.run_time import training_samples, validated_samples
from roofscale.measurement import METRICS, Measurement, Outcome
from roofscale.phases.attempt import Attempts
from roofscale.phases.phase_file import load_phase
from roofscale.phases.phase_runner import PhaseRunner
from roofscale.runners.supervise import Listener
from roofscale.tracking import Tracker
from roofscale.train.malloc import DEFAULT_SETTINGS, training_settings

BASE = RunConfig(encoder="resnet18", image_size=64, max_samples=50, val_samples=10, threads=1, precision="fp32")
PHASE = """
phase: 1
name: tried
max_fallbacks: 0
on_failure: continue
steps:
  - {name: one, set: {max_samples: 50}, criteria: {completes: }}
  - {name: two, set: {max_samples: 100}, criteria: {completes: }}
  - {name: three, set: {max_samples: 200}, criteria: {completes: }}
"""


def measured(config: RunConfig, outcome: Outcome = Outcome.OK) -> Measurement:
    """A run that takes half a second a sample and so many MiB as its kind's line says."""
    samples, count = training_samples(config), validated_samples(config)
    metrics = {
        "memory/peak_mib": 900.0 + 100 * config.batch_size,
        "speed/seconds_per_sample": 0.5,
        "speed/seconds_per_epoch": 0.5 * samples,
        "speed/cached_seconds_per_sample": 0.5,
        "speed/run_seconds": 10 + 0.5 * samples + 0.1 * count + 3 * 0.5 * config.batch_size,
        "speed/setup_seconds": 5 + 0.1 * count / 2,
        "speed/seconds_per_validated": 0.1,
        "train/validated_samples": count,
        "train/samples": samples,
        "train/steps": samples / config.batch_size,
    }
    facts = {"device": "cpu", "precision": "fp32", "threads": "1", "malloc": training_settings()}
    return Measurement(outcome, "as told", config.fingerprint, metrics=metrics, facts=facts)


@pytest.fixture
def nothing_on_record(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An empty server, and how often it was asked."""
    asked: list[int] = []
    monkeypatch.setattr(history, "recorded_runs", lambda: asked.append(1) or [])
    monkeypatch.setattr(commands, "peak_observations", list)
    return asked


def test_a_forecast_is_in_the_run_before_it_begins_and_learns_from_those_before(
    tmp_path: Path, tracking_store: None, nothing_on_record: list[int]
) -> None:
    tracker, forecaster = Tracker("tried"), RunForecaster(tmp_path / "runs", print)
    seen: list[dict[str, float]] = []

    class Audience(Silent):
        def judged(self, result, run) -> None:
            forecaster.observe(result.config, result.measurement, result.run_id)

    def make_runner(folder: Path, listener: Listener) -> Callable[[RunConfig], Measurement]:
        def run(config: RunConfig) -> Measurement:
            runs = tracker.client.search_runs([tracker.experiment_id], "attributes.status = 'RUNNING'")
            newest = next(run for run in runs if run.data.params.get("max_samples") == str(config.max_samples))
            seen.append({name: value for name, value in newest.data.metrics.items() if name.startswith("forecast/")})
            found = measured(config)
            found.save(folder / "measurement.json")
            return found

        return run

    file = tmp_path / "phase.yaml"
    file.write_text(PHASE)
    phase = load_phase(file)
    attempts = Attempts(tmp_path / "runs", "tried")
    plan = phase.resolve(BASE)
    climbed = PhaseRunner(phase, plan, tracker, attempts, make_runner, Audience(), {}, forecast=forecaster).run_phase()
    assert seen[0] == {}, "nothing was known of the first"
    for result, known in zip(climbed.results[1:], seen[1:], strict=True):
        actual = result.measurement.metrics
        assert known["forecast/run_seconds"] == pytest.approx(actual["speed/run_seconds"])
        assert known["forecast/seconds_per_epoch"] == pytest.approx(actual["speed/seconds_per_epoch"])
        assert known["forecast/run_seconds_low"] < known["forecast/run_seconds"] < known["forecast/run_seconds_high"]
    assert set(seen[1]) <= set(METRICS)
    assert len(nothing_on_record) == 1, "the server is read once a climb"


def points(config: RunConfig) -> list[PeakObservation]:
    """Enough of them for a forecast of host memory."""
    kind = local_profile(config, commands.compute.get(config.compute))
    sizes = [(batch, workers) for batch in (1, 2, 4) for workers in (0, 2)]
    found = []
    for batch, workers in sizes:
        one = config.with_overrides({"batch_size": batch, "num_workers": workers})
        found.append(
            PeakObservation(one, kind, 900 + 100 * batch + 40 * workers + shared_mib(one), f"{batch}/{workers}")
        )
    return found


def test_host_memory_is_forecast_where_enough_was_measured(tmp_path: Path, nothing_on_record, monkeypatch) -> None:
    monkeypatch.setattr(commands, "peak_observations", lambda: points(BASE))
    found = RunForecaster(tmp_path, print)(BASE.with_overrides({"batch_size": 4, "num_workers": 2}))
    assert found["forecast/host_peak_mib_low"] < 1380 < found["forecast/host_peak_mib_high"]
    assert "forecast/run_seconds" not in found
    few = RunForecaster(tmp_path, print)
    monkeypatch.setattr(commands, "peak_observations", lambda: points(BASE)[:1])
    assert few(BASE) == {}
    for point in points(BASE)[1:]:
        came_to = measured(point.config)
        few.observe(point.config, came_to, "r")
    assert "forecast/host_peak_mib" in few(BASE), "learnt"


def test_a_forecast_that_breaks_is_said_and_left_out(tmp_path: Path, nothing_on_record, monkeypatch, capsys) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("at home")

    monkeypatch.setattr(commands, "peak_observations", broken)
    forecaster = RunForecaster(tmp_path, print)
    forecaster.observe(BASE, measured(BASE), "before anything was read, so it is on the server")
    assert forecaster(BASE) == {}
    assert "No forecast of its host memory: ZeroDivisionError: at home" in capsys.readouterr().out
    monkeypatch.setattr(commands, "peak_observations", list)
    assert forecaster(BASE) == {}
    told_nothing = dataclasses.replace(measured(BASE), facts={})
    forecaster.observe(BASE, told_nothing, "of an older kind")
    assert "No record of that run's memory and time: KeyError" in capsys.readouterr().out


def test_what_died_teaches_nothing_and_what_stops_by_itself_is_not_foreseen(tmp_path, nothing_on_record) -> None:
    forecaster = RunForecaster(tmp_path, print)
    forecaster(BASE)
    forecaster.observe(BASE, measured(BASE, Outcome.HOST_OOM), "died")
    assert forecaster(BASE) == {}
    forecaster.observe(BASE, measured(BASE), "went well")
    assert "forecast/run_seconds" in forecaster(BASE)
    assert forecaster(BASE.with_overrides({"stop_precision": 0.05})) == {}


def test_gpu_memory_is_forecast_for_a_compute_with_one(tmp_path: Path, nothing_on_record) -> None:
    found = RunForecaster(tmp_path, print)(BASE.with_overrides({"compute": "ml.g5.xlarge", "precision": "auto"}))
    assert {"forecast/gpu_peak_mib", "forecast/gpu_peak_mib_low", "forecast/gpu_peak_mib_high"} == set(found), (
        "and no time: this machine has no GPU to make the run on"
    )


def test_a_forecast_from_a_long_record_takes_no_time(tmp_path: Path, nothing_on_record) -> None:
    """Thousands of runs on record: CPU seconds of one forecast once they are read, imports left out."""
    forecaster = RunForecaster(tmp_path, print)
    forecaster(BASE)
    for number in range(3000):
        config = BASE.with_overrides({"batch_size": 1 + number % 16, "seed": number})
        forecaster.observe(config, measured(config), str(number))
    forecaster(BASE)
    before = time.process_time()
    assert forecaster(BASE.with_overrides({"batch_size": 3}))
    assert time.process_time() - before < 3.0  # 1.1 was seen on a slow and busy machine


def test_kinds_of_learnt_points_are_those_of_recorded_ones() -> None:
    here = local_profile(BASE, commands.compute.get("local"))
    assert here == MemoryProfile.of(BASE, "fp32", 1, here.malloc)


def test_the_kind_of_a_job_is_that_of_its_instance_whatever_this_machine_is() -> None:
    size = commands.compute.get("ml.m5.xlarge")
    there = instance_profile(BASE.with_overrides({"precision": "auto", "threads": 0}), size)
    assert (there.precision, there.threads, there.malloc) == ("fp32", 4, DEFAULT_SETTINGS), "a Skylake's"
    in_bf16 = instance_profile(BASE.with_overrides({"precision": "bf16"}), size)
    assert in_bf16 == MemoryProfile.of(BASE, "bf16", 1, DEFAULT_SETTINGS)
    with pytest.raises(ConfigError, match=r"ml\.g5\.xlarge: trains on its GPU"):
        instance_profile(BASE, commands.compute.get("ml.g5.xlarge"))
