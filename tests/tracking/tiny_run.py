"""A model and an event, as small as they can be."""

from typing import Any

import torch
from torch import nn


class Tiny(nn.Module):
    """A model that takes images of bytes, as ours do."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 4, 1)

    def forward(self, image_NCHW: torch.Tensor) -> torch.Tensor:
        logits_NKHW: torch.Tensor = self.head(image_NCHW.float())
        return logits_NKHW


def step(number: int, loss: float = 1.0) -> dict[str, Any]:
    """A step event of a training process."""
    fields = {"loss": loss, "grad_norm": 2.0, "lr": 1e-3, "seconds": 0.5, "wait_seconds": 0.1}
    return {"event": "step", "time": 1.7e9 + number, "step": number, **fields}
