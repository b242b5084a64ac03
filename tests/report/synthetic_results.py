"""Climbs put together by hand, judged by the real criteria: what the report is tried on without any training."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from roofscale.measurement import Measurement, Outcome
from roofscale.phases.judge import Verdict, judge
from roofscale.phases.phase_file import Phase, load_phase
from roofscale.phases.results import Cause, Fallback, PhaseResult, StepResult

SAMPLES = """
phase: 1
name: more-samples
question: Does it stay healthy with more samples?
watch: [memory/peak_mib, speed/samples_per_s, val/*/iou]
steps:
  - name: few
    set: {max_samples: 20}
    criteria: {completes: , memory_margin: {max_share: 0.8}}
  - name: many
    set: {max_samples: 100}
    expect: {memory/peak_mib: {value: 1.0, of: previous, tolerance: 0.2}}
    criteria: {completes: , memory_margin: {max_share: 0.8}}
"""
BATCHES = """
phase: 2
name: larger-batches
question: Which batch is fastest?
needs: 1
base: {max_samples: 100}
watch: [memory/peak_mib, speed/samples_per_s]
on_failure: continue
max_fallbacks: 2
steps:
  - name: batch-4
    set: {batch_size: 4}
    criteria: &sound {completes: , memory_margin: {max_share: 0.8}}
  - name: batch-8
    set: {batch_size: 8}
    expect: {memory/peak_mib: {value: 1.8, of: previous, tolerance: 0.2}}
    criteria: {completes: , memory_margin: {max_share: 0.65}}
  - name: batch-16
    set: {batch_size: 16}
    criteria: *sound
"""
GPU = """
phase: 5
name: gpu
question: Does it run on the GPU?
needs: 2
requires: [gate, gpu]
base: {compute: ml.g5.xlarge}
steps:
  - name: target
    set: {image_size: 1024, batch_size: 16, max_samples: 0}
    criteria: {completes: }
"""
LIMIT_MIB = 10_000
FACTS = {"data": "rid from GENERATED images.", "device": "cpu", "precision": "fp32", "compute": "local, 4 GiB"}


def phase(text: str) -> Phase:
    """A phase from the text of its file."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "phase.yaml"
        file.write_text(text)
        return load_phase(file)


def measured(peak_mib: float, samples_per_s: float = 1.0, **more: float) -> dict[str, float]:
    """Metrics of a run with this peak memory; further ones by name, with __ for the slash."""
    known = {
        "memory/peak_mib": peak_mib,
        "memory/share": peak_mib / LIMIT_MIB,
        "memory/mib_per_sample": 300.0,
        "speed/samples_per_s": samples_per_s,
        "speed/data_stall": 0.02,
        "speed/loader_wait": 0.01,
        "val/rid/iou": 0.5,
        "speed/run_seconds": 60.0,
    }
    return {**known, **{name.replace("__", "/"): value for name, value in more.items()}}


def run(
    phase: Phase,
    place: int,
    metrics: Mapping[str, float] | None = None,
    *,
    before: Sequence[StepResult] = (),
    outcome: Outcome = Outcome.OK,
    detail: str = "",
    cause: Cause | None = None,
    fallback: Fallback | None = None,
    tries: tuple[StepResult, ...] = (),
    repeats: Sequence[Mapping[str, float]] = (),
) -> StepResult:
    """A judged run of a step (``place`` from 0) at its own config, or at the one that its fallback changes."""
    step, config = phase.resolve()[place]
    if fallback:
        step, config = replace(step, expect=()), config.with_overrides([fallback.changed])
    runs = [Measurement(outcome, detail, config.fingerprint, metrics=m, facts=FACTS) for m in (metrics or {}, *repeats)]
    previous, base = (before[-1].measurements, before[0].measurements) if before else ((), ())
    verdict = judge(step, runs[0], previous, base, runs[1:])
    run_id = f"{phase.number}{place}{len(tries)}{fallback.changed if fallback else ''}".replace("=", "").ljust(32, "0")
    found = StepResult(
        step, config, runs[0], verdict, run_id, Path("runs"), tuple(runs[1:]), fallback, cause, tries
    )  # fmt: skip
    if verdict.verdict is Verdict.FAILED and cause is None:
        found = replace(found, cause=Cause.CRITERIA)
    return found


def climb(phase: Phase, *results: StepResult, interrupted: bool = False, notes: tuple[str, ...] = ()) -> PhaseResult:
    """An attempt at a phase, with these results."""
    return PhaseResult(
        phase=phase,
        attempt=Path("runs/attempt"),
        run_id=f"parent{phase.number}",
        results=results,
        interrupted=interrupted,
        experiment=f"roofscale-phase{phase.number}",
        created=f"2026-01-0{phase.number}T10:00:00+00:00",
        commit="c0ffee",
        notes=notes,
    )


def passed_samples() -> PhaseResult:
    """Phase 1, both steps passed."""
    plan = phase(SAMPLES)
    few = run(plan, 0, measured(2000, 1.5))
    return climb(plan, few, run(plan, 1, measured(2100, 1.4), before=[few]))


def rolled_back() -> PhaseResult:
    """Phase 2: batch 8 took more memory than expected, and than it may; batch 16 ran out of it, 12 held, 14 did not."""
    plan = phase(BATCHES)
    four = run(plan, 0, measured(3000, 1.5))
    eight = run(plan, 1, measured(7000, 2.0), before=[four])
    burst = {"outcome": Outcome.HOST_OOM, "detail": "killed by the kernel, out of memory", "cause": Cause.HOST_OOM}
    asked = run(plan, 2, before=[four, eight], **burst)
    twelve = run(plan, 2, measured(7900, 2.05), fallback=Fallback(asked.run_id, Cause.HOST_OOM, "batch_size=12"))
    fourteen = run(plan, 2, fallback=Fallback(asked.run_id, Cause.HOST_OOM, "batch_size=14"), **burst)
    return climb(plan, four, eight, replace(twelve, tries=(asked, fourteen)))
