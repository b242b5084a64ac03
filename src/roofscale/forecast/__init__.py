"""Forecasts of a run's memory, time and cost, from measured runs and traced training steps."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from roofscale.forecast.gpu_memory import StepForecaster
    from roofscale.forecast.training_step import TrainingStep


def gpu(step: "TrainingStep", compute: str = "ml.g5.xlarge") -> "StepForecaster":
    """Return the forecaster of any model's training step on a compute: ``.forecast(16)``, ``.largest_batch()``.

    Args:
        step: from ``training_step.TrainingStep.of``.
        compute: name of a compute that has a GPU.

    Raises:
        ConfigError: the compute is not known or has no GPU, or the GPU does not support the precision.
    """
    from roofscale import compute as computes
    from roofscale.forecast.gpu_memory import StepForecaster  # imports PyTorch

    return StepForecaster(step, computes.get(compute))
