"""Memory guard of a search: skips trials that are known or forecast to exceed their memory margin."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

from scipy import stats

from roofscale import compute
from roofscale.config import RunConfig
from roofscale.errors import ConfigError
from roofscale.forecast import host_memory
from roofscale.forecast.host_memory import HostModel, MemoryProfile, PeakObservation
from roofscale.forecast.results import GpuForecast
from roofscale.measurement import Outcome, forecast_metrics
from roofscale.memory_margin import MEMORY_MARGIN, MemoryFit
from roofscale.phases.fallback import needs_at_least_memory_of
from roofscale.phases.search.trial_result import SKIPPED, TrialResult
from roofscale.stats.intervals import CONFIDENCE


@dataclass(frozen=True)
class MemoryBudget:
    """Memory of the compute, and the peaks measured on it before the search."""

    memory_mib: float  # of the host
    shm_free_mib: float | None = None  # None: unknown, and not limited
    kind: MemoryProfile | None = None  # of training on the host; None on a GPU, where the GPU's memory decides
    points: tuple[PeakObservation, ...] = ()  # peaks of host memory on record
    max_share: float = MEMORY_MARGIN  # of each memory that a run may take


@dataclass(frozen=True)
class MemoryGuard:
    """Memory of a trial before it runs: known from other trials that exceeded their margin, or forecast."""

    budget: MemoryBudget
    tried: Sequence[TrialResult]

    def known_too_large(self, config: RunConfig) -> TrialResult | None:
        """Return the result of a config that need not be run, with the reason; None if it must be run."""
        return self._skip_by_trials(config) or self._skip_by_host_forecast(config) or self._skip_by_gpu_forecast(config)

    def can_forecast(self, config: RunConfig) -> bool:
        """Return whether the host memory of a config can be forecast from what was measured so far."""
        if self._model is None:
            return False
        try:
            self._model.forecast(config, self.budget.memory_mib)
        except ConfigError:
            return False
        return True

    def probability_within(self, config: RunConfig) -> float:
        """Return the forecast probability that a config stays within its memory margin; 1 without a forecast."""
        return min(self._within_host(config), _within_gpu(config, self.budget.max_share))

    def forecast_metrics(self, config: RunConfig) -> dict[str, float]:
        """Return the metrics ``forecast/...`` of a trial: the memory that a whole training would take."""
        metrics: dict[str, float] = {}
        if self.can_forecast(config):
            assert self._model
            peak = self._model.peak(config)
            metrics |= forecast_metrics("host_peak_mib", peak.mib, peak.low_mib, peak.high_mib)
        if gpu := _gpu_forecast(config):
            metrics |= gpu.metrics()
        return metrics

    def _within_host(self, config: RunConfig) -> float:
        if self._model is None:
            return 1.0
        peak = self._model.peak(config)
        # The interval is a Student's t, scaled (Draper and Smith, see ``forecast.host_memory``).
        scale = (peak.high_mib - peak.mib) / stats.t.ppf((1 + CONFIDENCE) / 2, self._model.freedom)
        limit = self.budget.max_share * self.budget.memory_mib
        return float(stats.t.cdf((limit - peak.mib) / scale, self._model.freedom))

    def _skip_by_trials(self, config: RunConfig) -> TrialResult | None:
        """Skip a config at least as large as one that exceeded its margin: memory grows with every searched knob."""
        for result in self.tried:
            if result.over_margin > 0 and result.outcome != SKIPPED and needs_at_least_memory_of(config, result.config):
                knobs = f"batch_size={result.config.batch_size} num_workers={result.config.num_workers}"
                what = "ran out of memory" if result.pace is None else f"took {result.share:.0%} of the memory"
                return self._skipped(config, result.share, f"at least as large as {knobs}, which {what}")
        return None

    def _skip_by_host_forecast(self, config: RunConfig) -> TrialResult | None:
        if self._model is None:
            return None
        budget = self.budget
        try:
            forecast = self._model.forecast(config, budget.memory_mib, budget.shm_free_mib, budget.max_share)
        except ConfigError:  # too far from the measured configs to be forecast, so it must be run
            return None
        if forecast.fit is not MemoryFit.TOO_LARGE:
            return None
        peak, shared = forecast.peak, forecast.parts.shared
        if peak.low_mib > budget.max_share * budget.memory_mib or not budget.shm_free_mib:
            why = (
                f"forecast {peak.mib:,.0f} MiB ({peak.low_mib:,.0f} to {peak.high_mib:,.0f}), over "
                f"{budget.max_share:.0%} of {budget.memory_mib:,.0f}"
            )
            return self._skipped(config, peak.mib / budget.memory_mib, why)
        why = f"needs up to {shared:,.0f} MiB of shared memory, of which {budget.shm_free_mib:,.0f} are free"
        return self._skipped(config, shared / budget.shm_free_mib, why)

    def _skip_by_gpu_forecast(self, config: RunConfig) -> TrialResult | None:
        forecast = _gpu_forecast(config)
        if forecast is None or forecast.fit(self.budget.max_share) is not MemoryFit.TOO_LARGE:
            return None
        why = (
            f"forecast {forecast.total_mib:,.0f} MiB of GPU memory ({forecast.low_mib:,.0f} to "
            f"{forecast.high_mib:,.0f}), over {self.budget.max_share:.0%} of {forecast.usable_mib:,.0f}"
        )
        return self._skipped(config, forecast.share, why)

    def _skipped(self, config: RunConfig, share: float, why: str) -> TrialResult:
        return TrialResult(config, SKIPPED, share, why=why, max_share=self.budget.max_share)

    @cached_property
    def _model(self) -> HostModel | None:
        kind = self.budget.kind
        if kind is None:
            return None
        try:
            return host_memory.fit_host_model(kind, [*self.budget.points, *_points(kind, self.tried)])
        except ConfigError:  # too few peaks were measured so far
            return None


def _gpu_forecast(config: RunConfig) -> GpuForecast | None:
    """Return the forecast GPU memory of a config; None without a GPU.

    Loader processes take no GPU memory, so their knobs are fixed to share one cached forecast.
    """
    return _gpu_forecast_of(dataclasses.replace(config, num_workers=0, prefetch_factor=1))


@cache
def _gpu_forecast_of(config: RunConfig) -> GpuForecast | None:
    from roofscale.forecast.gpu_memory import forecast_gpu_memory  # imports PyTorch

    return forecast_gpu_memory(config, compute.get(config.compute))


def _within_gpu(config: RunConfig, max_share: float) -> float:
    forecast = _gpu_forecast(config)
    if forecast is None:
        return 1.0
    # The half width of the forecast interval, taken as that of a normal distribution.
    deviation = (forecast.high_mib - forecast.total_mib) / stats.norm.ppf((1 + CONFIDENCE) / 2)
    return float(stats.norm.cdf((max_share * forecast.usable_mib - forecast.total_mib) / deviation))


def _points(kind: MemoryProfile, tried: Iterable[TrialResult]) -> Iterable[PeakObservation]:
    """Yield the trials' own peaks."""
    for result in tried:
        if result.outcome == Outcome.OK and result.samples and math.isfinite(result.peak_mib):
            yield PeakObservation(result.config, kind, result.peak_mib, result.run_id, result.copied_mib)
