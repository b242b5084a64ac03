"""What is foreseen of a run's GPU memory, as ``forecast.gpu_memory`` finds it; read without PyTorch."""

from collections.abc import Mapping
from dataclasses import dataclass

from roofscale.config import RunConfig
from roofscale.measurement import forecast_metrics
from roofscale.memory_margin import MEMORY_MARGIN, MemoryFit, memory_fit


@dataclass(frozen=True)
class GpuForecast:
    """What one config would take of a GPU; all sizes in MiB."""

    config: RunConfig
    precision: str  # as resolved for this GPU
    usable_mib: float  # of one GPU
    allocated_mib: float  # peak of what tensors and workspaces hold
    reserved_mib: float  # peak of what the allocator has fetched for them; a run logs its own as gpu/memory_peak_mib
    context_mib: float
    spread: float
    calibrated_on: str
    kinds: Mapping[str, float]  # what lives at the peak, by kind; sums up to ``allocated_mib``
    modules: Mapping[str, float]  # the activations among it, by the module that made them

    @property
    def total_mib(self) -> float:
        """Reserved memory and the context."""
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
        """Of the GPU's usable memory."""
        return self.total_mib / self.usable_mib

    def fit(self, max_share: float = MEMORY_MARGIN) -> MemoryFit:
        """Whether it stays within ``max_share`` of what is usable."""
        return memory_fit(self.low_mib, self.high_mib, self.usable_mib, max_share)

    def metrics(self) -> dict[str, float]:
        """What a run logs of this beforehand, to be held against what it reports of itself."""
        mib = self.reserved_mib
        return forecast_metrics("gpu_peak_mib", mib, mib * (1 - self.spread), mib * (1 + self.spread))
