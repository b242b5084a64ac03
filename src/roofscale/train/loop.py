"""The training loop: builds the trainer, trains and validates pass by pass, and emits events.

It depends on no tracker: the caller passes an ``emit`` function. Events are the JSON objects that
``roofscale.measurement`` describes.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from roofscale.config import CACHED_STEPS, RunConfig
from roofscale.data.loader import BatchLoader, make_loader
from roofscale.data.sample import Batch, Source
from roofscale.data.sources import DataSplit
from roofscale.errors import RecordError
from roofscale.train import checkpoint, distributed
from roofscale.train.early_stop import stop_reason
from roofscale.train.prefetch import PrefetchedBatch, prefetch
from roofscale.train.trainer import Trainer
from roofscale.train.validate import Row, sheet_arrays, validate

if TYPE_CHECKING:
    from roofscale.train.cores import Threads

Emit = Callable[[str, Mapping[str, Any]], None]  # (event name, fields)


class Interrupted(Exception):
    """The run was asked to stop; its checkpoint is on disk."""


class Diverged(Exception):
    """The loss or the gradients are no longer finite."""


class StoppedEarly(Exception):
    """The end of a run with ``stop_precision``, which only measures its pace."""


@dataclass(frozen=True)
class EpochPlan:
    """One pass over the training data of one or several data sets."""

    epoch: int  # of these data sets, from 0
    datasets: tuple[str, ...]  # trained on in this pass, shuffled together
    datasets_so_far: tuple[str, ...]  # trained on up to the end of this pass, and validated after it


def epoch_plans(config: RunConfig) -> list[EpochPlan]:
    """Return the passes of a run: ``epochs`` of each data set in turn, or ``epochs`` of all of them mixed."""
    if config.schedule == "mixed":
        return [EpochPlan(epoch, config.datasets, config.datasets) for epoch in range(config.epochs)]
    return [
        EpochPlan(index * config.epochs + epoch, (name,), config.datasets[: index + 1])
        for index, name in enumerate(config.datasets)
        for epoch in range(config.epochs)
    ]


class TrainingLoop:
    """One training run in a run folder, resumed from the checkpoint in that folder if there is one.

    In a distributed run every process has its own loop, in the same state after every step; rank 0 alone writes to
    the folder.

    Args:
        config: of the run.
        splits: the opened data sets by name.
        folder: of the run; receives the checkpoints and the prediction sheets.
        emit: called with the name and the fields of each event.
        stopping: whether the process was asked to stop; called after every step.
        threads: adapts the number of CPU threads during the run; None keeps the number as it is.
    """

    def __init__(
        self,
        config: RunConfig,
        splits: Mapping[str, DataSplit],
        folder: Path,
        emit: Emit,
        stopping: Callable[[], bool],
        threads: "Threads | None" = None,
    ) -> None:
        self.threads = threads
        self.config, self.splits, self.folder, self.emit, self.stopping = config, splits, folder, emit, stopping
        self.passes = epoch_plans(config)
        self.steps_planned = sum(len(self._loader(plan)) for plan in self.passes)
        self.trainer = Trainer(config, self.steps_planned)
        state = distributed.broadcast_from_rank0(self._load_checkpoint)
        if state is not None:
            self.trainer.restore(state)
        self._saved_at = time.monotonic()
        self._is_rank0 = distributed.rank() == 0
        self._step_times: list[tuple[int, float]] = []  # (samples, seconds) of each step
        self._steady_step_times: list[tuple[float, float]] = []  # the same without the first step of each pass
        self._batch: Batch | None = None  # this process's part of the last full batch
        self._batch_samples = 0  # samples of that batch over all processes

    def fit(self) -> str:
        """Train to the end, or until the pace is known under ``stop_precision``; return the number of steps as a text.

        Raises:
            Interrupted: ``stopping`` returned True; a checkpoint is on disk.
            Diverged: the loss or the gradients are not finite.
            DataError: a broken sample under ``on_bad_sample=error``.
        """
        try:
            if self.trainer.progress.step == 0:
                self._validate(self.config.datasets, "before training")
            for plan in self.passes[self.trainer.progress.epoch :]:
                self._train(plan)
                self._validate(
                    plan.datasets_so_far,
                    f"after pass {plan.epoch + 1} of {len(self.passes)}",
                    last=plan is self.passes[-1],
                )
                self.trainer.progress.epoch += 1
                self.trainer.progress.batch = 0
        except Interrupted:
            self._save()
            raise
        except StoppedEarly as reason:
            return f"{self.trainer.progress.step} steps: {reason}"
        self._measure_data_stall()
        return f"{self.trainer.progress.step} steps"

    def _load_checkpoint(self) -> dict[str, Any] | None:
        """Return the state that an earlier process saved; None if there is none.

        A damaged checkpoint is renamed and training starts anew: the config is not at fault, so the run must not fail.
        """
        file = self.folder / checkpoint.CHECKPOINT
        if not file.exists():
            return None
        try:
            return checkpoint.load(file, self.config.fingerprint)
        except RecordError as error:
            damaged = file.with_suffix(".damaged")
            file.replace(damaged)
            self.emit("note", {"text": f"{error} It is {damaged.name} now, and training begins anew."})
            return None

    def _loader(self, plan: EpochPlan, skip: int = 0) -> BatchLoader:
        sources: list[Source] = [self.splits[name].train for name in plan.datasets]
        return make_loader(
            self.config, sources, epoch=plan.epoch, train=True, skip_batches=skip, rank=distributed.rank()
        )

    def _train(self, plan: EpochPlan) -> None:
        progress = self.trainer.progress
        loader = self._loader(plan, skip=progress.batch)
        stage = f"training, pass {plan.epoch + 1} of {len(self.passes)}"
        self._stage(stage)
        clock = time.perf_counter()
        for index, fetched in enumerate(prefetch(loader, self.trainer.prefetcher)):
            wait = time.perf_counter() - clock
            ids = list(chain(*distributed.all_gather(fetched.host.ids)))
            if ids:  # at least one process has a sample that could be read
                self._step(plan, fetched, ids, clock, wait)
            progress.batch = fetched.position
            self._record_skipped(loader.skipped)
            self._raise_if_stopping()
            if self.threads and (change := self.threads.follow()):
                self.emit("note", {"text": change})
            if self.config.stop_precision and ids:
                self._stop_if_pace_known(first=index == 0)
            if time.monotonic() - self._saved_at > self.config.checkpoint_seconds:
                self._save()
                self._stage(stage)
            clock = time.perf_counter()

    def _stop_if_pace_known(self, first: bool) -> None:
        if not first:
            self._steady_step_times.append(self._step_times[-1])
        # Rank 0 decides for all: each process times its own steps, and all must stop at the same one.
        if reason := distributed.broadcast_from_rank0(lambda: stop_reason(self.config, self._steady_step_times)):
            raise StoppedEarly(reason)
        if self.trainer.progress.step == self.steps_planned:
            raise StoppedEarly("all planned steps ran without reaching the requested precision")

    def _step(self, plan: EpochPlan, fetched: PrefetchedBatch, ids: list[str], clock: float, wait: float) -> None:
        progress, lr = self.trainer.progress, self.trainer.lr
        loss, norm = self.trainer.step(fetched.batch)
        self.trainer.schedule.step()
        progress.step += 1
        progress.samples += len(ids)
        seconds = time.perf_counter() - clock
        self._step_times.append((len(ids), seconds))
        if len(ids) >= self._batch_samples:  # the last batch of an epoch may be smaller
            self._batch, self._batch_samples = fetched.host, len(ids)
        record = {
            "step": progress.step,
            "epoch": plan.epoch,
            "dataset": "+".join(sorted({name.partition("/")[0] for name in ids})),
            "samples": progress.samples,
            "loss": loss,
            "grad_norm": norm,
            "lr": lr,
            "seconds": seconds,
            "wait_seconds": wait,
        }
        self.emit("step", record)
        # Under fp16 infinite gradients are normal: the scaler skips that step and lowers its scale.
        if not np.isfinite(loss) or not (np.isfinite(norm) or self.trainer.scaler.is_enabled()):
            raise Diverged(
                f"loss {loss:g}, gradient norm {norm:g} at step {progress.step}: no longer finite; "
                f"lower lr (now {self.config.lr:g}) or set precision=fp32."
            )

    def _record_skipped(self, messages: Iterable[str]) -> None:
        if self.config.on_bad_sample != "skip":  # the first broken sample ends the run anyway
            return
        for message in self.trainer.progress.leave_out(chain(*distributed.all_gather(list(messages)))):
            self.emit("note", {"text": f"sample left out: {message}"})

    def _raise_if_stopping(self) -> None:
        # One process that was asked to stop is enough; the collective call makes all of them stop at the same step.
        if any(distributed.all_gather(self.stopping())):
            raise Interrupted(f"asked to stop at step {self.trainer.progress.step} of {self.steps_planned}")

    def _stage(self, name: str) -> None:
        self.emit("stage", {"name": name})

    def _save(self) -> None:
        self._stage(f"checkpoint at step {self.trainer.progress.step}")
        if self._is_rank0:
            checkpoint.save(self.trainer.state(), self.folder / checkpoint.CHECKPOINT)
        self._saved_at = time.monotonic()

    def _validate(self, datasets: tuple[str, ...], when: str, *, last: bool = False) -> None:
        self._stage(f"validating {when}")
        validations = []
        for name in datasets:
            sheet: list[Row] | None = [] if last and self._is_rank0 else None
            validation, skipped = validate(self.trainer, self.splits[name].val, self.stopping, sheet)
            self._raise_if_stopping()  # a stopped validation is cut short, so its result must not be used
            if sheet:
                arrays = sheet_arrays(sheet, self.splits[name].val.labelled)
                np.savez_compressed(self.folder / f"sheet-{name}.npz", allow_pickle=False, **arrays)
            self._record_skipped(skipped)
            self.emit("validation", {"validation": vars(validation)})
            validations.append(validation)
        mean = statistics.fmean(v.metrics["loss"] for v in validations)
        # Means over different data sets cannot be compared, and the untrained net is never kept as the best.
        # 'not >' also keeps a first model whose mean is NaN.
        if (
            set(datasets) == set(self.config.datasets)
            and self.trainer.progress.step
            and not (mean > self.trainer.progress.best)
        ):
            self.trainer.progress.best = mean
            if self._is_rank0:
                content = {"fingerprint": self.config.fingerprint, "model": self.trainer.eval_model.state_dict()}
                checkpoint.save(content, self.folder / checkpoint.BEST)

    def _measure_data_stall(self) -> None:
        """Measure the data stall: the share of a step's time that a step on a cached batch saves.

        Runs last, when checkpoint and metrics are on disk, because it changes the weights. The first step of the run
        pays for one-off set-up (kernel choice, allocator) and is left out. The real steps are averaged, not their
        median taken, because with W loader processes only one step in W may have to wait.
        """
        if self._batch is None or len(self._step_times) < 3:
            return
        self._stage("repeating a batch")
        seconds = []
        for _ in range(CACHED_STEPS):
            clock = time.perf_counter()
            self.trainer.step(self._batch)
            seconds.append(time.perf_counter() - clock)
        cached = statistics.median(seconds) / self._batch_samples
        samples, total_seconds = (sum(column) for column in zip(*self._step_times[1:], strict=True))
        metrics = {
            "speed/data_stall": max(0.0, 1 - cached * samples / total_seconds),
            "speed/cached_seconds_per_sample": cached,
        }
        self.emit("metrics", {"metrics": metrics})
