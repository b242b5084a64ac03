"""Fallbacks after a step that did not pass: the cause, and the config to try next. Pure functions.

A config that needs too much memory is bisected between what passed and what failed: after 8 passed and 16 failed, 12;
then 14 or 10. A config at least as large in every dimension as one that ran out of memory is never tried. A run that
trains badly gets a lower learning rate, mixed data sets, twice the epochs, or more or fewer loader processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from roofscale import compute
from roofscale.config import RunConfig, affecting
from roofscale.measurement import Measurement, Outcome
from roofscale.phases.judge import StepVerdict, Verdict
from roofscale.phases.results import Cause

MEMORY_KNOBS = ("batch_size", "image_size", "num_workers", "prefetch_factor")  # the larger, the more memory
_MUST_MATCH = affecting("memory") - set(MEMORY_KNOBS)  # only configs that agree in these can be compared by size
OUT_OF_MEMORY = (Outcome.HOST_OOM, Outcome.CUDA_OOM, Outcome.SHM_FULL)

_LR_FACTOR = 3  # two fallbacks lower the rate to a ninth, about one decade
_GRANULARITY = {"image_size": 32}  # the encoder halves the image five times
_MINIMUM = {"image_size": 32, "num_workers": 0, "prefetch_factor": 1, "max_samples": 2}
_LOADER = ("num_workers", "prefetch_factor")

_BY_OUTCOME = {
    Outcome.HOST_OOM: Cause.HOST_OOM,
    Outcome.CUDA_OOM: Cause.CUDA_OOM,
    Outcome.SHM_FULL: Cause.SHM_FULL,
    Outcome.DIVERGED: Cause.DIVERGED,
    Outcome.DATA_ERROR: Cause.DATA_ERROR,
    Outcome.TIMEOUT: Cause.TIMEOUT,
    Outcome.CRASHED: Cause.CRASHED,
}
# The first failed criterion of this list names the cause; criteria of speed and balance are not in it.
_BY_CRITERION = {
    "memory_margin": Cause.OVER_MARGIN,
    "stable": Cause.DIVERGED,
    "bounded": Cause.DIVERGED,
    "no_leak": Cause.LEAK,
    "forgetting": Cause.FORGETTING,
    "learning": Cause.NOT_LEARNING,
    "data_stall": Cause.LOADER_BOUND,
}
# Criteria that need more validation samples if their evidence is insufficient; more seeds of the same few do not help.
_NEED_VALIDATION_SAMPLES = ("learning", "forgetting")
# Criteria that then need more steps.
_NEED_STEPS = ("stable", "smooth")
_HOST_MEMORY = (Cause.HOST_OOM, Cause.OVER_MARGIN)
# Causes whose knobs are bisected; after any other cause the first fallback that passes is kept.
MEMORY_CAUSES = (*_HOST_MEMORY, Cause.CUDA_OOM, Cause.WORKERS_MEMORY, Cause.SHM_FULL)
# Knobs that the other fallbacks change; a smaller config keeps the changes.
_NON_MEMORY_KNOBS = ("lr", "schedule", "epochs", "val_samples", "data_root")

ADVICE = {
    Cause.LEAK: "memory grows with the steps, which no smaller batch mends: look for what keeps tensors alive",
    Cause.DATA_ERROR: "mend or remove the file that the outcome names, or set on_bad_sample=skip",
    Cause.TIMEOUT: "raise timeout_seconds; the same command resumes from the last checkpoint",
    Cause.CRASHED: "see stderr.log in the run's folder",
    Cause.FORGETTING: "train the data sets together (schedule=mixed), and where that was tried, longer (epochs)",
    Cause.NOT_LEARNING: "train longer (epochs); where that was tried, check that masks and images belong together "
    "(roofscale data check), and try another lr",
    Cause.LOADER_BOUND: "load with more processes (num_workers, then prefetch_factor); where that was tried, look at "
    "the disk, the file formats and augment",
    Cause.UNEVEN_STEPS: "load with fewer processes (num_workers): more than there are free cores compete with training",
    Cause.FEW_STEPS: "train longer (epochs), or on more samples (max_samples)",
    Cause.FEW_VALIDATION_SAMPLES: "validate on more samples (val_samples)",
}


@dataclass(frozen=True)
class KnownOutOfMemory:
    """A config that ran out of memory, with the run that measured it."""

    config: RunConfig
    outcome: Outcome
    run_id: str
    attempt: str = ""  # id of the parent run of its attempt in MLflow


def find_cause(
    verdict: StepVerdict, measurement: Measurement, config: RunConfig, last_good: RunConfig | None
) -> Cause | None:
    """Classify why a step did not pass; None if it passed, or if only more seeds can add evidence.

    Args:
        verdict: of the step.
        measurement: of its run.
        config: of its run.
        last_good: the config that the step builds on, None if there is none; shows which knobs the step has raised.
    """
    if verdict.verdict is not Verdict.FAILED:
        undecided = verdict.named(Verdict.INSUFFICIENT_EVIDENCE)
        if any(name in undecided for name in _NEED_STEPS) and measurement.outcome is Outcome.OK:
            return Cause.FEW_STEPS
        needs_samples = any(name in undecided for name in _NEED_VALIDATION_SAMPLES)
        # A run that validated fewer samples than its config allows has used up its data set.
        has_more = all(len(validation.sample_ids) == config.val_samples for validation in measurement.validations)
        return Cause.FEW_VALIDATION_SAMPLES if needs_samples and has_more else None
    failed = verdict.named(Verdict.FAILED)
    cause = _BY_OUTCOME.get(measurement.outcome) or next(
        (cause for name, cause in _BY_CRITERION.items() if name in failed), Cause.CRITERIA
    )
    bottlenecks = next((c.numbers for c in verdict.criteria if c.name == "balanced"), {})
    raised = [knob for knob in _LOADER if last_good and getattr(config, knob) > getattr(last_good, knob)]
    if cause is Cause.CRITERIA and "balanced" in failed:
        if "bottleneck/data stall" in bottlenecks:
            return Cause.LOADER_BOUND
        if "bottleneck/step times" in bottlenecks and "num_workers" in raised:
            return Cause.UNEVEN_STEPS
    return Cause.WORKERS_MEMORY if raised and cause in _HOST_MEMORY else cause


def next_fallback(
    cause: Cause,
    failed: Sequence[RunConfig],
    passed: Sequence[RunConfig],
    out_of_memory: Sequence[RunConfig] = (),
) -> tuple[RunConfig, str] | None:
    """Choose the config to try next, and return it with the override that leads to it; None if nothing is left to try.

    Args:
        cause: of the newest run that did not pass.
        failed: configs of this step that did not pass, the planned config first.
        passed: the last good config, if there is one, and the configs of this step that passed.
        out_of_memory: configs that ran out of memory, here or in earlier phases.
    """
    planned, newest = failed[0], failed[-1]
    if cause in MEMORY_CAUSES:
        kept = planned.with_overrides({knob: getattr(newest, knob) for knob in _NON_MEMORY_KNOBS})
        return next_smaller_config(cause, kept, failed, passed, out_of_memory)
    change = _training_change(cause, planned, newest)
    return (newest.with_overrides([change]), change) if change else None


def _training_change(cause: Cause, planned: RunConfig, newest: RunConfig) -> str:
    """Return the override that may improve training or loading; empty if there is none, or if it was tried."""
    if cause is Cause.DIVERGED:
        return f"lr={newest.lr / _LR_FACTOR:g}"
    if cause is Cause.FORGETTING and newest.schedule == "sequential" and len(newest.datasets) > 1:
        return "schedule=mixed"  # rehearsal; see the criterion ``forgetting``
    if cause is Cause.FEW_STEPS or (cause is Cause.NOT_LEARNING and newest.epochs == planned.epochs):
        return f"epochs={2 * newest.epochs}"
    if cause is Cause.LOADER_BOUND:
        more = min(max(1, 2 * newest.num_workers), compute.get(newest.compute).vcpus)
        if more > newest.num_workers:
            return f"num_workers={more}"
        return f"prefetch_factor={2 * newest.prefetch_factor}"
    if cause is Cause.UNEVEN_STEPS:
        return f"num_workers={newest.num_workers // 2}"
    if cause is Cause.FEW_VALIDATION_SAMPLES:
        return f"val_samples={2 * newest.val_samples}"
    return ""


def next_smaller_config(
    cause: Cause,
    start: RunConfig,
    failed: Sequence[RunConfig],
    passed: Sequence[RunConfig],
    out_of_memory: Sequence[RunConfig],
) -> tuple[RunConfig, str] | None:
    """Bisect the first knob, the most promising one first, that has a smaller value left to try.

    Args:
        start: the config to make smaller: the planned one with the changes that are no matter of memory.

    The other parameters and the result are those of ``next_fallback``.
    """
    knobs: tuple[str, ...]
    if cause is Cause.SHM_FULL:  # shared memory holds the waiting batches: fewer of them, then fewer processes
        knobs = ("prefetch_factor", "num_workers", "batch_size")
    else:
        last_good = passed[0] if passed else None
        loads_too_much = cause is Cause.WORKERS_MEMORY
        candidates = _LOADER if loads_too_much else ("batch_size", "image_size", "max_samples")
        raised = [k for k in candidates if last_good and getattr(start, k) > getattr(last_good, k)]
        knobs = (*raised, *(("prefetch_factor",) if loads_too_much else ()), "batch_size")
    for knob in knobs:
        value = _bisect(knob, start, failed, passed, out_of_memory)
        if value is not None:
            return start.with_overrides({knob: value}), f"{knob}={value}"
    return None


def _bisect(
    knob: str,
    start: RunConfig,
    failed: Sequence[RunConfig],
    passed: Sequence[RunConfig],
    out_of_memory: Sequence[RunConfig],
) -> int | None:
    """Return the middle of the largest value that passed and the smallest that failed; None if nothing lies between."""
    multiple = _GRANULARITY.get(knob, 1)
    high: int = min(getattr(config, knob) for config in failed)
    below: list[int] = [getattr(config, knob) for config in passed if getattr(config, knob) < high]
    minimum = start.least_batch if knob == "batch_size" else _MINIMUM[knob]
    low = max(below, default=minimum - multiple)
    while high - low > multiple:
        middle = max((low + high) // 2 // multiple * multiple, minimum, low + multiple)
        candidate = start.with_overrides({knob: middle})
        if not any(needs_at_least_memory_of(candidate, known) for known in out_of_memory):
            return middle
        high = middle
    return None


def needs_at_least_memory_of(config: RunConfig, other: RunConfig) -> bool:
    """Return whether a config is as large as another in every dimension and equal in all other memory knobs."""
    same_rest = all(getattr(config, knob) == getattr(other, knob) for knob in _MUST_MATCH)
    return same_rest and all(getattr(config, knob) >= getattr(other, knob) for knob in MEMORY_KNOBS)
