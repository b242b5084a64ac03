"""Probes: the short runs that a forecast of host memory is fitted to, and the recorded peaks in addition to them."""

import dataclasses
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from roofscale import compute
from roofscale.compute import Compute
from roofscale.config import RunConfig
from roofscale.data.sources import resolve_data
from roofscale.errors import ConfigError, RecordError, RoofscaleError
from roofscale.files import read_json
from roofscale.forecast.host_memory import FURTHEST_BATCH, FURTHEST_WORKERS, MemoryProfile, PeakObservation
from roofscale.invocation import PHASES
from roofscale.measurement import Measurement, Outcome
from roofscale.runners import RunInterrupted, registry
from roofscale.runners.local import MEASUREMENT, LocalRunner
from roofscale.runners.supervise import Listener
from roofscale.tracking.history import judged_runs, read_config
from roofscale.train import malloc


def initial_probes(config: RunConfig) -> tuple[RunConfig, ...]:
    """Return the runs that a config is forecast from: three batch sizes with two worker counts, smallest first."""
    least = config.least_batch
    batches = (least, least + 1, max(least + 3, math.ceil(config.batch_size / FURTHEST_BATCH)))
    workers = (0, max(2, math.ceil(config.num_workers / FURTHEST_WORKERS)))
    return tuple(probe_config(config, size, count) for size in batches for count in workers)


def probe_config(config: RunConfig, batch_size: int, num_workers: int) -> RunConfig:
    """Return a run of three steps, the shortest with the peak memory of a long one.

    The optimiser allocates its state at the end of the first step, and a run of three steps ends with more of them on a
    cached batch.
    """
    return dataclasses.replace(
        config,
        datasets=config.datasets[:1],
        batch_size=batch_size,
        num_workers=num_workers,
        max_samples=3 * batch_size,
        val_samples=2,
        epochs=1,
    )


ProfileOf = Callable[[RunConfig, Compute], MemoryProfile]
# Of precision=auto on every instance without a GPU in compute.yaml: these CPUs (Skylake, Cascade Lake) have neither
# AVX512-BF16 nor AMX.
_INSTANCE_PRECISION = "fp32"
_LEFT_OUT = {"ruled_out_by", "retry_of"}  # tags of runs that were not made, or that are fallbacks


def profile_for(runner: str) -> ProfileOf:
    """Return the function that profiles a config as the runner runs it.

    Raises:
        ConfigError: SageMaker's settings are lacking or wrong.
    """
    return local_profile if registry.runs_on_this_machine(runner) else instance_profile


def local_profile(config: RunConfig, size: Compute) -> MemoryProfile:
    """Return the memory profile of a config on this machine.

    Raises:
        ConfigError: it would train on a GPU, or in several processes.
    """
    require_one_cpu(config, size)
    from roofscale.train import device  # imports PyTorch, which a launcher of jobs does not need

    where = device.select_device(config)
    if where.device.type != "cpu":
        raise ConfigError(
            "this machine trains on its GPU, and a forecast of host memory is of training on a CPU. Hide the GPU: "
            "CUDA_VISIBLE_DEVICES= roofscale forecast host"
        )
    return MemoryProfile.of(
        config, where.precision, config.threads or compute.resource_limits(size).cores, malloc.training_settings()
    )


def instance_profile(config: RunConfig, size: Compute) -> MemoryProfile:
    """Return the memory profile of a config in a job on an instance; this machine's CPU does not matter.

    Raises:
        ConfigError: it would train on a GPU, or in several processes.
    """
    require_one_cpu(config, size)
    return MemoryProfile.of(config, _INSTANCE_PRECISION if config.precision == "auto" else config.precision,
                   config.threads or size.vcpus, malloc.DEFAULT_SETTINGS)  # fmt: skip


def require_one_cpu(config: RunConfig, size: Compute) -> None:
    """Check that a run trains on the CPU in one process, as all that is measured for a forecast of host memory.

    Raises:
        ConfigError: it trains on a GPU, or in several processes.
    """
    if config.world_size > 1:
        raise ConfigError(
            f"processes={config.processes} instance_count={config.instance_count}: host memory is forecast for one "
            "process. Ask with processes=1 instance_count=1, and count the answer once for each process of a machine."
        )
    if size.gpu:
        raise ConfigError(
            f"compute={size.name}: trains on its GPU ({size.gpu}), and what that takes of the host was not measured. "
            "Choose a compute without one, such as ml.m5.xlarge, or ask for the GPU's memory: roofscale forecast gpu."
        )


def peak_observations() -> list[PeakObservation]:
    """Return the peaks of all judged runs on the tracking server that ended well on a CPU."""
    return [
        PeakObservation.of_run(read_config(run), run.tags, run.metrics, run.run_id)
        for run in judged_runs(*PHASES)
        if run.tags.get("outcome") == Outcome.OK
        and run.tags.get("device") == "cpu"
        and "memory/peak_mib" in run.metrics
        and not _LEFT_OUT & run.tags.keys()
    ]


def probe_observations(folder: Path) -> list[PeakObservation]:
    """Return the peaks of the probes in a folder, of any memory profile; a probe that ran out of memory has none."""
    observations = []
    for file in sorted(folder.glob(f"*/{MEASUREMENT}")):
        measured = _measured(file)
        if measured and measured.outcome is Outcome.OK and measured.facts["device"] == "cpu":
            config = RunConfig().with_overrides(read_json(file.with_name("config.json")))
            observations.append(PeakObservation.of_run(config, measured.facts, measured.metrics, str(file.parent)))
    return observations


@dataclass(frozen=True)
class Probes:
    """Probes of one memory profile: each has a folder named after its fingerprint, and is never run twice."""

    folder: Path
    kind: MemoryProfile

    def missing(self, config: RunConfig, points: Sequence[PeakObservation]) -> list[RunConfig]:
        """Return the probes that a forecast of ``config`` needs in addition to these observations."""
        used = [point.config for point in points if point.kind == self.kind and point.is_informative]
        sizes = {(one.batch_size, one.num_workers) for one in used}
        wanted = (one for one in initial_probes(config) if (one.batch_size, one.num_workers) not in sizes)
        return [one for one in wanted if not self._ran_out(one)]

    def run(
        self,
        configs: Sequence[RunConfig],
        cache: Path,
        say: Callable[[str], None],
        make_listener: Callable[[str], Listener],
    ) -> None:
        """Run probes, one after the other, with a listener for each.

        Raises:
            RunInterrupted: on Ctrl-C; the probes before are kept.
            RoofscaleError: a probe failed for another reason than memory.
        """
        for number, config in enumerate(resolve_data(configs, cache, say) if configs else (), 1):
            self._run(config, f"probe {number} of {len(configs)}", say, make_listener)

    def points(self) -> list[PeakObservation]:
        """Return the peaks of the probes made so far, see ``probe_observations``."""
        return probe_observations(self.folder)

    def out_of_memory(self, config: RunConfig) -> list[RunConfig]:
        """Return the probes for ``config`` that its compute had too little memory for."""
        return [one for one in initial_probes(config) if self._ran_out(one)]

    def _ran_out(self, config: RunConfig) -> bool:
        measured = _measured(self.folder / config.fingerprint / MEASUREMENT)
        return measured is not None and measured.outcome is Outcome.HOST_OOM

    def _run(
        self, config: RunConfig, name: str, say: Callable[[str], None], make_listener: Callable[[str], Listener]
    ) -> None:
        folder = self.folder / config.fingerprint
        shutil.rmtree(folder, ignore_errors=True)  # an interrupted probe would resume, with fewer steps to measure
        said = f"{name}: batch_size={config.batch_size} num_workers={config.num_workers}"
        measured = LocalRunner(folder, make_listener(said))(config)
        if measured.outcome is Outcome.INTERRUPTED:
            raise RunInterrupted(f"{said}: {measured.detail}")
        if measured.outcome is Outcome.HOST_OOM:
            say(f"{said} ran out of memory ({measured.detail}), so it has no peak to use.")
        elif measured.outcome is not Outcome.OK:
            raise RoofscaleError(f"{said} ended as {measured.outcome}: {measured.detail} See {folder}/stderr.log.")
        for large in (*folder.glob("*.pt"), *folder.glob("*.npz")):
            large.unlink()


def _measured(file: Path) -> Measurement | None:
    """Read the measurement of a probe; None if there is none or it is damaged, so that the probe is run again."""
    try:
        return Measurement.load(file)
    except (FileNotFoundError, RecordError):
        return None
