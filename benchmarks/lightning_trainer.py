"""Samples a second against a plain Lightning Trainer with its defaults, and whether both learn the same."""

import math
import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.measure import Result, by_turns, open_generated, run_alone, scratch_folder
from roofscale import model as models
from roofscale.config import RunConfig
from roofscale.data.loader import make_loader
from roofscale.data.sample import Batch
from roofscale.data.sources import DataSplit
from roofscale.torch_compat import import_torchvision
from roofscale.train.device import choose
from roofscale.train.loop import Run
from roofscale.train.loss import mean_labelled, sample_losses
from roofscale.train.trainer import Trainer
from roofscale.train.validate import validate

import_torchvision()  # Lightning imports torchmetrics, and that torchvision
import pytorch_lightning as lightning  # noqa: E402

SEEDS = (0, 1, 2)
OURS = RunConfig(image_size=512, max_samples=60, val_samples=20)
# What a plain loop does: no memory format, no precision asked for, no clipping.
PLAIN = OURS.with_overrides({"precision": "fp32", "channels_last": False, "grad_clip": 0})


class PlainModule(lightning.LightningModule):
    """The same net, loss, optimiser and schedule, written as Lightning's tutorials do."""

    def __init__(self, config: RunConfig, total_steps: int) -> None:
        super().__init__()
        self.config, self.total_steps = config, total_steps
        self.net = models.build(config)

    def training_step(self, batch: Batch, _index: int) -> torch.Tensor:
        """Return the loss of a batch."""
        losses_NK = sample_losses(self.net(batch.image_NCHW), batch.target_NKHW, batch.labelled_NK)
        return mean_labelled(losses_NK, batch.labelled_NK)

    def configure_optimizers(self) -> Any:
        """AdamW with the one-cycle schedule, stepped each batch."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.config.lr, weight_decay=self.config.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.config.lr, total_steps=self.total_steps + 1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Stopwatch(lightning.Callback):
    """Seconds of the training pass alone."""

    seconds = math.nan

    def on_train_epoch_start(self, *_: Any) -> None:
        """Start."""
        self._start = time.perf_counter()

    def on_train_epoch_end(self, *_: Any) -> None:
        """Stop."""
        self.seconds = time.perf_counter() - self._start


class Contest:
    """Trains both on the same batches, one seed after the other, and keeps the validation IoU of each."""

    def __init__(self) -> None:
        self.iou: dict[str, list[float]] = {"ours": [], "lightning": []}
        self._precision = "?"

    def ours(self) -> float:
        """One epoch by our loop, events and all; samples a second."""
        config = OURS.with_overrides({"seed": SEEDS[len(self.iou["ours"])]})
        clock = _EventClock()
        with scratch_folder() as folder:
            run = Run(config, open_generated(config), folder, clock, lambda: False)
            self._precision = run.trainer.where.precision
            run.fit()
        self.iou["ours"].append(clock.iou)
        return config.max_samples / clock.training_seconds

    def lightning(self) -> float:
        """One epoch by Lightning with its defaults; samples a second."""
        config = PLAIN.with_overrides({"seed": SEEDS[len(self.iou["lightning"])]})
        splits = open_generated(config)
        loader = make_loader(config, [splits["rid"].train], epoch=0, train=True)
        module, watch = PlainModule(config, len(loader)), Stopwatch()
        with scratch_folder() as folder:
            trainer = lightning.Trainer(max_epochs=1, default_root_dir=folder, callbacks=[watch])
            trainer.fit(module, loader)
        self.iou["lightning"].append(_iou(config, splits["rid"], module))
        return config.max_samples / watch.seconds

    def note(self) -> str:
        """What both learnt."""
        ours, theirs = self.iou["ours"], self.iou["lightning"]
        gap = statistics.fmean(ours) - statistics.fmean(theirs)
        error = math.hypot(statistics.stdev(ours), statistics.stdev(theirs)) / math.sqrt(len(ours))
        same = "equal" if abs(gap) <= 2 * error else "NOT equal"
        return (
            f"{self._precision}; val IoU {statistics.fmean(ours):.3f} against {statistics.fmean(theirs):.3f}, {same} "
            f"within two standard errors ({2 * error:.3f}) of {len(ours)} seeds"
        )


class _EventClock:
    """Listens to a run: how long its training took, and the IoU at its end."""

    def __init__(self) -> None:
        self.training_seconds = self.iou = math.nan
        self._since = time.perf_counter()

    def __call__(self, event: str, fields: Mapping[str, Any]) -> None:
        if event == "validation":
            self._since = time.perf_counter()
            self.iou = fields["validation"]["metrics"]["iou"]
        elif event == "step":
            self.training_seconds = time.perf_counter() - self._since


def _iou(config: RunConfig, split: DataSplit, module: PlainModule) -> float:
    trainer = Trainer(config, total_steps=1)
    trainer.model.load_state_dict(module.net.state_dict())
    return validate(trainer, split.val, lambda: None)[0].metrics["iou"]


def measure() -> list[Result]:
    """By turns, one seed a round."""
    contest = Contest()
    target = 2.0 if choose(OURS).precision != "fp32" else 1.25
    name = "samples/s over a plain Lightning Trainer"
    result = by_turns(name, contest.ours, contest.lightning, rounds=len(SEEDS), target=target)
    details = {**result.details, "val_iou": contest.iou, "lightning": lightning.__version__}
    return [Result(name, result.value, target, spread=result.spread, note=contest.note(), details=details)]


if __name__ == "__main__":
    run_alone(measure)
