"""After a step that did not pass: why, and which remedy to try next. Pure functions.

The cause decides. What is too large is halved between what held and what failed (bisection): 8 held and 16 failed, so
12; then 14 or 10. A config that is at least as large in every dimension as one that ran out of memory is never tried.
What trains badly gets a lower learning rate, the data sets mixed, twice the passes, or a loader with more hands.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from roofscale import compute
from roofscale.config import RunConfig
from roofscale.measurement import Measurement, Outcome
from roofscale.phases.climb import Cause
from roofscale.phases.judge import StepVerdict, Verdict

# What decides how much memory a run needs; a config that differs in anything else cannot be compared by size.
DIMENSIONS = ("batch_size", "image_size", "num_workers", "prefetch_factor")
_SAME = (
    "encoder",
    "decoder",
    "pretrained",
    "precision",
    "channels_last",
    "micro_batches",
    "activation_checkpointing",
    "ema",
    "compile",
    "processes",
    "instance_count",
    "compute",
    "threads",
)
OUT_OF_MEMORY = (Outcome.HOST_OOM, Outcome.CUDA_OOM, Outcome.SHM_FULL)

_LR_FACTOR = 3  # two retreats come to a ninth of the rate asked for, about one decade
_MULTIPLE = {"image_size": 32}  # the encoder halves the image five times
_LEAST = {"image_size": 32, "num_workers": 0, "prefetch_factor": 1, "max_samples": 2}
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
# The first criterion of this list that failed names the cause; what is not in it is a matter of merit.
_BY_CRITERION = {
    "memory_margin": Cause.OVER_MARGIN,
    "stable": Cause.DIVERGED,
    "bounded": Cause.DIVERGED,
    "no_leak": Cause.LEAK,
    "forgetting": Cause.FORGETTING,
    "learning": Cause.NOT_LEARNING,
    "data_stall": Cause.LOADER_BOUND,
}
# Criteria that lack evidence only for want of validation samples, which more seeds of the same few cannot make up.
_PAIRS_SAMPLES = ("learning", "forgetting")
# The same for want of steps.
_COUNTS_STEPS = ("stable", "smooth")
_MEMORY = (Cause.HOST_OOM, Cause.OVER_MARGIN)
# What is halved between what held and what failed; the other remedies are not tried any closer once one has passed.
SIZES = (*_MEMORY, Cause.CUDA_OOM, Cause.WORKERS_MEMORY, Cause.SHM_FULL)
# What the other remedies change: it stays changed in the tries that follow.
_KEPT = ("lr", "schedule", "epochs", "val_samples", "data_root")

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
    Cause.FEW_STEPS: "train longer (epochs), or on more samples (max_samples)",
    Cause.FEW_VALIDATION_SAMPLES: "validate on more samples (val_samples)",
}


@dataclass(frozen=True)
class RuledOut:
    """A config that ran out of memory, and the run that shows it."""

    config: RunConfig
    outcome: Outcome
    run_id: str
    attempt: str = ""  # MLflow's parent run of the attempt that it belongs to


def find_cause(
    verdict: StepVerdict, measurement: Measurement, config: RunConfig, good: RunConfig | None
) -> Cause | None:
    """Why a step did not pass, as far as a remedy may follow from it; else None.

    Args:
        verdict: the step's.
        measurement: of its run.
        config: of its run.
        good: the last good config, which tells what the step has raised.
    """
    if verdict.verdict is not Verdict.FAILED:
        lacking = verdict.named(Verdict.INSUFFICIENT_EVIDENCE)
        if any(name in lacking for name in _COUNTS_STEPS) and measurement.outcome is Outcome.OK:
            return Cause.FEW_STEPS
        more = any(name in lacking for name in _PAIRS_SAMPLES)
        return Cause.FEW_VALIDATION_SAMPLES if more and _has_more_to_validate(config, measurement) else None
    failed = verdict.named(Verdict.FAILED)
    cause = _BY_OUTCOME.get(measurement.outcome) or next(
        (cause for name, cause in _BY_CRITERION.items() if name in failed), Cause.CRITERIA
    )
    bottlenecks = next((c.numbers for c in verdict.criteria if c.name == "balanced"), {})
    if cause is Cause.CRITERIA and "bottleneck/data stall" in bottlenecks and "balanced" in failed:
        return Cause.LOADER_BOUND
    if cause in _MEMORY and good and any(getattr(config, knob) > getattr(good, knob) for knob in _LOADER):
        return Cause.WORKERS_MEMORY
    return cause


def _has_more_to_validate(config: RunConfig, measurement: Measurement) -> bool:
    """Whether the run validated as many samples as it asked for: else the data set has no more."""
    return all(len(found.sample_ids) == config.val_samples for found in measurement.validations)


def remedy(
    cause: Cause, failed: Sequence[RunConfig], held: Sequence[RunConfig], ruled_out: Sequence[RunConfig] = ()
) -> tuple[RunConfig, str] | None:
    """The config to try next, and what it changes on the one that the step asks for; None where nothing is left.

    Args:
        cause: of the newest try that did not pass.
        failed: the configs of this step that did not pass, the one that the step asks for first.
        held: the last good config, if there is one, and the configs of this step that passed.
        ruled_out: configs that ran out of memory, here or in earlier phases.
    """
    asked, newest = failed[0], failed[-1]
    wanted = asked.with_overrides({knob: getattr(newest, knob) for knob in _KEPT})
    if cause in SIZES:
        for knob in _knobs(cause, wanted, held):
            value = _between(knob, wanted, failed, held, ruled_out)
            if value is not None:
                return wanted.with_overrides({knob: value}), f"{knob}={value}"
        return None
    changed = _change(cause, asked, newest)
    return (newest.with_overrides([changed]), changed) if changed else None


def _change(cause: Cause, asked: RunConfig, newest: RunConfig) -> str:
    """The override that may mend how a run trains or loads; empty where there is none, or it was tried."""
    if cause is Cause.DIVERGED:
        return f"lr={newest.lr / _LR_FACTOR:g}"
    if cause is Cause.FORGETTING and newest.schedule == "sequential" and len(newest.datasets) > 1:
        return "schedule=mixed"  # rehearsal; see the criterion ``forgetting``
    if cause is Cause.FEW_STEPS or (cause is Cause.NOT_LEARNING and newest.epochs == asked.epochs):
        return f"epochs={2 * newest.epochs}"
    if cause is Cause.LOADER_BOUND:
        more = min(max(1, 2 * newest.num_workers), compute.get(newest.compute).vcpus)
        if more > newest.num_workers:
            return f"num_workers={more}"
        return f"prefetch_factor={2 * newest.prefetch_factor}"
    if cause is Cause.FEW_VALIDATION_SAMPLES:
        return f"val_samples={2 * newest.val_samples}"
    return ""


def _knobs(cause: Cause, wanted: RunConfig, held: Sequence[RunConfig]) -> Iterator[str]:
    """What to make smaller, most promising first."""
    good = held[0] if held else None
    if cause is Cause.SHM_FULL:  # holds the batches that wait: fewer of them before fewer who prepare them
        yield from ("prefetch_factor", "num_workers", "batch_size")
    elif cause is Cause.WORKERS_MEMORY:
        yield from (*_raised(_LOADER, wanted, good), "prefetch_factor", "batch_size")
    elif cause in (*_MEMORY, Cause.CUDA_OOM):
        yield from _raised(("batch_size", "image_size", "max_samples"), wanted, good)
        yield "batch_size"


def _raised(knobs: Sequence[str], wanted: RunConfig, good: RunConfig | None) -> Iterator[str]:
    return (knob for knob in knobs if good and getattr(wanted, knob) > getattr(good, knob))


def _between(
    knob: str,
    wanted: RunConfig,
    failed: Sequence[RunConfig],
    held: Sequence[RunConfig],
    ruled_out: Sequence[RunConfig],
) -> int | None:
    """The middle between the largest value that held and the smallest that failed; None where nothing lies between."""
    multiple = _MULTIPLE.get(knob, 1)
    high: int = min(getattr(config, knob) for config in failed)
    below: list[int] = [getattr(config, knob) for config in held if getattr(config, knob) < high]
    least = wanted.least_batch if knob == "batch_size" else _LEAST[knob]
    low = max(below, default=least - multiple)
    while high - low > multiple:
        middle = max((low + high) // 2 // multiple * multiple, least, low + multiple)
        tried = wanted.with_overrides({knob: middle})
        if not any(at_least_as_large(tried, known) for known in ruled_out):
            return middle
        high = middle
    return None


def at_least_as_large(config: RunConfig, other: RunConfig) -> bool:
    """Whether a config needs at least the memory of another: as large in every dimension, alike in the rest."""
    alike = all(getattr(config, knob) == getattr(other, knob) for knob in _SAME)
    return alike and all(getattr(config, knob) >= getattr(other, knob) for knob in DIMENSIONS)
