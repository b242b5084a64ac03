"""Samples a second against a plain Lightning Trainer with its defaults, and whether both learn the same."""

import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from benchmarks.measure import (
    Result,
    in_own_process,
    in_turns,
    now,
    open_generated,
    run_alone,
    say_each,
    scratch_folder,
)
from roofscale import model as models
from roofscale.config import RunConfig
from roofscale.data.loader import make_loader
from roofscale.data.sample import Batch
from roofscale.data.sources import DataSplit
from roofscale.torch_compat import import_torchvision
from roofscale.train import malloc
from roofscale.train.device import select_device
from roofscale.train.loop import TrainingLoop
from roofscale.train.loss import mean_labelled, sample_losses
from roofscale.train.trainer import Trainer
from roofscale.train.validate import validate

import_torchvision()  # Lightning imports torchmetrics, and that torchvision
import pytorch_lightning as lightning  # noqa: E402

OUR_LOOP, LIGHTNING = "ours", "lightning"
SEEDS = (0, 1, 2)
OURS = RunConfig(image_size=512, max_samples=60, val_samples=20)
# What a plain loop does: no memory format, no precision asked for, no clipping.
PLAIN = {"precision": "fp32", "channels_last": False, "grad_clip": 0}
_PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}  # ours in Lightning's words


class PlainModule(lightning.LightningModule):
    """The same net, loss, optimiser and schedule, written as Lightning's tutorials do."""

    def __init__(self, config: RunConfig, total_steps: int, *, fused: bool | None = None) -> None:
        super().__init__()
        self.config, self.total_steps, self.fused = config, total_steps, fused
        self.net = models.build(config)
        self.net.to(memory_format=models.memory_format(config))

    def training_step(self, batch: Batch, _index: int) -> torch.Tensor:
        """Return the loss of a batch."""
        losses_NK = sample_losses(self.net(batch.image_NCHW), batch.target_NKHW, batch.labelled_NK)
        return mean_labelled(losses_NK, batch.labelled_NK)

    def configure_gradient_clipping(self, _optimizer: Any, gradient_clip_val: float | None = None, **_: Any) -> None:
        """Clip, if asked to: Lightning itself refuses to with a fused optimiser under mixed precision."""
        if gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def configure_optimizers(self) -> Any:
        """AdamW with the one-cycle schedule, stepped each batch."""
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=self.config.lr, weight_decay=self.config.weight_decay, fused=self.fused
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.config.lr, total_steps=self.total_steps + 1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Stopwatch(lightning.Callback):
    """Seconds of the training pass alone, or of what follows its first ``skip`` steps."""

    def __init__(self, skip: int) -> None:
        self.skip, self.seconds = skip, math.nan

    def on_train_epoch_start(self, *_: Any) -> None:
        """Start."""
        self._start = now()

    def on_train_batch_end(self, _trainer: Any, _module: Any, _outputs: Any, _batch: Any, index: int) -> None:
        """Start again, once the steps that do not count are done."""
        if index + 1 == self.skip:
            self._start = now()

    def on_train_epoch_end(self, *_: Any) -> None:
        """Stop."""
        self.seconds = now() - self._start


class Trained(NamedTuple):
    """Result of one epoch."""

    samples_per_s: float
    model: torch.nn.Module


def by_lightning(config: RunConfig, split: DataSplit, *, recipe: bool, skip: int = 0) -> Trained:
    """One epoch by Lightning; its rate leaves out the first ``skip`` steps.

    With its defaults, or with the whole recipe of a config, and then without what it does beside training.
    """
    if not recipe:
        config = config.with_overrides(PLAIN)
    loader = make_loader(config, [split.train], epoch=0, train=True)
    fused = (
        True if recipe and select_device(config).precision != "fp16" else None
    )  # one with a scaler cannot be clipped
    module, watch = PlainModule(config, len(loader), fused=fused), Stopwatch(skip)
    with scratch_folder() as folder:
        asked = {"max_epochs": 1, "default_root_dir": folder, "callbacks": [watch], "devices": 1}
        lightning.Trainer(**asked, **(_recipe(config) if recipe else {})).fit(module, loader)
    return Trained((len(split.train) - skip * config.batch_size) / watch.seconds, module.net)


def _recipe(config: RunConfig) -> dict[str, Any]:
    extras = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trained = {"precision": _PRECISIONS[select_device(config).precision], "gradient_clip_val": config.grad_clip or None}
    return {**trained, **dict.fromkeys(extras, False)}


def by_us(config: RunConfig, split: DataSplit, *, skip: int = 0) -> Trained:
    """One epoch by our loop, events and all; its rate leaves out the first ``skip`` steps."""
    clock = _EventClock(skip)
    with scratch_folder() as folder:
        run = TrainingLoop(config, {split.train.name: split}, folder, clock, lambda: False)
        run.fit()
    return Trained((len(split.train) - skip * config.batch_size) / clock.seconds, run.trainer.model)


@dataclass
class _EventClock:
    """Listens to a run: how long the steps of its only pass took."""

    skip: int
    seconds: float = math.nan
    _since: float = math.nan

    def __call__(self, event: str, fields: Mapping[str, Any]) -> None:
        if event == "validation" and math.isnan(self._since):  # the one before training
            self._since = now()
        elif event == "step":
            self.seconds = now() - self._since
            self._since = now() if fields["step"] == self.skip else self._since


def one_epoch(side: str, seed: int) -> dict[str, float]:
    """Train for one epoch with this seed, by us or by Lightning with its defaults; samples a second and val IoU."""
    config = OURS.with_overrides({"seed": seed})
    split = open_generated(config)["rid"]
    if side == OUR_LOOP:
        trained = by_us(config, split)
    else:
        config = config.with_overrides(PLAIN)
        trained = by_lightning(config, split, recipe=False)
    trainer = Trainer(config, total_steps=1)
    trainer.model.load_state_dict(trained.model.state_dict())
    iou = validate(trainer, split.val, lambda: None)[0].metrics["iou"]
    return {"samples_per_s": trained.samples_per_s, "iou": iou}


def measure() -> list[Result]:
    """By turns, one seed a round, each side in a process of its own, and ours with a training's allocator settings."""
    ways = {
        OUR_LOOP: _in_own_process(OUR_LOOP, malloc.training_environment()),
        LIGHTNING: _in_own_process(LIGHTNING, {}),
        "lightning with our allocator settings": _in_own_process(LIGHTNING, malloc.training_environment()),
    }
    rounds = in_turns(ways, len(SEEDS), say_each)
    target = 2.4 if select_device(OURS).precision != "fp32" else 1.25
    name = "samples/s over a plain Lightning Trainer"
    results = []
    for other, judged_by in zip(list(ways)[1:], (target, None), strict=True):
        ratios = [one[OUR_LOOP]["samples_per_s"] / one[other]["samples_per_s"] for one in rounds]
        results.append(
            Result(
                name if other == LIGHTNING else f"{name} that has our allocator settings",
                statistics.median(ratios),
                judged_by,
                spread=(min(ratios), max(ratios)),
                note=_learnt([one[OUR_LOOP]["iou"] for one in rounds], [one[other]["iou"] for one in rounds]),
                details={"rounds": rounds, "lightning": lightning.__version__},
            )
        )
    return results


def _in_own_process(side: str, environment: Mapping[str, str]) -> Callable[[], dict[str, float]]:
    """Return a function that trains with the next seed each time it is called."""
    seeds = iter(SEEDS)
    return lambda: in_own_process("benchmarks.lightning_trainer", side, str(next(seeds)), environment=environment)


def _learnt(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Say what both learnt."""
    gap = statistics.fmean(ours) - statistics.fmean(theirs)
    error = math.hypot(statistics.stdev(ours), statistics.stdev(theirs)) / math.sqrt(len(ours))
    same = "equal" if abs(gap) <= 2 * error else "NOT equal"
    return (
        f"{select_device(OURS).precision}; val IoU {statistics.fmean(ours):.3f} against "
        f"{statistics.fmean(theirs):.3f}, {same} within two standard errors ({2 * error:.3f}) of {len(ours)} seeds"
    )


if __name__ == "__main__":
    if sys.argv[1:2] in ([OUR_LOOP], [LIGHTNING]):
        print(json.dumps(one_epoch(sys.argv[1], int(sys.argv[2]))))
    else:
        run_alone(measure)
