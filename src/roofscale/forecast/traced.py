"""What only a trace tells of a run, asked without PyTorch: where this process does not hold it, another one traces."""

from typing import TYPE_CHECKING

from roofscale.compute import Compute
from roofscale.config import RunConfig
from roofscale.forecast.gpu_forecast import GpuForecast
from roofscale.runners.beside import beside

if TYPE_CHECKING:
    from roofscale.forecast.roofline import StepEstimate


@beside
def tensors_mib(config: RunConfig, precision: str, malloc: str, batch: int) -> float:
    """See ``forecast.tensors``."""
    from roofscale.forecast import tensors

    return tensors.tensors_mib(config, precision, malloc, batch)


@beside
def gpu_forecast(config: RunConfig, where: Compute) -> GpuForecast | None:
    """See ``forecast.gpu.foresee``."""
    from roofscale.forecast import gpu

    return gpu.foresee(config, where)


@beside
def step_estimate(config: RunConfig, where: Compute) -> "StepEstimate":
    """See ``forecast.gpu.foresee_step``."""
    from roofscale.forecast import gpu

    return gpu.foresee_step(config, where)
