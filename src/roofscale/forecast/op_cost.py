"""What a dispatched operation computes, and how much memory it reads and writes; nothing need be executed."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._ops import OpOverload
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

# These take memory or look at it otherwise, and touch none.
_FREE = ("empty", "new_empty", "detach", "_unsafe_view", "lift_fresh")


@dataclass(frozen=True)
class OpCost:
    """One operation's work; each sample beyond those traced adds ``per_sample``."""

    flops: float  # of products and convolutions; other operations are held up by memory
    nbytes: float  # read and written
    is_fp32: bool  # whether it computes in float32; else in the precision of the run
    is_convolution: bool
    forward: bool  # whether it is of the forward pass or the loss
    per_sample: tuple[float, float] = (0.0, 0.0)  # flops and bytes

    def at(self, batch: int) -> "OpCost":
        """With ``batch`` samples."""
        flops, nbytes = self.per_sample
        return replace(
            self, flops=self.flops + batch * flops, nbytes=self.nbytes + batch * nbytes, per_sample=(0.0, 0.0)
        )


def op_cost(func: OpOverload, args: Any, kwargs: dict[str, Any], result: Any, *, forward: bool) -> OpCost | None:
    """What one operation does; None where it only makes a view or takes memory.

    It reads its inputs and writes its results, or where it has none the inputs that its schema says it changes.

    Args:
        func, args, kwargs, result: as a dispatch mode sees the call.
        forward: whether it is of the forward pass or the loss.
    """
    name = str(func._schema.name).partition("::")[2]
    if func.is_view or name.startswith(_FREE):
        return None
    read = _tensors((args, kwargs))
    written = _tensors(result) or _changed(func, args)
    formula = flop_registry.get(func.overloadpacket)
    floating = next((value for value in read if value.is_floating_point()), None)
    return OpCost(
        flops=float(formula(*args, **kwargs, out_val=result)) if formula else 0.0,
        nbytes=sum(map(_held_bytes, (*read, *written))),
        is_fp32=floating is not None and floating.dtype == torch.float32,
        is_convolution="convolution" in name,
        forward=forward,
    )


def _tensors(values: Any) -> list[torch.Tensor]:
    return [value for value in tree_iter(values) if isinstance(value, torch.Tensor)]


def _changed(func: OpOverload, args: Any) -> list[torch.Tensor]:
    """The inputs that an operation changes in place."""
    named = zip(func._schema.arguments, args, strict=False)
    return _tensors([value for known, value in named if known.alias_info is not None and known.alias_info.is_write])


def _held_bytes(tensor: torch.Tensor) -> float:
    """Bytes behind a tensor; one that was expanded is read from fewer than it has elements."""
    return float(min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()))
