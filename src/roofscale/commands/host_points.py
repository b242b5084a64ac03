"""The points that a forecast of host memory stands on: runs on record, and short probes run now."""

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from roofscale import compute
from roofscale.commands.run import settle_data
from roofscale.compute import Compute
from roofscale.config import RunConfig
from roofscale.errors import ConfigError, RecordError, RoofscaleError
from roofscale.files import read_json
from roofscale.forecast.host_memory import MemoryProfile, PeakObservation
from roofscale.forecast.probes import initial_probes
from roofscale.measurement import Measurement, Outcome
from roofscale.phases.history import judged_runs, read_config
from roofscale.report.console import ProgressBar
from roofscale.runners import registry
from roofscale.runners.local import MEASUREMENT, LocalRunner
from roofscale.train import malloc

KindOf = Callable[[RunConfig, Compute], MemoryProfile]
# What auto comes to on every instance without a GPU in compute.yaml: these CPUs (Skylake, Cascade Lake) have neither
# AVX512-BF16 nor AMX.
_PRECISION_THERE = "fp32"
_LEFT_OUT = {"ruled_out_by", "retry_of"}  # tags of runs that were never made, or made to recover


class Stopped(Exception):
    """Somebody asked a probe to stop."""


def kind_for(runner: str) -> KindOf:
    """How to tell the kind of a config as a runner runs it.

    Raises:
        ConfigError: SageMaker's settings are lacking or wrong.
    """
    return kind_here if registry.runs_on_this_machine(runner) else kind_there


def kind_here(config: RunConfig, size: Compute) -> MemoryProfile:
    """The kind of a config as this machine would run it.

    Raises:
        ConfigError: it would train on a GPU, or in several processes.
    """
    _require_one_cpu(config, size)
    from roofscale.train import device  # imports torch, which a launcher of jobs does without

    where = device.select_device(config)
    if where.device.type != "cpu":
        raise ConfigError(
            "this machine trains on its GPU, and a forecast of host memory is of training on a CPU. Hide the GPU: "
            "CUDA_VISIBLE_DEVICES= roofscale forecast host"
        )
    return MemoryProfile.of(
        config, where.precision, config.threads or compute.resource_limits(size).cores, malloc.allocator_settings()
    )


def kind_there(config: RunConfig, size: Compute) -> MemoryProfile:
    """The kind of a config as a job on that instance runs it, whatever this machine computes natively.

    Raises:
        ConfigError: it would train on a GPU, or in several processes.
    """
    _require_one_cpu(config, size)
    return MemoryProfile.of(config, _PRECISION_THERE if config.precision == "auto" else config.precision,
                   config.threads or size.vcpus)  # fmt: skip


def _require_one_cpu(config: RunConfig, size: Compute) -> None:
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


def recorded_points() -> list[PeakObservation]:
    """The peaks of all judged runs on the tracking server that ended well on a CPU."""
    found = []
    for run in (run for phase in range(1, 6) for run in judged_runs(phase)):
        tags, metrics = run.tags, run.metrics
        sound = tags.get("outcome") == Outcome.OK and tags.get("device") == "cpu" and not _LEFT_OUT & tags.keys()
        if sound and "memory/peak_mib" in metrics:
            config = read_config(run)
            copied = metrics.get("memory/copied_mib", math.nan)
            found.append(
                PeakObservation(
                    config, MemoryProfile.of_run(config, tags), metrics["memory/peak_mib"], run.run_id, copied
                )
            )
    return found


@dataclass(frozen=True)
class Probes:
    """Short runs of one kind: each has a folder named after its fingerprint, and is never run twice."""

    folder: Path
    kind: MemoryProfile

    def lacking(self, config: RunConfig, points: Sequence[PeakObservation]) -> list[RunConfig]:
        """The probes that the forecast of ``config`` lacks beside these points."""
        used = [point.config for point in points if point.kind == self.kind and point.is_informative]
        sizes = {(one.batch_size, one.num_workers) for one in used}
        wanted = (one for one in initial_probes(config) if (one.batch_size, one.num_workers) not in sizes)
        return [one for one in wanted if not self._ran_out(one)]

    def make(self, configs: Sequence[RunConfig], cache: Path, out: Console) -> None:
        """Run probes, one after the other, with a bar for each.

        Raises:
            Stopped: on Ctrl-C; those before are kept.
            RoofscaleError: a probe failed otherwise than by running out of memory.
        """
        for place, config in enumerate(settle_data(configs, cache, out) if configs else (), 1):
            self._run(config, f"probe {place} of {len(configs)}", out)

    def points(self) -> list[PeakObservation]:
        """What the probes have measured; those that ran out of memory have no peak of their own."""
        found = []
        for file in sorted(self.folder.glob(f"*/{MEASUREMENT}")):
            measured = _measured(file)
            if measured and measured.outcome is Outcome.OK and measured.facts["device"] == "cpu":
                config = RunConfig().with_overrides(read_json(file.with_name("config.json")))
                kind = MemoryProfile.of_run(config, measured.facts)
                peak, copied = measured.metric("memory/peak_mib"), measured.metric("memory/copied_mib")
                found.append(PeakObservation(config, kind, peak, str(file.parent), copied))
        return found

    def ran_out(self, config: RunConfig) -> list[RunConfig]:
        """The probes for ``config`` that its compute had too little memory for."""
        return [one for one in initial_probes(config) if self._ran_out(one)]

    def _ran_out(self, config: RunConfig) -> bool:
        measured = _measured(self.folder / config.fingerprint / MEASUREMENT)
        return measured is not None and measured.outcome is Outcome.HOST_OOM

    def _run(self, config: RunConfig, name: str, out: Console) -> None:
        folder = self.folder / config.fingerprint
        shutil.rmtree(folder, ignore_errors=True)  # one that was stopped half way would go on, and take fewer steps
        said = f"{name}: batch_size={config.batch_size} num_workers={config.num_workers}"
        measured = LocalRunner(folder, ProgressBar(said))(config)
        if measured.outcome is Outcome.INTERRUPTED:
            raise Stopped
        if measured.outcome is Outcome.HOST_OOM:
            out.print(f"{said} ran out of memory ({escape(measured.detail)}), so it has no peak to go by.")
        elif measured.outcome is not Outcome.OK:
            raise RoofscaleError(f"{said} ended as {measured.outcome}: {measured.detail} See {folder}/stderr.log.")
        for large in (*folder.glob("*.pt"), *folder.glob("*.npz")):
            large.unlink()


def _measured(file: Path) -> Measurement | None:
    """What a probe has measured; None where it is still to be made, or its record is damaged: it is made anew."""
    try:
        return Measurement.load(file)
    except (FileNotFoundError, RecordError):
        return None
