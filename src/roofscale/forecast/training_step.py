"""Training step of any model, as the GPU forecast traces it; that of the project's trainer is one of them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from roofscale import model as models
from roofscale.config import RunConfig
from roofscale.data.sample import CHANNELS, Batch
from roofscale.train.device import Execution
from roofscale.train.trainer import Trainer

_Loss = Callable[[nn.Module, Any], torch.Tensor]
_MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class Training(Protocol):
    """State of a training, and its step in four parts, as ``train.trainer.Trainer`` has them."""

    @property
    def optimizer(self) -> torch.optim.Optimizer: ...

    def begin(self) -> None: ...

    def loss(self, batch: Any) -> torch.Tensor: ...

    def backward(self, loss: torch.Tensor) -> None: ...

    def update(self) -> object: ...


@dataclass(frozen=True)
class TrainingStep:
    """Training step to be traced; ``of`` describes one of any model, ``of_run`` that of the project's trainer."""

    net: nn.Module  # on the CPU, in the mode that it trains in; it is copied and not changed
    inputs: Callable[[int], Any]  # of so many samples, on the GPU; only shapes, dtypes and memory format matter
    start: Callable[[nn.Module, str], Training]  # of a copy of the net, in fp32 or bf16
    precision: str  # fp32, bf16, fp16, or auto for bf16 where the GPU computes it natively and fp16 elsewhere
    ddp: bool  # DistributedDataParallel wraps the net: its buckets hold the gradients a second time
    channels_last: bool  # memory format of the weights
    name: str  # of the model, in messages
    on_host: bool = False  # the inputs lie in host memory, and the step copies them

    @classmethod
    def of(
        cls,
        net: nn.Module,
        inputs: Callable[[int], Any],
        loss: _Loss,
        optimizer: _MakeOptimizer,
        *,
        precision: str = "auto",
        keeps_gradients: bool = False,
        ddp: bool = False,
        channels_last: bool = False,
        grad_clip: float = 0.0,
        name: str = "model",
    ) -> "TrainingStep":
        """Describe a step of any model.

        Args:
            net, inputs, precision, ddp, channels_last, name: as the fields; a SyncBatchNorm counts as a BatchNorm.
            loss: computes the scalar loss from the net and the inputs, under autocast unless the precision is fp32.
            optimizer: makes the optimizer of the trained weights.
            keeps_gradients: whether ``zero_grad`` keeps the gradients' memory (``set_to_none=False``).
            grad_clip: largest norm of the gradients; 0 does not clip.
        """

        def start(copied: nn.Module, resolved: str) -> Training:
            made = optimizer([weight for weight in copied.parameters() if weight.requires_grad])
            return _PlainTraining(copied, loss, made, resolved != "fp32", keeps_gradients, grad_clip)

        return cls(net, inputs, start, precision, ddp, channels_last, name)

    @classmethod
    def of_run(cls, config: RunConfig) -> "TrainingStep":
        """Describe the step that the project's trainer takes on one whole batch, without its micro-batches.

        Raises:
            ConfigError: the model cannot be built.
        """
        # Weights from a model hub have the same shapes as random ones.
        config = config.with_overrides({"pretrained": False, "micro_batches": 1})

        def start(net: nn.Module, precision: str) -> Training:
            return _TracedTrainer(config, 2, execution=Execution(torch.device("cpu"), precision, "traced"), model=net)

        return cls(
            models.build(config), lambda count: _host_batch(config.image_size, count), start, config.precision,
            config.world_size > 1, config.channels_last,
            f"encoder={config.encoder} decoder={config.decoder} image_size={config.image_size}", on_host=True,
        )  # fmt: skip


@dataclass
class _PlainTraining:
    net: nn.Module
    compute_loss: _Loss
    optimizer: torch.optim.Optimizer
    is_half: bool
    keeps_gradients: bool
    grad_clip: float

    def begin(self) -> None:
        self.optimizer.zero_grad(set_to_none=not self.keeps_gradients)

    def loss(self, batch: Any) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.is_half):
            return self.compute_loss(self.net, batch)

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def update(self) -> None:
        if self.grad_clip:
            trained = (weight for group in self.optimizer.param_groups for weight in group["params"])
            nn.utils.clip_grad_norm_(trained, self.grad_clip)
        self.optimizer.step()


class _TracedTrainer(Trainer):
    """Trainer on a CPU that copies its batch, as it would to a GPU."""

    def to_device(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return copies of image, target and labelled, the image in the model's memory format."""
        image_NCHW = batch.image_NCHW.clone().contiguous(memory_format=self.format)
        return image_NCHW, batch.target_NKHW.clone(), batch.labelled_NK.clone()

    def loss(self, part: Batch, labelled: torch.Tensor | None = None) -> torch.Tensor:
        """Return the mean loss of a batch, by default of one that is not split."""
        return super().loss(part, self.count_labelled(part) if labelled is None else labelled)


def _host_batch(size: int, count: int) -> Batch:
    """Return a batch as the loader yields it, in host memory."""
    image_NCHW = torch.zeros(count, 3, size, size, dtype=torch.uint8)
    target_NKHW = torch.zeros(count, len(CHANNELS), size, size, dtype=torch.uint8)
    labelled_NK = torch.ones(count, len(CHANNELS), dtype=torch.bool)
    return Batch(image_NCHW, target_NKHW, labelled_NK, [f"traced/{i}" for i in range(count)])
