"""The training loop: build, record, fit. It knows no tracker: it is handed a function that takes events.

Events are the JSON objects that ``roofscale.measurement`` describes; the same ones whether a person, a file or MLflow
is at the other end.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from roofscale.config import RunConfig
from roofscale.data.loader import BatchLoader, make_loader
from roofscale.data.sample import Batch, Source
from roofscale.data.sources import DataSplit
from roofscale.errors import RecordError
from roofscale.train import checkpoint, distributed
from roofscale.train.prefetch import PrefetchedBatch, prefetch
from roofscale.train.trainer import Trainer
from roofscale.train.validate import Row, sheet_arrays, validate

if TYPE_CHECKING:
    from roofscale.train.cores import Threads

Emit = Callable[[str, Mapping[str, Any]], None]  # (event name, fields)

_CACHED_STEPS = 3  # on a cached batch, that data stall is measured against; their median is used


class Interrupted(Exception):
    """Somebody asked the run to stop; a checkpoint is on disk."""


class Diverged(Exception):
    """The loss or the gradients are no longer finite."""


class StoppedEarly(Exception):
    """A run that only measures its pace has come to its end."""


@dataclass(frozen=True)
class EpochPlan:
    """One pass over training data."""

    epoch: int
    datasets: tuple[str, ...]  # trained on, shuffled together
    seen: tuple[str, ...]  # trained on so far, so validated after this pass


def epoch_plans(config: RunConfig) -> list[EpochPlan]:
    """The passes of a run: ``epochs`` of each data set in turn, or ``epochs`` of all mixed."""
    if config.schedule == "mixed":
        return [EpochPlan(epoch, config.datasets, config.datasets) for epoch in range(config.epochs)]
    return [
        EpochPlan(place * config.epochs + epoch, (name,), config.datasets[: place + 1])
        for place, name in enumerate(config.datasets)
        for epoch in range(config.epochs)
    ]


class TrainingLoop:
    """One training run in a run folder: resumes by itself from the checkpoint that it finds there.

    Of several processes each has a run of its own, in the same state after every step; rank 0 writes to the folder.
    """

    def __init__(
        self,
        config: RunConfig,
        splits: Mapping[str, DataSplit],
        folder: Path,
        emit: Emit,
        stopping: Callable[[], bool],
        threads: "Threads | None" = None,  # None: their number stays as it is
    ) -> None:
        self.threads = threads
        self.config, self.splits, self.folder, self.emit, self.stopping = config, splits, folder, emit, stopping
        self.passes = epoch_plans(config)
        self.steps_planned = sum(len(self._loader(one)) for one in self.passes)
        self.trainer = Trainer(config, self.steps_planned)
        left = distributed.broadcast_from_rank0(self._left_behind)
        if left is not None:
            self.trainer.restore(left)
        self._saved_at = time.monotonic()
        self._writes = distributed.rank() == 0
        self._timed: list[tuple[float, int]] = []  # seconds and samples of each step
        self._paced: list[tuple[float, float]] = []  # samples and seconds, each epoch's first step left out
        self._batch: Batch | None = None  # this process's part of the newest whole one
        self._batch_samples = 0  # of all processes

    def fit(self) -> str:
        """Train to the end, or to the first reason not to; return how far it went.

        Raises:
            Interrupted: ``stopping`` said so; a checkpoint is on disk.
            Diverged: the loss or the gradients are not finite.
            DataError: a broken sample under ``on_bad_sample=error``.
        """
        try:
            if self.trainer.progress.step == 0:
                self._validate(self.config.datasets, "before training")
            for one in self.passes[self.trainer.progress.epoch :]:
                self._train(one)
                self._validate(
                    one.seen, f"after pass {one.epoch + 1} of {len(self.passes)}", last=one is self.passes[-1]
                )
                self.trainer.progress.epoch += 1
                self.trainer.progress.batch = 0
        except Interrupted:
            self._save()
            raise
        except StoppedEarly as known:
            return f"{self.trainer.progress.step} steps: {known}"
        self._measure_data_stall()
        return f"{self.trainer.progress.step} steps"

    def _left_behind(self) -> dict[str, Any] | None:
        """The checkpoint of the process before; None where there is none, or a damaged one, which is set aside: the
        config is not at fault."""
        file = self.folder / checkpoint.CHECKPOINT
        if not file.exists():
            return None
        try:
            return checkpoint.load(file, self.config.fingerprint)
        except RecordError as error:
            aside = file.with_suffix(".damaged")
            file.replace(aside)
            self.emit("note", {"text": f"{error} It is {aside.name} now, and training begins anew."})
            return None

    def _loader(self, one: EpochPlan, skip: int = 0) -> BatchLoader:
        sources: list[Source] = [self.splits[name].train for name in one.datasets]
        return make_loader(
            self.config, sources, epoch=one.epoch, train=True, skip_batches=skip, rank=distributed.rank()
        )

    def _train(self, one: EpochPlan) -> None:
        progress = self.trainer.progress
        loader = self._loader(one, skip=progress.batch)
        stage = f"training, pass {one.epoch + 1} of {len(self.passes)}"
        self._stage(stage)
        clock = time.perf_counter()
        for place, fetched in enumerate(prefetch(loader, self.trainer.side)):
            wait = time.perf_counter() - clock
            ids = list(chain(*distributed.all_gather(fetched.host.ids)))
            if ids:  # some process has a whole sample
                self._step(one, fetched, ids, clock, wait)
            progress.batch = fetched.position
            self._leave_out(loader.skipped)
            self._tick()
            if self.threads and (change := self.threads.follow()):
                self.emit("note", {"text": change})
            if self.config.stop_precision and ids:
                self._stop_when_paced(first=place == 0)
            if time.monotonic() - self._saved_at > self.config.checkpoint_seconds:
                self._save()
                self._stage(stage)
            clock = time.perf_counter()

    def _stop_when_paced(self, first: bool) -> None:
        from roofscale.train.early_stop import stop_reason  # two seconds of SciPy, for those who want them

        seconds, samples = self._timed[-1]
        if not first:
            self._paced.append((samples, seconds))
        if why := distributed.broadcast_from_rank0(lambda: stop_reason(self.config, self._paced)):
            raise StoppedEarly(why)
        if self.trainer.progress.step == self.steps_planned:
            raise StoppedEarly("all of them, and the pace is not known as well as asked")

    def _step(self, one: EpochPlan, fetched: PrefetchedBatch, ids: list[str], clock: float, wait: float) -> None:
        progress, lr = self.trainer.progress, self.trainer.lr
        loss, norm = self.trainer.step(fetched.batch)
        self.trainer.schedule.step()
        progress.step += 1
        progress.samples += len(ids)
        seconds = time.perf_counter() - clock
        self._timed.append((seconds, len(ids)))
        if len(ids) >= self._batch_samples:  # an epoch may end on a smaller one
            self._batch, self._batch_samples = fetched.host, len(ids)
        record = {
            "step": progress.step,
            "epoch": one.epoch,
            "dataset": "+".join(sorted({name.partition("/")[0] for name in ids})),
            "samples": progress.samples,
            "loss": loss,
            "grad_norm": norm,
            "lr": lr,
            "seconds": seconds,
            "wait_seconds": wait,
        }
        self.emit("step", record)
        # Under fp16 the scaler meets infinite gradients as a matter of course, and skips that step.
        if not np.isfinite(loss) or not (np.isfinite(norm) or self.trainer.scaler.is_enabled()):
            raise Diverged(
                f"loss {loss:g}, gradient norm {norm:g} at step {progress.step}: no longer finite; "
                f"lower lr (now {self.config.lr:g}) or set precision=fp32."
            )

    def _leave_out(self, complaints: Iterable[str]) -> None:
        if self.config.on_bad_sample != "skip":  # then the first ends the run
            return
        for complaint in self.trainer.progress.leave_out(chain(*distributed.all_gather(list(complaints)))):
            self.emit("note", {"text": f"sample left out: {complaint}"})

    def _tick(self) -> None:
        if any(distributed.all_gather(self.stopping())):  # all at the same step
            raise Interrupted(f"asked to stop at step {self.trainer.progress.step} of {self.steps_planned}")

    def _stage(self, name: str) -> None:
        self.emit("stage", {"name": name})

    def _save(self) -> None:
        self._stage(f"checkpoint at step {self.trainer.progress.step}")
        if self._writes:
            checkpoint.save(self.trainer.state(), self.folder / checkpoint.CHECKPOINT)
        self._saved_at = time.monotonic()

    def _validate(self, datasets: tuple[str, ...], when: str, *, last: bool = False) -> None:
        self._stage(f"validating {when}")
        found = []
        for name in datasets:
            sheet: list[Row] | None = [] if last and self._writes else None
            validation, skipped = validate(self.trainer, self.splits[name].val, self.stopping, sheet)
            self._tick()
            if sheet:
                arrays = sheet_arrays(sheet, self.splits[name].val.labelled)
                np.savez_compressed(self.folder / f"sheet-{name}.npz", allow_pickle=False, **arrays)
            self._leave_out(skipped)
            self.emit("validation", {"validation": vars(validation)})
            found.append(validation)
        mean = statistics.fmean(v.metrics["loss"] for v in found)
        # Only passes that validated every data set can be compared for the best; 'before training' is no model.
        if (
            set(datasets) == set(self.config.datasets)
            and self.trainer.progress.step
            and not (mean > self.trainer.progress.best)
        ):
            self.trainer.progress.best = mean
            if self._writes:
                self._keep_best()

    def _keep_best(self) -> None:
        content = {"fingerprint": self.config.fingerprint, "model": self.trainer.eval_model.state_dict()}
        checkpoint.save(content, self.folder / checkpoint.BEST)

    def _measure_data_stall(self) -> None:
        """Repeat a whole batch, in memory, after all that counts is on disk, and compare the times of a sample.

        The first step of the run pays for one-off set-up (kernel choice, allocator) and is left out. The mean of the
        real steps, because with W loader processes only one step in W may have to wait.
        """
        if self._batch is None or len(self._timed) < 3:
            return
        self._stage("repeating a batch")
        seconds = []
        for _ in range(_CACHED_STEPS):
            clock = time.perf_counter()
            self.trainer.step(self._batch)
            seconds.append(time.perf_counter() - clock)
        cached = statistics.median(seconds) / self._batch_samples
        took, samples = (sum(column) for column in zip(*self._timed[1:], strict=True))
        found = {
            "speed/data_stall": max(0.0, 1 - cached * samples / took),
            "speed/cached_seconds_per_sample": cached,
        }
        self.emit("metrics", {"metrics": found})
