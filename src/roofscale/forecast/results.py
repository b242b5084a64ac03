"""Result of a GPU memory forecast (``forecast.gpu_memory``), importable without PyTorch."""

from collections.abc import Mapping
from dataclasses import dataclass

from roofscale.compute import GPU_EXAMPLE, Compute
from roofscale.errors import ConfigError
from roofscale.measurement import forecast_metrics
from roofscale.memory_margin import MEMORY_MARGIN, MemoryFit, memory_fit


@dataclass(frozen=True)
class GpuForecast:
    """Forecast GPU memory of one training step; all sizes in MiB.

    The verdict stands on what must be held at once. The allocator gives its cache back before it gives up, so reserved
    memory may exceed the GPU's without harm.
    """

    name: str  # of the model
    batch: int
    precision: str  # as resolved for this GPU
    usable_mib: float  # of one GPU
    allocated_mib: float  # peak of tensors and workspaces
    reserved_mib: float  # peak of the allocator's segments on a large GPU; a run logs its own as gpu/memory_peak_mib
    context_mib: float  # CUDA context and loaded kernels
    gaps_mib: float  # free memory between blocks that cannot be given back
    interval: tuple[float, float]  # ends of the 90 % interval, as shares of the allocated peak
    evidence: str  # measurements that the interval stands on
    kinds: Mapping[str, float]  # memory alive at the peak by kind; sums up to ``allocated_mib``
    modules: Mapping[str, float]  # activations among it, by the module that allocated them

    @property
    def total_mib(self) -> float:
        """Memory that must be held at once."""
        return self._total(1.0)

    @property
    def low_mib(self) -> float:
        """Lower end of the interval of ``total_mib``."""
        return self._total(self.interval[0])

    @property
    def high_mib(self) -> float:
        """Upper end of the interval of ``total_mib``."""
        return self._total(self.interval[1])

    def _total(self, factor: float) -> float:
        return factor * (self.allocated_mib + self.gaps_mib) + self.context_mib

    @property
    def share(self) -> float:
        """Total as a share of the GPU's usable memory."""
        return self.total_mib / self.usable_mib

    def fit(self, max_share: float = MEMORY_MARGIN) -> MemoryFit:
        """Compare the interval with ``max_share`` of the usable memory."""
        return memory_fit(self.low_mib, self.high_mib, self.usable_mib, max_share)

    def metrics(self) -> dict[str, float]:
        """Return the forecast metrics that a run logs before it starts, to compare with its measured reserved peak."""
        mib, (low, high) = self.reserved_mib, self.interval
        return forecast_metrics("gpu_peak_mib", mib, mib * low, mib * high)


def require_gpu(where: Compute) -> None:
    """Check that a compute has a GPU.

    Raises:
        ConfigError: it has none.
    """
    if not where.gpu:
        raise ConfigError(
            f"compute={where.name}: it has no GPU to forecast; name one that has, such as --compute {GPU_EXAMPLE}."
        )
