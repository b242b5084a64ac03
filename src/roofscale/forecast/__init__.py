"""Forecasts of a run's memory, time and cost, from measured runs and traced training steps."""

from typing import Any


def gpu(step: Any, compute: str = "ml.g5.xlarge") -> Any:
    """Return the ``GpuForecaster`` of a ``TrainingStep`` on a compute: ``.forecast(16)``, ``.largest_batch()``.

    Raises:
        ConfigError: the compute is not known or has no GPU, or the GPU does not support the precision.
    """
    from roofscale import compute as computes
    from roofscale.forecast.gpu_memory import GpuForecaster  # imports PyTorch

    return GpuForecaster.of_step(step, computes.get(compute))
