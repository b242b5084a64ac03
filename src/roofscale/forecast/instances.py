"""Comparison of all instances with a GPU and a price for one run: memory, time, dollars, data stall, host memory."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from roofscale import compute
from roofscale.compute import Compute
from roofscale.config import RunConfig
from roofscale.errors import ConfigError
from roofscale.forecast import history
from roofscale.forecast.host_memory import shared_mib
from roofscale.forecast.results import GpuForecast
from roofscale.forecast.run_time import training_samples
from roofscale.forecast.time_scaling import TimingRecord
from roofscale.memory_margin import MemoryFit
from roofscale.stats.intervals import Interval

# Milliseconds of one core that a sample of 1024 px costs a loader process: the medians over data sets and rounds
# without compressed strips (benchmarks/results/2026-11-25/sample_cost.json). Other sizes are scaled by area.
_LOADER_MS = {"light": 47.0, "heavy": 85.0}
_LOADER_SIDE = 1024


@dataclass(frozen=True)
class Offer:
    """One instance for a run on all samples, with every GPU of it and a worker on each further vCPU."""

    compute: str
    gpu: str
    config: RunConfig  # batch of each GPU and micro-batches, with the same effective batch
    memory: GpuForecast
    largest_batch: int  # of each GPU that fits for sure
    seconds: Interval  # of the run
    usd: Interval
    spot_usd: float | None  # None if no spot job on this instance is on record
    stall: tuple[float, float]  # data stall: a core for each vCPU, and for every two
    shared_mib: float  # host memory of the batches in flight
    host_mib: float  # of the instance

    @property
    def fits(self) -> bool:
        """Whether GPU and host memory suffice for sure."""
        # Linux gives /dev/shm, which holds these batches, half of the memory.
        return self.memory.fit() is MemoryFit.FITS and self.shared_mib < self.host_mib / 2


def offers(config: RunConfig, runs: Sequence[TimingRecord] = ()) -> list[Offer]:
    """Return an offer of each instance with a GPU and a price, those that fit first, the cheapest first.

    The effective batch is the config's. A forecast of time prefers recorded runs to its estimate.

    Raises:
        ConfigError: the model cannot be built or traced.
    """
    sizes = (compute.get(name) for name in compute.names() if name != compute.LOCAL)
    found = [_offer(config, size, runs) for size in sizes if size.gpu and size.usd_per_hour]
    return sorted(found, key=lambda offer: (not offer.fits, offer.usd.centre))


def _offer(config: RunConfig, size: Compute, runs: Sequence[TimingRecord]) -> Offer:
    from roofscale.forecast.gpu_memory import GpuForecaster, smallest_split  # imports PyTorch

    config = _on_all_gpus(config, size)
    forecaster = GpuForecaster.of_run(config, size)
    memory, largest = forecaster.forecast(config.batch_size), forecaster.largest_batch()
    if memory.fit() is not MemoryFit.FITS and (split := smallest_split(config, forecaster)):
        memory = split.forecast(config.batch_size)
        config = config.with_overrides({"micro_batches": split.parts})
    time = history.require_time_forecast(config, runs)
    samples = training_samples(config, history.dataset_sizes_cached(config).samples)
    fewest, most = (_supply(config, size, cores) for cores in (size.vcpus // 2, size.vcpus))
    run, wanted = time.run_seconds, 1 / time.seconds_per_sample
    seconds = Interval(  # of computing or of loading, whichever is slower
        max(run.centre, samples / math.sqrt(fewest * most)),
        max(run.low, samples / most),
        max(run.high, samples / fewest),
    )
    usd = seconds.scaled((size.usd_per_hour or 0.0) / 3600)
    saving = _spot_saving(size.name, runs)
    return Offer(
        compute=size.name,
        gpu=f"{size.gpu_count} x {size.gpu}",
        config=config,
        memory=memory,
        largest_batch=largest,
        seconds=seconds,
        usd=usd,
        spot_usd=None if saving is None else usd.centre * (1 - saving),
        stall=(max(0.0, 1 - most / wanted), max(0.0, 1 - fewest / wanted)),
        shared_mib=size.gpu_count * shared_mib(config),
        host_mib=size.memory_gib * 1024,
    )


def _on_all_gpus(config: RunConfig, size: Compute) -> RunConfig:
    """Return the config on all samples with the same effective batch, on every GPU and vCPU of an instance."""
    native = config.precision != "bf16" or size.gpu not in ("T4", "V100")
    return history.with_all_samples(config).with_overrides(
        {
            "compute": size.name,
            "batch_size": math.ceil(config.batch_size * config.world_size / size.gpu_count),
            "processes": size.gpu_count,
            "instance_count": 1,
            "num_workers": max(1, (size.vcpus - size.gpu_count) // size.gpu_count),
            "precision": config.precision if native else "auto",  # their half precision is fp16
        }
    )


def _supply(config: RunConfig, size: Compute, cores: int) -> float:
    """Return the samples/s that the loaders deliver, with one core for each training process."""
    ms = _LOADER_MS.get(config.augment, _LOADER_MS["light"]) * (config.image_size / _LOADER_SIDE) ** 2
    return 1000 * max(1, cores - size.gpu_count) / ms


def _spot_saving(name: str, runs: Sequence[TimingRecord]) -> float | None:
    """Return the median saving of the spot jobs on record on an instance; None if there are none."""
    known = [run.metrics.get("cost/spot_saving") for run in runs if run.config.compute == name]
    savings = [saving for saving in known if saving is not None]
    return statistics.median(savings) if savings else None


def choose(found: Sequence[Offer], hours: float = math.inf, usd: float = math.inf) -> list[Offer]:
    """Return the offers whose expected hours and dollars are within both limits.

    Raises:
        ConfigError: a limit is not positive.
    """
    if not (hours > 0 and usd > 0):
        raise ConfigError(f"--by {hours:g}h --budget {usd:g}: expected positive numbers, such as --by 24h --budget 50.")
    return [offer for offer in found if offer.seconds.centre <= 3600 * hours and offer.usd.centre <= usd]
