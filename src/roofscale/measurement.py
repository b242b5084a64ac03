"""The measurement of a run, as plain data: its outcome, its curves, and one flat table of metrics.

The training process appends **events** (one JSON object a line) to ``events.jsonl`` in its run folder, and its runner
samples its resources from outside. ``runners`` joins both into a ``Measurement``, which is saved in the run folder and
logged to MLflow by ``tracking``. This module imports neither torch nor mlflow.
"""

import dataclasses
import enum
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from roofscale.config import DATASETS
from roofscale.files import read_record, write_json


class Outcome(enum.StrEnum):
    """How a run ended."""

    OK = "ok"
    CUDA_OOM = "cuda_oom"
    HOST_OOM = "host_oom"
    SHM_FULL = "shm_full"
    DIVERGED = "diverged"
    DATA_ERROR = "data_error"
    TIMEOUT = "timeout"
    INTERRUPTED = "interrupted"
    CRASHED = "crashed"


@dataclass(frozen=True)
class StepRecord:
    """One optimiser step."""

    step: int  # optimiser steps completed, this one included; the first is 1
    epoch: int  # pass over the data, from 0
    dataset: str  # of the batch's samples; several joined by '+' when mixed
    samples: int  # training samples seen, this batch included
    loss: float  # training loss of the batch
    grad_norm: float  # L2, before clipping
    lr: float  # learning rate of the step
    seconds: float  # wall time of the whole step, waiting included
    wait_seconds: float  # part of ``seconds`` spent waiting for the loader
    time: float  # epoch seconds (time.time) at the end of the step
    memory_mib: float = math.nan  # host memory of the process tree, of the sample nearest to ``time``


@dataclass(frozen=True)
class Validation:
    """One pass over one data set's validation samples."""

    step: int  # optimiser steps completed before it; 0 = before training
    epoch: int  # pass over the training data that it follows, from 0
    dataset: str
    sample_ids: tuple[str, ...]
    losses: tuple[float, ...]  # loss of each sample, in the order of the ids
    constant_losses: tuple[float, ...]  # loss of each sample under the best constant prediction (class priors)
    metrics: Mapping[str, float]  # 'loss', 'iou_roof', 'f1_roof', ..., 'iou' (mean over present channels)
    seconds: float  # wall time


@dataclass(frozen=True)
class MemoryPoint:
    """Host memory of the process tree at one moment."""

    time: float  # epoch seconds
    mib: float


@dataclass(frozen=True)
class ResourceSample:
    """Resource use: rates are averages since the previous sample; NaN if the system has no such counter."""

    time: float  # epoch seconds
    metrics: Mapping[str, float]  # names from METRICS


@dataclass(frozen=True)
class Measurement:
    """The measurement of one run, of every outcome; metrics that the run did not reach are NaN."""

    outcome: Outcome
    detail: str  # one line for the user: why the run ended so, and the remedy if it failed
    fingerprint: str  # of the run config
    steps: tuple[StepRecord, ...] = ()
    validations: tuple[Validation, ...] = ()
    memory: tuple[MemoryPoint, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)  # names from METRICS, or val/<data set>/<metric>
    facts: Mapping[str, str] = field(default_factory=dict)  # device, precision, memory source, data fingerprint, ...
    resources: tuple[ResourceSample, ...] = ()  # one every two seconds, fewer in a long run

    def metric(self, name: str) -> float:
        """Return a metric's value, NaN if the run has none."""
        return float(self.metrics.get(name, math.nan))

    @property
    def ended(self) -> float | None:
        """Return when the run was last measured, epoch seconds; None if it never was."""
        return max((row.time for rows in (self.steps, self.memory, self.resources) for row in rows), default=None)

    def save(self, file: Path) -> None:
        """Write as JSON, atomically: a reader finds the old file or the complete new one."""
        write_json(file, dataclasses.asdict(self))

    @classmethod
    def load(cls, file: Path) -> "Measurement":
        """Read a measurement that ``save`` wrote.

        Raises:
            RecordError: the file is damaged.
        """
        return read_record(file, cls._of)

    @classmethod
    def _of(cls, raw: dict[str, Any]) -> "Measurement":
        return cls(
            outcome=Outcome(raw["outcome"]),
            detail=raw["detail"],
            fingerprint=raw["fingerprint"],
            steps=tuple(StepRecord(**r) for r in raw["steps"]),
            validations=tuple(read_validation(r) for r in raw["validations"]),
            memory=tuple(MemoryPoint(**r) for r in raw["memory"]),
            metrics=raw["metrics"],
            facts=raw["facts"],
            resources=tuple(ResourceSample(**r) for r in raw.get("resources", ())),  # an older file has none
        )


def read_validation(raw: Mapping[str, Any]) -> Validation:
    """Build a validation from its JSON form, with lists converted back to tuples."""
    tuples = {key: tuple(raw[key]) for key in ("sample_ids", "losses", "constant_losses")}
    return Validation(**{**raw, **tuples})


@dataclass(frozen=True)
class MetricInfo:
    """A metric's unit and meaning, for tables, documents and the validation of phase files."""

    unit: str
    meaning: str


LOGGED_BY = "logged_by"  # fact of a job's measurement: the job itself, if the tracking server has all of its run
FORECAST = "forecast/"
# Quantities that are forecast before a run: the unit, and the metric that the forecast is compared with. Each is logged
# as centre, lower and upper end of its 90 % interval.
FORECAST_QUANTITIES = {
    "host_peak_mib": ("MiB", "memory/peak_mib"),
    "gpu_peak_mib": ("MiB", "gpu/memory_peak_mib"),
    "run_seconds": ("s", "speed/run_seconds"),
    "seconds_per_epoch": ("s", "speed/seconds_per_epoch"),
}
FIRST_PASS_ONLY = "first_pass_only"  # tag of a run too short to reach the memory peak that was forecast
_ENDS = {"": "", "_low": ", lower end of the interval", "_high": ", upper end of the interval"}

# All metric names but those of val/<data set>/<metric>. MLflow groups them by the part before the slash.
METRICS: Mapping[str, MetricInfo] = types.MappingProxyType(
    {
        "memory/peak_mib": MetricInfo(
            "MiB", "largest host memory of the process tree, reclaimable page cache left out"
        ),
        "memory/used_mib": MetricInfo("MiB", "host memory of the process tree at that moment; only over time"),
        "memory/share": MetricInfo("share", "memory/peak_mib over the compute's memory"),
        "memory/kernel_peak_mib": MetricInfo("MiB", "the kernel's own peak of the run's cgroup; counts page cache too"),
        "memory/workers_mib": MetricInfo("MiB", "loader processes' part at the peak"),
        "memory/copied_mib": MetricInfo(
            "MiB", "weights, gradients, optimiser state: loader processes forked once these are there keep a copy"
        ),
        "memory/shm_mib": MetricInfo("MiB", "largest use of shared memory (/dev/shm)"),
        "memory/shm_share": MetricInfo("share", "/dev/shm in use over its size, at its fullest, by all processes"),
        "memory/mib_per_sample": MetricInfo(
            "MiB", "peak less what was held before the first step, over the batch size"
        ),
        "memory/growth_mib_per_step": MetricInfo("MiB", "lasting growth of host memory a step (Theil-Sen slope)"),
        "speed/samples_per_s": MetricInfo("1/s", "training samples a second; each epoch's first step left out"),
        "speed/seconds_per_sample": MetricInfo("s", "seconds a training sample; each epoch's first step left out"),
        "speed/seconds_per_epoch": MetricInfo("s", "mean wall time of a training epoch, its start-up left out"),
        "speed/data_stall": MetricInfo("share", "share of a step's time that the same step on a cached batch saves"),
        "speed/cached_seconds_per_sample": MetricInfo("s", "seconds a sample of the same step on a cached batch"),
        "speed/loader_wait": MetricInfo("share", "share of the steps' time spent waiting for the loader's next batch"),
        "speed/start_up_seconds": MetricInfo("s", "what the first step took beyond the others: loader start, kernels"),
        "speed/setup_seconds": MetricInfo("s", "from the start of the process to the first training step"),
        "speed/seconds_per_validated": MetricInfo("s", "seconds a validated sample, over all validations of the run"),
        "speed/pace_error": MetricInfo(
            "share", "standard error of speed/seconds_per_sample, as the run's own steps show it"
        ),
        "speed/run_seconds": MetricInfo("s", "the whole run, process start and validation included"),
        "data/roof_share": MetricInfo("share", "px of the AIRS training windows that are roof; with roof_sampling"),
        "data/with_roof": MetricInfo("share", "AIRS training windows that hold any roof; with roof_sampling"),
        "data/drawn_roof_share": MetricInfo("share", "as data/roof_share, of the windows that an epoch draws"),
        "data/drawn_with_roof": MetricInfo("share", "as data/with_roof, of the windows that an epoch draws"),
        "cpu/utilisation": MetricInfo("share", "CPU time of the process tree over wall time x cores of the compute"),
        "cpu/others": MetricInfo("share", "the machine's time over all cores that went to anything but the run"),
        "cpu/io_wait": MetricInfo("share", "the machine's time in I/O wait over wall time x cores"),
        "disk/read_mib_s": MetricInfo("MiB/s", "read from storage by the process tree"),
        "disk/write_mib_s": MetricInfo("MiB/s", "written to storage by the process tree"),
        "network/received_mib_s": MetricInfo("MiB/s", "received by the machine"),
        "network/sent_mib_s": MetricInfo("MiB/s", "sent by the machine"),
        "gpu/utilisation": MetricInfo("share", "time with a kernel on the GPU, mean"),
        "gpu/memory_peak_mib": MetricInfo("MiB", "largest GPU memory reserved by the run"),
        "gpu/memory_used_mib": MetricInfo("MiB", "GPU memory held by the run at that moment; only over time"),
        "gpu/memory_share": MetricInfo("share", "gpu/memory_peak_mib over the GPU's usable memory"),
        "gpu/power_w": MetricInfo("W", "mean power of the GPU"),
        "gpu/alloc_retries": MetricInfo("count", "times the CUDA allocator freed its cache and tried again"),
        "cost/billable_seconds": MetricInfo("s", "seconds of the instance that SageMaker bills for the job"),
        "cost/usd": MetricInfo("USD", "cost/billable_seconds at the instance's price on demand"),
        "cost/spot_saving": MetricInfo("share", "of a spot job: seconds that it ran and is not billed for"),
        "cost/start_seconds": MetricInfo("s", "from the job's submission until it began to train"),
        "train/loss": MetricInfo("", "training loss of a batch, step by step"),
        "train/final_loss": MetricInfo("", "mean training loss of the last tenth of the steps"),
        "train/grad_norm": MetricInfo("", "gradient norm before clipping, L2"),
        "train/lr": MetricInfo("", "learning rate"),
        "train/steps": MetricInfo("count", "optimiser steps done"),
        "train/samples": MetricInfo("count", "training samples seen"),
        "train/validated_samples": MetricInfo("count", "samples validated, each as often as it was"),
        "train/skipped_samples": MetricInfo("count", "broken samples left out under on_bad_sample=skip"),
        **{
            f"{FORECAST}{name}{end}": MetricInfo(unit, f"{what}, as forecast before the run{words}")
            for name, (unit, what) in FORECAST_QUANTITIES.items()
            for end, words in _ENDS.items()
        },
        **{
            f"forgetting/{name}": MetricInfo("IoU", f"drop of {name}'s validation IoU since it was last trained on")
            for name in DATASETS
        },
    }
)


def forecast_metrics(quantity: str, centre: float, low: float, high: float) -> dict[str, float]:
    """Return the metrics of one of FORECAST_QUANTITIES and its interval; empty if one of them is not finite."""
    metrics = {f"{FORECAST}{quantity}{end}": value for end, value in zip(_ENDS, (centre, low, high), strict=True)}
    return metrics if all(map(math.isfinite, metrics.values())) else {}
