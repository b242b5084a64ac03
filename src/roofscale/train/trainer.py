"""One training step and everything that it changes: model, optimiser, schedule, scaler and progress."""

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import nn

from roofscale import model as models
from roofscale.config import RunConfig
from roofscale.data.sample import Batch
from roofscale.train import device as devices
from roofscale.train.loss import mean_labelled, sample_losses


@dataclass
class Progress:
    """Where a run stands; with the weights, all that resuming needs."""

    epoch: int = 0  # passes done
    batch: int = 0  # batches done of the pass under way
    step: int = 0  # optimiser steps done
    samples: int = 0  # training samples seen
    skipped: list[str] = field(default_factory=list)  # what is wrong with each broken sample left out, once each
    best: float = math.inf  # least mean validation loss so far

    def leave_out(self, complaints: Iterable[str]) -> list[str]:
        """Count broken samples; return those not counted before."""
        new = [complaint for complaint in complaints if complaint not in self.skipped]
        self.skipped += new
        return new


class Trainer:
    """The trained state of a run and the step that changes it.

    Args:
        config: of the run.
        total_steps: optimiser steps that the learning rate is spread over.
        where: device and arithmetic; what this machine computes fastest where None.
        model: to be trained, on its device and in its memory format; built from the config where None.
    """

    def __init__(
        self,
        config: RunConfig,
        total_steps: int,
        *,
        where: devices.Device | None = None,
        model: nn.Module | None = None,
    ) -> None:
        self.config = config
        self.where = where or devices.choose(config)
        self.format = models.memory_format(config)
        self.model = model or self._build()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        self.schedule = _lr_schedule(config, self.optimizer, total_steps)
        self.scaler = torch.amp.GradScaler(self.where.device.type, enabled=self.where.precision == "fp16")
        self.progress = Progress()

    def _build(self) -> nn.Module:
        # A net that is built from a seed and then moved has the same weights on every device.
        model = models.build(self.config).to(self.where.device)
        model.to(memory_format=self.format)  # type: ignore[call-overload]  # missing from torch's stubs
        return model

    def to_device(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Move image, target and labelled to the device, the image in the model's memory format."""
        to = self.where.device
        image_NCHW = batch.image_NCHW.to(to, non_blocking=True).contiguous(memory_format=self.format)
        return image_NCHW, batch.target_NKHW.to(to, non_blocking=True), batch.labelled_NK.to(to, non_blocking=True)

    def forward(self, image_NCHW: torch.Tensor) -> torch.Tensor:
        """Logits in the run's precision, returned as float32."""
        with self.where.autocast():
            logits_NKHW: torch.Tensor = self.model(image_NCHW)
        return logits_NKHW

    def step(self, batch: Batch) -> tuple[float, float]:
        """Take one optimiser step; return the loss and the gradient norm before clipping.

        The randomness of a step (dropout) is a function of the seed and the step alone, so that a resumed run needs
        no generator state. A non-finite loss changes nothing: the caller ends the run as diverged. The caller also
        moves ``schedule`` on.
        """
        torch.manual_seed(self.config.seed * 1_000_003 + self.progress.step)
        self.begin()
        total = 0.0
        for part in self.parts(batch):
            loss = self.loss(part, batch.labelled_NK)
            total += loss.item()
            if not math.isfinite(total):
                return total, math.nan
            self.backward(loss)
        return total, self.update().item()

    def begin(self) -> None:
        """Begin a step."""
        self.model.train()
        # Before the forward pass and not after it, so that the old gradients do not lie beside the activations.
        self.optimizer.zero_grad(set_to_none=True)

    def parts(self, batch: Batch) -> list[Batch]:
        """The micro-batches of a batch, as even as can be."""
        count = min(self.config.micro_batches, len(batch.ids))
        if count == 1:
            return [batch]
        images, targets, labelled = (torch.tensor_split(tensor, count) for tensor in batch[:-1])
        ids = iter(batch.ids)
        return [
            Batch(image_NCHW, target_NKHW, labelled_NK, list(islice(ids, len(image_NCHW))))
            for image_NCHW, target_NKHW, labelled_NK in zip(images, targets, labelled, strict=True)
        ]

    def loss(self, part: Batch, labelled_NK: torch.Tensor) -> torch.Tensor:
        """What a micro-batch adds to the mean loss over all that is labelled in its batch (``labelled_NK``), a float32
        scalar with its graph."""
        image_NCHW, target_NKHW, labelled_part_NK = self.to_device(part)
        losses_NK = sample_losses(self.forward(image_NCHW), target_NKHW, labelled_part_NK)
        return mean_labelled(losses_NK, labelled_NK.to(losses_NK.device, non_blocking=True))

    def backward(self, loss: torch.Tensor) -> None:
        """Add a micro-batch's gradients to those of the step."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def update(self) -> torch.Tensor:
        """End a step: change the weights by its gradients; return their norm before clipping."""
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip or math.inf)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return norm

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self.schedule.get_last_lr()[0])

    @property
    def overwritten_bytes(self) -> int:
        """Host memory that every step writes anew: weights, gradients, optimiser's state; next to none on a GPU."""
        weights = list(self.model.parameters())
        kept = [value for state in self.optimizer.state.values() for value in state.values()]
        tensors = [*weights, *(weight.grad for weight in weights), *self.model.buffers(), *kept]
        return sum(t.nbytes for t in tensors if isinstance(t, torch.Tensor) and t.device.type == "cpu")

    def state(self) -> dict[str, Any]:
        """All that a checkpoint holds: tensors and plain values only."""
        parts = {name: getattr(self, name).state_dict() for name in _PARTS}
        return {"fingerprint": self.config.fingerprint, "progress": dataclasses.asdict(self.progress), **parts}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a state that ``state`` gave."""
        for name in _PARTS:
            getattr(self, name).load_state_dict(state[name])
        self.progress = Progress(**state["progress"])


_PARTS = ("model", "optimizer", "schedule", "scaler")


def _lr_schedule(
    config: RunConfig, optimizer: torch.optim.Optimizer, total_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    if config.lr_schedule == "constant":
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=0)
    # One step beyond the last, because torch's scheduler is also stepped after the last one; two at the least,
    # because its warm-up divides by the steps between.
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=config.lr, total_steps=max(total_steps + 1, 4))
