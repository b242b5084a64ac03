"""How others find a batch size: in the process that trains, by running into the limit.

``python -m benchmarks.search_rivals NAME RUN_FOLDER`` is run by ``benchmarks.search_comparison`` in a process of its
own under the limit, as a training is: it reads ``config.json`` there and appends an event a step to ``events.jsonl``.
What it finds it tells as the metric FOUND. The libraries are those of requirements-bench.txt, in ``.bench``.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from roofscale import config as configs
from roofscale import model as models
from roofscale.config import RunConfig
from roofscale.data.loader import make_loader
from roofscale.data.sample import Batch
from roofscale.data.sources import open_sources
from roofscale.torch_compat import import_torchvision
from roofscale.train.__main__ import EventFile
from roofscale.train.loss import mean_labelled, sample_losses
from roofscale.train.trainer import Trainer

sys.path.append(str(Path(__file__).resolve().parents[1] / ".bench"))

FOUND = "search/batch_size"
FIRST = 2  # batch, Lightning's default
STEPS = 3  # with a batch size, Lightning's default


class Samples(Dataset[Batch]):
    """The training samples of a config, one by one."""

    def __init__(self, config: RunConfig) -> None:
        splits = open_sources(config, Path(config.data_root))
        sources = [splits[name].train for name in config.datasets]
        alone = config.with_overrides({"batch_size": 1, "num_workers": 0})
        self._batches = make_loader(alone, sources, epoch=0, train=True).dataset

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Batch:
        return self._batches[index].batch

    def loader(self, config: RunConfig) -> DataLoader[Batch]:
        """The usual loader."""
        ahead = {"prefetch_factor": config.prefetch_factor} if config.num_workers else {}
        return DataLoader(self, config.batch_size, collate_fn=_joined, num_workers=config.num_workers, **ahead)


def _joined(samples: list[Batch]) -> Batch:
    return Batch(
        torch.cat([one.image_NCHW for one in samples]),
        torch.cat([one.target_NKHW for one in samples]),
        torch.cat([one.labelled_NK for one in samples]),
        [name for one in samples for name in one.ids],
    )


class Diary:
    """Tells the steps, as a training does."""

    def __init__(self, events: EventFile) -> None:
        self._events, self._step, self._samples, self._since = events, 0, 0, time.perf_counter()

    def step(self, samples: int, loss: float) -> None:
        """A step is done."""
        self._step, self._samples, before = self._step + 1, self._samples + samples, self._since
        self._since = time.perf_counter()
        record = {"step": self._step, "epoch": 0, "dataset": "rid", "samples": self._samples, "loss": loss}
        unknown = {"grad_norm": 0.0, "lr": 0.0, "wait_seconds": 0.0}
        self._events.emit("step", {**record, **unknown, "seconds": self._since - before})


def lightning(config: RunConfig, folder: Path, diary: Diary, mode: str) -> int:
    """Lightning's BatchSizeFinder: the batch is doubled until it fails; ``binsearch`` then halves the difference."""
    import_torchvision()  # Lightning imports torchmetrics, and that torchvision
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import BatchSizeFinder

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.batch_size = FIRST  # its first loader is made before it sets the size itself
            layout = torch.channels_last if config.channels_last else torch.contiguous_format
            self.net = models.build(config).to(memory_format=layout)

        def training_step(self, batch: Batch, _index: int) -> torch.Tensor:
            losses_NK = sample_losses(self.net(batch.image_NCHW), batch.target_NKHW, batch.labelled_NK)
            return mean_labelled(losses_NK, batch.labelled_NK)

        def on_train_batch_end(self, outputs: Any, batch: Batch, _index: int) -> None:
            diary.step(len(batch.ids), float(outputs["loss"]))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=config.lr, weight_decay=config.weight_decay)

        def train_dataloader(self) -> DataLoader[Batch]:
            return Samples(config).loader(config.with_overrides({"batch_size": self.batch_size}))

    class Finder(BatchSizeFinder):
        def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            super().on_fit_start(trainer, module)
            trainer.should_stop = True  # only the search is wanted

    module, finder = Module(), Finder(mode, steps_per_trial=STEPS, init_val=FIRST)
    arithmetic = {"bf16": "bf16-mixed", "fp16": "16-mixed"}.get(Trainer(config, 1).execution.precision, "32-true")
    trainer = pl.Trainer(max_epochs=1, precision=arithmetic, default_root_dir=folder, callbacks=[finder])
    trainer.fit(module)
    assert finder.optimal_batch_size
    return finder.optimal_batch_size


def accelerate(config: RunConfig, diary: Diary, first: int) -> int:
    """accelerate's ``find_executable_batch_size``: from a large batch down, a tenth less at each failure."""
    from accelerate.utils import find_executable_batch_size

    @find_executable_batch_size(starting_batch_size=first)
    def train(batch_size: int) -> int:
        own = config.with_overrides({"batch_size": batch_size})
        trainer, loader = Trainer(own, STEPS), Samples(own).loader(own)
        for _, batch in zip(range(STEPS), loader, strict=False):
            diary.step(len(batch.ids), trainer.step(batch)[0])
        return batch_size

    return int(train())


def main(name: str, folder: Path) -> int:
    """Search in a run folder; always 0, as whatever else happens ends the process."""
    config = configs.load(overrides=json.loads((folder / "config.json").read_text(encoding="utf-8")))
    torch.set_num_threads(config.threads or torch.get_num_threads())
    events = EventFile(folder / "events.jsonl")
    diary = Diary(events)
    rivals: dict[str, Callable[[], int]] = {
        "lightning-power": lambda: lightning(config, folder, diary, "power"),
        "lightning-binsearch": lambda: lightning(config, folder, diary, "binsearch"),
        "accelerate": lambda: accelerate(config, diary, config.batch_size),
        "accelerate-default": lambda: accelerate(config, diary, 128),
    }
    events.emit("start", {"facts": {}, "inputs": [], "steps_planned": 0, "batch_size": config.batch_size})
    found = rivals[name]()
    events.emit("metrics", {"metrics": {FOUND: found}})
    events.emit("end", {"outcome": "ok", "detail": f"found batch_size={found}"})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
