"""A step that searches: its trials in MLflow, the whole run that confirms them, and the way back after a stop."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.phases.synthetic_machine import BASE, KIND, LIMIT_MIB, peak_mib, rate, tensors_mib

from roofscale.config import RunConfig
from roofscale.errors import ConfigError
from roofscale.forecast.host_memory import MemoryProfile
from roofscale.measurement import Measurement, Outcome, StepRecord
from roofscale.phases.attempt import Attempts
from roofscale.phases.judge import Verdict
from roofscale.phases.phase_file import Step, load_phase
from roofscale.phases.phase_runner import PhaseResult, PhaseRunner, StepResult
from roofscale.phases.search.memory_guard import MemoryBudget
from roofscale.phases.search.step_search import CHOICE, SearchResult, StepSearch, open_storage
from roofscale.phases.search.trial_result import SKIPPED, TrialResult
from roofscale.report.calibration import forecast_outcomes
from roofscale.runners.supervise import Listener, SilentListener
from roofscale.tracking import TrackedRun, Tracker
from roofscale.tracking.history import trials_of

PHASE = """
phase: 3
name: tried
max_fallbacks: 0
steps:
  - name: searched
    search: {space: {batch_size: [1, 16], num_workers: [0, 3], prefetch_factor: [1, 2]}}
    criteria: {completes: , memory_margin: {max_share: 0.8}}
"""


@dataclass
class Machine:
    """Makes runners that measure what the invented machine would; may be told to be interrupted at a batch size."""

    stops_at: int = 0
    ran: list[RunConfig] = field(default_factory=list)

    def __call__(self, folder: Path, listener: Listener) -> Callable[[RunConfig], Measurement]:
        def run(config: RunConfig) -> Measurement:
            folder.mkdir(exist_ok=True)
            self.ran.append(config)
            share = peak_mib(config) / LIMIT_MIB
            outcome = Outcome.HOST_OOM if share > 1 else Outcome.OK
            outcome = Outcome.INTERRUPTED if config.batch_size == self.stops_at else outcome
            metrics = {"memory/share": share, "memory/peak_mib": peak_mib(config), "speed/run_seconds": 1.0}
            steps = _steps(config) if outcome is Outcome.OK else ()
            measurement = Measurement(outcome, "as told", config.fingerprint, steps, metrics=metrics)
            measurement.save(folder / "measurement.json")
            return measurement

        return run


def _steps(config: RunConfig) -> tuple[StepRecord, ...]:
    size = config.batch_size
    return tuple(StepRecord(i, 0, "rid", i * size, 1.0, 1.0, 1e-3, size / rate(config), 0.0, 0.0) for i in range(1, 9))


@dataclass
class SearchObserver:
    found: list[SearchResult] = field(default_factory=list)

    def begin(self, step: Step, config: RunConfig, note: str) -> Listener:
        return SilentListener()

    def judged(self, result: StepResult, run: TrackedRun) -> None:
        pass

    def begin_trial(self, name: str, config: RunConfig) -> Listener:
        return SilentListener()

    def end_trial(self, name: str, result: TrialResult) -> None:
        pass

    def announce_study(self, study_name: str) -> None:
        pass

    def end_search(self, found: SearchResult, run: TrackedRun) -> None:
        self.found.append(found)


@pytest.fixture(autouse=True)
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryProfile, "tensors_mib", tensors_mib, raising=False)


@pytest.fixture
def climb(tmp_path: Path, tracking_store: None) -> Callable[..., PhaseResult]:
    tracker = Tracker("tried")

    def climbed(machine: Machine, observer: SearchObserver, text: str = PHASE) -> PhaseResult:
        (tmp_path / "phase.yaml").write_text(text)
        phase = load_phase(tmp_path / "phase.yaml")
        budget = MemoryBudget(LIMIT_MIB, None, KIND)
        conductor = StepSearch(tracker, machine, observer, {}, lambda _: budget, lambda spec, config: [])
        attempts = Attempts(tmp_path / "runs", "tried")
        plan = phase.resolve(BASE)
        return PhaseRunner(phase, plan, tracker, attempts, machine, observer, {}, search=conductor).run_phase()

    return climbed


def test_a_search_chooses_and_a_whole_run_confirms(climb: Callable[..., PhaseResult], tmp_path: Path) -> None:
    machine, observer = Machine(), SearchObserver()
    climbed = climb(machine, observer)
    whole = machine.ran[-1]
    assert whole.stop_precision == 0
    assert all(trial.stop_precision > 0 for trial in machine.ran[:-1])
    (result,) = climbed.results
    assert result.config == whole
    assert climbed.last_good is result
    (found,) = observer.found
    assert found.choice
    assert found.choice.chosen.config == whole
    good = json.loads((tmp_path / "runs/tried/last_good.json").read_text())
    assert good["config"]["batch_size"] == whole.batch_size
    assert result.step.set == {knob: getattr(whole, knob) for knob in ("batch_size", "num_workers", "prefetch_factor")}


def test_the_margin_of_the_phase_file_rules_the_search(climb: Callable[..., PhaseResult]) -> None:
    machine, observer = Machine(), SearchObserver()
    climbed = climb(machine, observer, PHASE.replace("0.8", "0.9"))
    (found,) = observer.found
    assert found.choice
    assert 0.8 < found.choice.chosen.share <= 0.9  # which is the knee of this machine under 90 %
    assert climbed.verdict is Verdict.PASSED
    skipped = [one for one in found.tried if one.outcome == SKIPPED]
    assert skipped
    assert min(peak_mib(one.config) for one in skipped) > 0.9 * LIMIT_MIB
    assert any("over 90% of 960" in one.why for one in skipped)


def test_every_trial_is_a_run_under_the_search_which_is_one_under_the_attempt(
    climb: Callable[..., PhaseResult],
) -> None:
    machine, observer = Machine(), SearchObserver()
    climbed = climb(machine, observer)
    tracker = Tracker("tried")
    end_search, confirmed = tracker.children(climbed.run_id)
    assert confirmed.run_id == climbed.results[0].run_id
    assert "batch_size=" in end_search.tags["choice"]
    trials = tracker.children(end_search.run_id)
    assert len(trials) == len(observer.found[0].tried)
    skipped = [trial for trial in trials if "skipped" in trial.tags]
    assert skipped
    assert all("forecast" in t.tags["skipped"] or "at least as large" in t.tags["skipped"] for t in skipped)
    ran = [trial for trial in trials if "skipped" not in trial.tags]
    assert [int(trial.params["batch_size"]) for trial in ran] == [config.batch_size for config in machine.ran[:-1]]
    assert all(math.isfinite(trial.metrics["memory/peak_mib"]) for trial in ran)
    assert [trial.run_id for trial in trials_of(tracker)] == [trial.run_id for trial in trials]
    assert {trial.status for trial in trials} == {"FINISHED"}
    assert not any("verdict" in trial.tags for trial in trials)  # no judged run: nothing else may take it for one
    assert tracker.read_text(end_search.run_id, CHOICE)


def test_what_is_forecast_of_a_trial_stands_beside_what_it_took(climb: Callable[..., PhaseResult]) -> None:
    climb(Machine(), SearchObserver())
    trials = [trial for trial in trials_of(Tracker("tried")) if "skipped" not in trial.tags]
    foretold = list(forecast_outcomes(trials))
    assert 0 < len(foretold) < len(trials)  # the first ones are what a forecast is made of
    assert all(abs(pair.error) < 0.02 for pair in foretold)  # the invented machine is of the forecast's own form


def test_an_interrupted_search_goes_on_with_the_same_command(climb: Callable[..., PhaseResult]) -> None:
    first = Machine(stops_at=4)
    assert climb(first, SearchObserver()).interrupted
    second = Machine()
    climbed = climb(second, SearchObserver())
    assert not climbed.interrupted
    assert second.ran[0].batch_size == 4
    done = {(c.batch_size, c.num_workers, c.prefetch_factor) for c in first.ran[:-1]}
    again = {(c.batch_size, c.num_workers, c.prefetch_factor) for c in second.ran[:-1]}
    assert not done & again
    (end_search,) = (run for run in Tracker("tried").children(climbed.run_id) if "search" in run.tags)
    ends = {run.status for run in Tracker("tried").children(end_search.run_id)}
    assert ends == {"FINISHED", "KILLED"}


def test_a_storage_that_cannot_be_opened_is_said_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be opened") as caught:
        open_storage("postgresql+psycopg2://somebody:secret@127.0.0.1:1/none", tmp_path)
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match="expected a URL of SQLAlchemy"):
        open_storage("nonsense", tmp_path)


def test_joining_a_study_that_is_not_there_names_those_that_are(tmp_path: Path, tracking_store: None) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    conductor = StepSearch(
        Tracker("tried"), Machine(), SearchObserver(), {}, lambda _: MemoryBudget(1.0), lambda *_: [], url
    )
    with pytest.raises(ConfigError, match="no such study of Roofscale there; there are: none"):
        conductor.join("nobody", tmp_path)
