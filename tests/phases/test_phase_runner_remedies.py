"""Remedies in the phase runner, each with a planted cause in simulated runs, and the last good config after them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.synthetic_measurements import Part, mixed, simulate

from roofscale.config import RunConfig
from roofscale.measurement import Measurement, forecast_metrics
from roofscale.phases.attempt import Attempts
from roofscale.phases.history import latest_result
from roofscale.phases.judge import Verdict
from roofscale.phases.phase_file import load_phase
from roofscale.phases.phase_runner import PhaseRunner
from roofscale.phases.results import Cause, PhaseResult, newest_knee
from roofscale.report.phase_status import batch_words
from roofscale.runners.supervise import Listener, SilentListener
from roofscale.tracking import Tracker, get_run

PHASE = """
phase: 4
name: remedied
on_failure: continue
base: {compute: ml.m5.xlarge}
steps:
  - name: first
    set: {max_samples: 50}
    criteria: {completes: , CRITERION: }
  - name: second
    set: {max_samples: 100}
    criteria: {completes: , CRITERION: }
"""


class Silent:
    def begin(self, *_: Any) -> Listener:
        return SilentListener()

    def judged(self, *_: Any) -> None:
        pass


Run = Callable[[RunConfig], Measurement]


@pytest.fixture
def climb(tmp_path: Path, tracking_store: None) -> Callable[..., PhaseResult]:
    def climbed(run: Run, text: str, overrides: dict[str, Any] | None = None, **options: Any) -> PhaseResult:
        file = tmp_path / "phase.yaml"
        file.write_text(text)
        phase = load_phase(file)
        ran: list[RunConfig] = []

        def make(folder: Path, listener: Listener) -> Run:
            def runner(config: RunConfig) -> Measurement:
                ran.append(config)
                found = run(config)
                found.save(folder / "measurement.json")
                return found

            return runner

        experiment = f"roofscale-phase{phase.number}"
        attempts = Attempts(tmp_path / "runs", experiment)
        plan = phase.resolve(overrides=overrides or {})
        found = PhaseRunner(phase, plan, Tracker(experiment), attempts, make, Silent(), {}, **options).run_phase()
        Tracker(experiment).resume(found.run_id).set_tags({"verdict": found.verdict})
        climbed.ran = ran
        return found

    return climbed


def forgetful(config: RunConfig) -> Measurement:
    """RID is forgotten once AIRS is trained on after it; what is trained together is kept."""
    random = np.random.default_rng(config.max_samples)
    after = {} if config.schedule == "mixed" else {"rid": 0.2}
    loss = {} if config.schedule == "mixed" else {"rid": 1.4}
    run = simulate(random, [Part("rid"), Part("airs", iou=after, loss=loss)])
    return mixed(run) if config.schedule == "mixed" else run


def slow_learner(config: RunConfig) -> Measurement:
    """It takes more than one pass to learn."""
    after = {"rid": 0.7 if config.epochs > 1 else 1.5}
    return simulate(np.random.default_rng(1), [Part(steps=0, loss={"rid": 1.5}), Part(loss=after)])


def hungry(config: RunConfig) -> Measurement:
    """Training waits for the loader until four processes fill it."""
    wait = 0.02 if config.num_workers >= 4 else 0.6
    return simulate(np.random.default_rng(1), speed__data_stall=wait, speed__loader_wait=wait)


def hardly_validated(config: RunConfig) -> Measurement:
    """It learns, which a few samples do not show."""
    parts = [Part(steps=0, loss={"rid": 1.5}), Part()]
    return simulate(np.random.default_rng(1), parts, samples=config.val_samples)


def crowded(config: RunConfig) -> Measurement:
    """Four loader processes on two cores: every fifth step or so is slow, and none of it helps utilisation."""
    return simulate(np.random.default_rng(3), slow_steps=0.2 if config.num_workers >= 4 else 0.0)


PLANTED: dict[str, tuple[Run, str, dict[str, Any], Cause, str]] = {
    "forgetting": (forgetful, "forgetting", {"datasets": ["rid", "airs"]}, Cause.FORGETTING, "schedule=mixed"),
    "not learning": (slow_learner, "learning", {}, Cause.NOT_LEARNING, "epochs=2"),
    "loader-bound": (hungry, "data_stall", {"num_workers": 2}, Cause.LOADER_BOUND, "num_workers=4"),
    "few samples": (hardly_validated, "learning", {"val_samples": 15}, Cause.FEW_VALIDATION_SAMPLES, "val_samples=30"),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_cause_has_its_remedy_and_the_phase_goes_on_from_it(
    climb: Callable[..., PhaseResult], tmp_path: Path, planted: str
) -> None:
    run, criterion, overrides, cause, changed = PLANTED[planted]
    found = climb(run, PHASE.replace("CRITERION", criterion), overrides)
    first, second = found.results
    knob, _, value = changed.partition("=")
    assert found.verdict is Verdict.PASSED
    assert [(one.cause, one.fallback) for one in first.tries] == [(cause, None)]
    tags = get_run(first.run_id).tags
    assert (tags["retry_of"], tags["cause"], tags["changed"]) == (first.tries[0].run_id, cause, changed)
    assert second.tries == ()  # it starts with the remedy
    assert second.config.to_strings()[knob] == value
    last_good = json.loads((tmp_path / "runs/roofscale-phase4/last_good.json").read_text())["config"]
    assert RunConfig().with_overrides(last_good).to_strings()[knob] == value
    again = latest_result(4)
    assert again is not None
    assert again.verdict is Verdict.PASSED
    assert again.results[0].tries[0].cause is cause


def test_a_remedy_that_does_not_help_fails_the_step_and_is_not_carried_on(climb: Callable[..., PhaseResult]) -> None:
    def never(config: RunConfig) -> Measurement:
        return slow_learner(config.with_overrides({"epochs": 1}))

    found = climb(never, PHASE.replace("CRITERION", "learning"))
    assert [result.config.epochs for result in found.results] == [1, 1]
    assert [[one.fallback.changed for one in result.tries] for result in found.results] == [["epochs=2"]] * 2
    assert found.verdict is Verdict.FAILED
    assert found.last_good is None


CROWDED = """
phase: 3
name: crowded
on_failure: continue
base: {compute: ml.m5.xlarge}
steps:
  - name: workers-2
    set: {num_workers: 2}
    criteria: {completes: }
  - name: workers-4
    set: {num_workers: 4}
    criteria: {completes: , utilisation_up: , balanced: }
"""


def test_uneven_steps_get_half_the_workers_and_the_run_that_is_sound_decides(climb: Callable[..., PhaseResult]) -> None:
    found = climb(crowded, CROWDED)
    step = found.results[-1]
    assert [(run.cause, run.config.num_workers) for run in step.tries] == [(Cause.UNEVEN_STEPS, 4)]
    assert (step.fallback.changed, step.config.num_workers) == ("num_workers=2", 2)
    assert step.verdict.verdict is not Verdict.PASSED  # as many workers as before keep the cores no busier: a finding
    assert step.verdict.without_findings is Verdict.PASSED
    assert found.verdict is Verdict.PASSED
    assert get_run(step.run_id).tags["verdict.balanced"] == "passed"  # what the gate reads
    assert found.last_good.step.name == "workers-2"


def test_samples_that_are_not_there_are_not_asked_for(climb: Callable[..., PhaseResult]) -> None:
    repeating = PHASE.replace("CRITERION", "learning").replace(
        "steps:", "on_insufficient: repeat\nmax_repeats: 1\nsteps:"
    )
    found = climb(hardly_validated, repeating, {"val_samples": 15}, resolve_fallback_data=lambda _: None)
    assert all(result.tries == () for result in found.results)
    assert [len(result.repeats) for result in found.results] == [1, 1]  # seeds are all that can tell more
    assert found.verdict is Verdict.INSUFFICIENT_EVIDENCE


BATCHES = """
phase: 2
name: batches
least_batch: 8
on_failure: continue
max_repeats: 0
max_fallbacks: 0
base: {compute: ml.m5.xlarge}
steps:
""" + "".join(
    f"""
  - name: batch-{batch}
    set: {{batch_size: {batch}}}
    criteria: {{completes: , memory_margin: {", faster: " if batch == 4 else ""}}}
    shown: {{knee: }}
{"    when: forecast_fits" if batch == 16 else ""}
"""
    for batch in (2, 4, 8, 16)
)


def machine(paces: dict[int, float], shares: dict[int, float] | None = None) -> Run:
    """Runs with these seconds a sample and memory shares by batch."""

    def run(config: RunConfig) -> Measurement:
        batch = config.batch_size
        share = (shares or {}).get(batch, 0.3)
        random = np.random.default_rng(batch)
        return simulate(random, [Part(steps=60, pace=paces[batch])], batch=batch, run_sd=0, memory__share=share)

    return run


LEVEL = dict.fromkeys((2, 4, 8, 16), 0.5)
SLOWER = {2: 0.4, 4: 0.5, 8: 0.55, 16: 0.6}
FASTER = {2: 0.5, 4: 0.4, 8: 0.3, 16: 0.2}


@pytest.mark.parametrize(
    ("paces", "shares", "handed_on", "knee"),
    [
        (LEVEL, {}, 8, None),  # noise may hide another
        (SLOWER, {}, 8, 2),
        (FASTER, {}, 16, 16),
        (FASTER, {16: 0.9}, 8, 8),
        (FASTER, {8: 0.9, 16: 0.9}, 4, 4),
    ],
)
def test_the_batch_that_the_gate_asks_for_is_handed_on_or_the_knee_where_that_is_larger(
    climb: Callable[..., PhaseResult], tmp_path: Path, paces: dict[int, float], shares: dict[int, float],
    handed_on: int, knee: int | None,
) -> None:  # fmt: skip
    found = climb(machine(paces, shares), BATCHES)
    assert found.last_good.config.batch_size == handed_on
    last_good = json.loads((tmp_path / "runs/roofscale-phase2/last_good.json").read_text())
    assert last_good["config"]["batch_size"] == handed_on
    assert batch_words(found).startswith(f"Batch {handed_on} is handed on; ")
    assert (f"likes {knee} best" if knee else "not known") in batch_words(found)
    told = newest_knee(found.results)
    assert (told.numbers["batch_size"] if told else None) == knee
    assert latest_result(2).last_good.config.batch_size == handed_on


def test_a_batch_that_is_no_faster_is_a_finding_and_keeps_no_other_from_passing(
    climb: Callable[..., PhaseResult],
) -> None:
    found = climb(machine(SLOWER), BATCHES)
    assert [result.verdict.verdict for result in found.results] == ["passed", "failed", "passed", "passed"]
    assert found.verdict is Verdict.PASSED
    unsound = climb(machine(SLOWER, {8: 0.9}), BATCHES.replace("name: batches", "name: again"))
    assert unsound.verdict is Verdict.FAILED


def test_a_step_whose_forecast_does_not_fit_is_left_out_with_the_reason(climb: Callable[..., PhaseResult]) -> None:
    def foresee(config: RunConfig) -> dict[str, float]:
        peak = 900.0 * config.batch_size  # 14,400 of 16,384 MiB at 16
        return forecast_metrics("host_peak_mib", peak, 0.95 * peak, 1.05 * peak)

    found = climb(machine(FASTER), BATCHES, forecast=foresee)
    assert max(config.batch_size for config in climb.ran) == 8
    assert "13,680 MiB, over 80% of 16,384" in found.skipped["batch-16"]
    assert found.complete
    assert found.verdict is Verdict.PASSED
    assert latest_result(2).skipped == found.skipped
    again = climb(machine(FASTER), BATCHES, forecast=lambda config: {})
    assert not again.skipped  # nothing says that it does not fit


def test_the_margin_of_the_phase_file_rules_the_verdict_the_forecast_and_the_knee(
    climb: Callable[..., PhaseResult],
) -> None:
    def foresee(config: RunConfig) -> dict[str, float]:
        peak = 900.0 * config.batch_size  # at least 13,680 of 16,384 MiB at 16: 83 %
        return forecast_metrics("host_peak_mib", peak, 0.95 * peak, 1.05 * peak)

    run = machine(FASTER, {16: 0.85})
    wider = BATCHES.replace("memory_margin: ,", "memory_margin: {max_share: 0.9},").replace(
        "memory_margin: }", "memory_margin: {max_share: 0.9}}"
    )
    found = climb(run, wider, forecast=foresee)
    assert not found.skipped
    assert found.verdict is Verdict.PASSED
    assert newest_knee(found.results).numbers["batch_size"] == 16
    assert found.last_good.config.batch_size == 16
    refused = climb(run, BATCHES.replace("name: batches", "name: again"), forecast=lambda config: {})
    assert refused.verdict is Verdict.FAILED
    assert newest_knee(refused.results).numbers["batch_size"] == 8
