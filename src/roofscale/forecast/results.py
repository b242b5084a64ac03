"""Result of a GPU memory forecast (``forecast.gpu_memory``), importable without PyTorch."""

from collections.abc import Mapping
from dataclasses import dataclass

from roofscale.config import RunConfig
from roofscale.measurement import forecast_metrics
from roofscale.memory_margin import MEMORY_MARGIN, MemoryFit, memory_fit


@dataclass(frozen=True)
class GpuForecast:
    """Forecast GPU memory of one config; all sizes in MiB."""

    config: RunConfig
    precision: str  # as resolved for this GPU
    usable_mib: float  # of one GPU
    allocated_mib: float  # peak of tensors and workspaces
    reserved_mib: float  # peak of the allocator's segments; a run logs its own as gpu/memory_peak_mib
    context_mib: float  # CUDA context and loaded kernels
    spread: float  # half width of the interval, as a share of its centre
    calibrated_on: str  # empty if never compared with a GPU
    kinds: Mapping[str, float]  # memory alive at the peak by kind; sums up to ``allocated_mib``
    modules: Mapping[str, float]  # activations among it, by the module that allocated them

    @property
    def total_mib(self) -> float:
        """Reserved memory plus the CUDA context."""
        return self.reserved_mib + self.context_mib

    @property
    def low_mib(self) -> float:
        """Lower end of the interval."""
        return self.total_mib * (1 - self.spread)

    @property
    def high_mib(self) -> float:
        """Upper end of the interval."""
        return self.total_mib * (1 + self.spread)

    @property
    def share(self) -> float:
        """Total as a share of the GPU's usable memory."""
        return self.total_mib / self.usable_mib

    def fit(self, max_share: float = MEMORY_MARGIN) -> MemoryFit:
        """Compare the interval with ``max_share`` of the usable memory."""
        return memory_fit(self.low_mib, self.high_mib, self.usable_mib, max_share)

    def metrics(self) -> dict[str, float]:
        """Return the forecast metrics that a run logs before it starts, to compare with its measured peak."""
        mib = self.reserved_mib
        return forecast_metrics("gpu_peak_mib", mib, mib * (1 - self.spread), mib * (1 + self.spread))
