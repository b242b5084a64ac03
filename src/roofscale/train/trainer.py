"""The training step and the state that it changes: model, optimiser, schedule, scaler, moving average, progress.

Shape suffixes: N batch, K channels, C = 3 colours (RGB), H height, W width.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import nn

from roofscale import model as models
from roofscale.config import RunConfig
from roofscale.data.sample import Batch
from roofscale.train import device as devices
from roofscale.train import distributed
from roofscale.train.loss import sample_losses
from roofscale.train.prefetch import CudaPrefetcher


@dataclass
class Progress:
    """How far a run has trained; saved in the checkpoint next to the states of model and optimiser."""

    epoch: int = 0  # passes completed
    batch: int = 0  # batches completed of the current pass
    step: int = 0  # optimiser steps completed
    samples: int = 0  # training samples seen
    skipped: list[str] = field(default_factory=list)  # the message of each broken sample left out, once each
    best: float = math.inf  # smallest mean validation loss so far

    def leave_out(self, complaints: Iterable[str]) -> list[str]:
        """Record the messages of broken samples; return those not recorded before."""
        new = [complaint for complaint in complaints if complaint not in self.skipped]
        self.skipped += new
        return new


class Trainer:
    """The trained state of a run and the step that changes it.

    Args:
        config: of the run.
        total_steps: optimiser steps that the learning rate is spread over.
        execution: device and precision; chosen by ``select_device`` if None.
        model: to be trained, on its device and in its memory format; built from the config if None.

    Raises:
        ConfigError: the precision or the model of the config cannot be had on this machine.
    """

    def __init__(
        self,
        config: RunConfig,
        total_steps: int,
        *,
        execution: devices.Execution | None = None,
        model: nn.Module | None = None,
    ) -> None:
        self.config = config
        self.execution = execution or devices.select_device(config)
        self.format = models.memory_format(config)
        self.model = model or self._build()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        net: Any = torch.compile(self.model) if config.compile else self.model
        self.net = distributed.wrap_ddp(net)  # shares its weights with ``model``; training steps call it
        self.schedule = _lr_schedule(config, self.optimizer, total_steps)
        self.scaler = torch.amp.GradScaler(self.execution.device.type, enabled=self.execution.precision == "fp16")
        self.ema = models.make_ema(self.model, config.ema) if config.ema else None
        self.prefetcher = CudaPrefetcher(self._moved) if self.execution.device.type == "cuda" else None
        self.progress = Progress()

    def _build(self) -> nn.Module:
        # Built on the CPU and then moved, so that a seed gives the same weights on every device.
        model = models.build(self.config).to(self.execution.device)
        model.to(memory_format=self.format)  # type: ignore[call-overload]  # missing from torch's stubs
        return distributed.convert_sync_batchnorm(model)

    def to_device(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return image (N,C,H,W), target (N,K,H,W) and labelled (N,K) on the device, the image in the memory format."""
        to = self.execution.device
        image_NCHW = batch.image_NCHW.to(to, non_blocking=True).contiguous(memory_format=self.format)
        return image_NCHW, batch.target_NKHW.to(to, non_blocking=True), batch.labelled_NK.to(to, non_blocking=True)

    def _moved(self, batch: Batch) -> Batch:
        return Batch(*self.to_device(batch), batch.ids)

    @property
    def eval_model(self) -> nn.Module:
        """The model that is validated and saved: the moving average of the weights if the config asks for one."""
        return self.model if self.ema is None else self.ema.module

    def forward(self, image_NCHW: torch.Tensor) -> torch.Tensor:
        """Return float32 logits (N,K,H,W) of the trained model, computed in the run's precision."""
        with self.execution.autocast():
            logits_NKHW: torch.Tensor = self.net(image_NCHW)
        return logits_NKHW

    def predict(self, image_NCHW: torch.Tensor) -> torch.Tensor:
        """Return float32 logits (N,K,H,W) of ``eval_model``, computed in the run's precision."""
        with self.execution.autocast():
            logits_NKHW: torch.Tensor = self.eval_model(image_NCHW)
        return logits_NKHW

    def step(self, batch: Batch) -> tuple[float, float]:
        """Take one optimiser step; return the loss and the gradient norm before clipping.

        The randomness of a step (dropout) depends on the seed and the step number alone, so that a resumed run needs
        no generator state. If the loss is not finite, the weights stay unchanged and the norm is NaN: the caller ends
        the run as diverged. The caller also steps ``schedule``. In a distributed run each process passes its part of
        the batch; loss and norm are those of the whole batch.
        """
        torch.manual_seed(distributed.step_seed(self.config.seed * 1_000_003 + self.progress.step))
        self.begin()
        labelled, parts = self.count_labelled(batch), self.parts(batch)
        losses = []
        for number, part in enumerate(parts, 1):
            with distributed.maybe_no_sync(self.net, now=number == len(parts)):
                loss = self.loss(part, labelled)
                losses.append(loss.detach())  # .item() here would wait for the GPU between forward and backward
                self.backward(loss)
        total = distributed.all_reduce_mean(
            torch.tensor(sum(loss.item() for loss in losses), dtype=torch.float64)
        ).item()
        return total, self.update().item() if math.isfinite(total) else math.nan

    def begin(self) -> None:
        """Begin a step: set the model to training mode and free the old gradients."""
        self.model.train()
        # Before the forward pass, so that the old gradients do not take memory next to the activations.
        self.optimizer.zero_grad(set_to_none=True)

    def count_labelled(self, batch: Batch) -> torch.Tensor:
        """Count the labelled (sample, channel) pairs of the batch: a scalar, at least 1 over all processes together.

        In a distributed run it is the mean over the processes, because DDP also averages gradients over them.
        """
        return distributed.all_reduce_mean(batch.labelled_NK.sum()).clamp_min(1 / distributed.world_size())

    def parts(self, batch: Batch) -> list[Batch]:
        """Split a batch into its micro-batches, as even as possible, and equally many in every process."""
        largest = max(distributed.all_gather(len(batch.ids))) if self.config.micro_batches > 1 else 1
        count = min(self.config.micro_batches, largest)
        if count == 1:
            return [batch]
        images, targets, labelled = (torch.tensor_split(tensor, count) for tensor in batch[:-1])
        ids = iter(batch.ids)
        return [
            Batch(image_NCHW, target_NKHW, labelled_NK, list(islice(ids, len(image_NCHW))))
            for image_NCHW, target_NKHW, labelled_NK in zip(images, targets, labelled, strict=True)
        ]

    def loss(self, part: Batch, labelled: torch.Tensor) -> torch.Tensor:
        """Return a micro-batch's term of the batch's mean loss: a float32 scalar with its autograd graph.

        Args:
            part: the micro-batch.
            labelled: ``count_labelled`` of the whole batch, the divisor of the mean.
        """
        image_NCHW, target_NKHW, labelled_NK = self.to_device(part)
        losses_NK = sample_losses(self.forward(image_NCHW), target_NKHW, labelled_NK)
        return losses_NK.sum() / labelled.to(losses_NK.device, torch.float32, non_blocking=True)

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulate a micro-batch's gradients."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def update(self) -> torch.Tensor:
        """Update the weights and their moving average; return the L2 norm of the gradients before clipping."""
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip or math.inf)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(self.model, step=self.progress.step + 1)  # timm counts steps from 1
        return norm

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self.schedule.get_last_lr()[0])

    @property
    def mutable_state_bytes(self) -> int:
        """Host memory that every step rewrites: weights, moving average, gradients, optimiser state; near 0 on a GPU.

        A forked loader process keeps a copy of these pages, because the step after the fork writes to them.
        """
        weights = list(self.model.parameters())
        optimizer_state = [value for state in self.optimizer.state.values() for value in state.values()]
        ema = [] if self.ema is None else self.ema.module.state_dict().values()
        tensors = [*weights, *(weight.grad for weight in weights), *self.model.buffers(), *optimizer_state, *ema]
        return sum(t.nbytes for t in tensors if isinstance(t, torch.Tensor) and t.device.type == "cpu")

    def state(self) -> dict[str, Any]:
        """Return the content of a checkpoint: tensors and plain values only, so that it loads with weights_only."""
        parts = {name: part.state_dict() for name, part in self._stateful()}
        return {"fingerprint": self.config.fingerprint, "progress": dataclasses.asdict(self.progress), **parts}

    def restore(self, state: dict[str, Any]) -> None:
        """Load a state that ``state`` returned."""
        for name, part in self._stateful():
            part.load_state_dict(state[name])
        self.progress = Progress(**state["progress"])

    def _stateful(self) -> Iterator[tuple[str, Any]]:
        """Yield the parts with a state of their own, under their keys in a checkpoint."""
        for name in ("model", "optimizer", "schedule", "scaler", "ema"):
            if (part := getattr(self, name)) is not None:
                yield name, part


def _lr_schedule(
    config: RunConfig, optimizer: torch.optim.Optimizer, total_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    if config.lr_schedule == "constant":
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=0)
    # One more than the steps, because the scheduler is stepped after the last one too; at least 4, so that OneCycleLR's
    # warm-up, which ends at 0.3 * total_steps - 1, is longer than 0 and can be divided by.
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=config.lr, total_steps=max(total_steps + 1, 4))
