"""One training step and everything that it changes: model, optimiser, schedule, scaler and progress."""

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
        where: devices.Execution | None = None,
        model: nn.Module | None = None,
    ) -> None:
        self.config = config
        self.where = where or devices.select_device(config)
        self.format = models.memory_format(config)
        self.model = model or self._build()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        net: Any = torch.compile(self.model) if config.compile else self.model
        self.net = distributed.wrap_ddp(net)  # the same weights: what is trained in the model's place
        self.schedule = _lr_schedule(config, self.optimizer, total_steps)
        self.scaler = torch.amp.GradScaler(self.where.device.type, enabled=self.where.precision == "fp16")
        self.ema = models.make_ema(self.model, config.ema) if config.ema else None
        self.side = CudaPrefetcher(self._moved) if self.where.device.type == "cuda" else None
        self.progress = Progress()

    def _build(self) -> nn.Module:
        # A net that is built from a seed and then moved has the same weights on every device.
        model = models.build(self.config).to(self.where.device)
        model.to(memory_format=self.format)  # type: ignore[call-overload]  # missing from torch's stubs
        return distributed.convert_sync_batchnorm(model)

    def to_device(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Move image, target and labelled to the device, the image in the model's memory format."""
        to = self.where.device
        image_NCHW = batch.image_NCHW.to(to, non_blocking=True).contiguous(memory_format=self.format)
        return image_NCHW, batch.target_NKHW.to(to, non_blocking=True), batch.labelled_NK.to(to, non_blocking=True)

    def _moved(self, batch: Batch) -> Batch:
        return Batch(*self.to_device(batch), batch.ids)

    @property
    def eval_model(self) -> nn.Module:
        """The model that is validated and kept: the moving average of the trained one where the config has one."""
        return self.model if self.ema is None else self.ema.module

    def forward(self, image_NCHW: torch.Tensor) -> torch.Tensor:
        """Logits of the trained model in the run's precision, returned as float32."""
        with self.where.autocast():
            logits_NKHW: torch.Tensor = self.net(image_NCHW)
        return logits_NKHW

    def predict(self, image_NCHW: torch.Tensor) -> torch.Tensor:
        """Logits of the model that is judged, in the run's precision, returned as float32."""
        with self.where.autocast():
            logits_NKHW: torch.Tensor = self.eval_model(image_NCHW)
        return logits_NKHW

    def step(self, batch: Batch) -> tuple[float, float]:
        """Take one optimiser step; return the loss and the gradient norm before clipping.

        The randomness of a step (dropout) is a function of the seed and the step alone, so that a resumed run needs
        no generator state. A non-finite loss changes no weight: the caller ends the run as diverged. The caller also
        moves ``schedule`` on. Of several processes each is given its part of the batch; the loss and the norm are those
        of the whole.
        """
        torch.manual_seed(distributed.step_seed(self.config.seed * 1_000_003 + self.progress.step))
        self.begin()
        labelled, parts = self.count_labelled(batch), self.parts(batch)
        losses = []
        for number, part in enumerate(parts, 1):
            with distributed.maybe_no_sync(self.net, now=number == len(parts)):
                loss = self.loss(part, labelled)
                losses.append(loss.detach())  # read below: a GPU is not waited for between forward and backward
                self.backward(loss)
        total = distributed.all_reduce_mean(torch.tensor(sum(one.item() for one in losses), dtype=torch.float64)).item()
        return total, self.update().item() if math.isfinite(total) else math.nan

    def begin(self) -> None:
        """Begin a step."""
        self.model.train()
        # Before the forward pass and not after it, so that the old gradients do not lie beside the activations.
        self.optimizer.zero_grad(set_to_none=True)

    def count_labelled(self, batch: Batch) -> torch.Tensor:
        """How many channels of samples are labelled in the batch, a scalar, 1 at the least.

        Of several processes' batch, on average over these: gradients and losses are averaged over them, too.
        """
        return distributed.all_reduce_mean(batch.labelled_NK.sum()).clamp_min(1 / distributed.world_size())

    def parts(self, batch: Batch) -> list[Batch]:
        """The micro-batches of a batch, as even as can be; as many in every process."""
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
        """What a micro-batch adds to the mean loss over all that is ``labelled`` in its batch: a float32 scalar with
        its graph."""
        image_NCHW, target_NKHW, labelled_NK = self.to_device(part)
        losses_NK = sample_losses(self.forward(image_NCHW), target_NKHW, labelled_NK)
        return losses_NK.sum() / labelled.to(losses_NK.device, torch.float32, non_blocking=True)

    def backward(self, loss: torch.Tensor) -> None:
        """Add a micro-batch's gradients to those of the step."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def update(self) -> torch.Tensor:
        """End a step: change the weights by its gradients, and their average; return the gradients' norm before
        clipping."""
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip or math.inf)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(self.model, step=self.progress.step + 1)  # counted from 1
        return norm

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self.schedule.get_last_lr()[0])

    @property
    def mutable_state_bytes(self) -> int:
        """Host memory that every step writes anew: weights and their average, gradients, optimiser's state; next to
        none on a GPU."""
        weights = list(self.model.parameters())
        kept = [value for state in self.optimizer.state.values() for value in state.values()]
        averaged = [] if self.ema is None else self.ema.module.state_dict().values()
        tensors = [*weights, *(weight.grad for weight in weights), *self.model.buffers(), *kept, *averaged]
        return sum(t.nbytes for t in tensors if isinstance(t, torch.Tensor) and t.device.type == "cpu")

    def state(self) -> dict[str, Any]:
        """All that a checkpoint holds: tensors and plain values only."""
        parts = {name: part.state_dict() for name, part in self._parts()}
        return {"fingerprint": self.config.fingerprint, "progress": dataclasses.asdict(self.progress), **parts}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a state that ``state`` gave."""
        for name, part in self._parts():
            part.load_state_dict(state[name])
        self.progress = Progress(**state["progress"])

    def _parts(self) -> Iterator[tuple[str, Any]]:
        """What has a state of its own, by the name that a checkpoint has for it."""
        for name in ("model", "optimizer", "schedule", "scaler", "ema"):
            if (part := getattr(self, name)) is not None:
                yield name, part


def _lr_schedule(
    config: RunConfig, optimizer: torch.optim.Optimizer, total_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    if config.lr_schedule == "constant":
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=0)
    # One step beyond the last, because torch's scheduler is also stepped after the last one; two at the least,
    # because its warm-up divides by the steps between.
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=config.lr, total_steps=max(total_steps + 1, 4))
