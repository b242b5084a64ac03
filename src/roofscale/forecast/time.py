"""How long a run will take and what that costs, from the runs that are on record. Pure functions.

Training time goes with the samples, at the seconds a sample of the most similar run; those go with the image's area,
since a convolutional net does the same work on every pixel. Validation goes with the validated samples. What else a
run takes (process start, first step) is taken over as it was.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from roofscale.compute import Compute
from roofscale.config import RunConfig

_ALIKE = ("encoder", "decoder", "precision", "channels_last")  # without these, seconds a sample cannot be carried over
_NEAR = ("image_size", "batch_size", "num_workers", "threads")  # the more of these agree, the better


@dataclass(frozen=True)
class Timed:
    """A run that was measured: what it ran and what it took."""

    config: RunConfig
    metrics: Mapping[str, float]
    run_id: str
    on_gpu: bool = False


@dataclass(frozen=True)
class TimeForecast:
    """Seconds and cost of a run that was not made yet."""

    seconds: float
    usd: float | None  # None where the compute has no price
    source: str  # MLflow run of the measurement that it is scaled from
    scaled: bool  # whether that run had another image size or compute


def forecast_time(config: RunConfig, compute: Compute, runs: Sequence[Timed]) -> TimeForecast | None:
    """Foresee a run's wall time; None where no run on record is similar enough to say anything.

    Args:
        config: of the run to come.
        compute: where it will run; its price makes the cost.
        runs: on record, of any phase; those without a measured time are passed over.
    """
    known = [run for run in runs if _is_timed(run) and _same_kind(config, compute, run)]
    similar = [run for run in known if _likeness(config, run.config) is not None]
    if not similar:
        return None
    nearest = max(similar, key=lambda run: _likeness(config, run.config) or 0)
    area = (config.image_size / nearest.config.image_size) ** 2
    seconds_per_sample = nearest.metrics["speed/seconds_per_sample"] * area
    training = seconds_per_sample * training_samples(config, nearest)
    validating = _seconds_per_validated(nearest) * area * validated_samples(config)
    seconds = training + validating + _start_seconds(nearest)
    usd = None if compute.usd_per_hour is None else seconds / 3600 * compute.usd_per_hour
    return TimeForecast(seconds, usd, nearest.run_id, area != 1 or config.compute != nearest.config.compute)


def training_samples(config: RunConfig, like: Timed) -> float:
    """Samples that a run trains on over all its passes; ``max_samples=0`` takes what the measured run had a pass."""
    each = config.max_samples or like.metrics["train/samples"] / (like.config.epochs * len(like.config.datasets))
    return each * config.epochs * len(config.datasets)


def validated_samples(config: RunConfig) -> int:
    """Samples validated over a run: every data set before training, and those seen so far after each pass."""
    sets = len(config.datasets)
    passes = config.epochs * sets if config.schedule == "mixed" else config.epochs * sets * (sets + 1) // 2
    return config.val_samples * (sets + passes)


def _seconds_per_validated(run: Timed) -> float:
    """What is left of the run's time after start and training, over the samples that it validated."""
    metrics = run.metrics
    trained = metrics["speed/seconds_per_sample"] * metrics["train/samples"]
    left = metrics["speed/run_seconds"] - trained - _start_seconds(run)
    return max(0.0, left) / max(1, validated_samples(run.config))


def _start_seconds(run: Timed) -> float:
    """The first step's extra. (The set-up's seconds hold the validation before training, so they are not taken.)"""
    return run.metrics.get("speed/start_up_seconds", 0.0)


def _is_timed(run: Timed) -> bool:
    needed = ("speed/seconds_per_sample", "speed/run_seconds", "train/samples")
    return all(math.isfinite(run.metrics.get(name, math.nan)) for name in needed)


def _same_kind(config: RunConfig, compute: Compute, run: Timed) -> bool:
    """A CPU's seconds say nothing of a GPU's, nor the other way round."""
    return config.compute == run.config.compute or bool(compute.gpu) == run.on_gpu


def _likeness(config: RunConfig, other: RunConfig) -> int | None:
    if any(getattr(config, knob) != getattr(other, knob) for knob in _ALIKE):
        return None
    agree = [bool(getattr(config, knob) == getattr(other, knob)) for knob in _NEAR]
    return sum(agree) + 2 * (config.compute == other.compute)
