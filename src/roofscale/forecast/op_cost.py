"""Cost of a dispatched operation: its FLOPs and the bytes that it reads and writes, without executing it."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._ops import OpOverload
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

# Name prefixes of operations that allocate memory or view it, and neither read nor write it.
_FREE = ("empty", "new_empty", "detach", "_unsafe_view", "lift_fresh")


@dataclass(frozen=True)
class OpCost:
    """One operation's FLOPs and bytes; ``per_sample`` is added for each sample, see ``at``."""

    flops: float  # of matrix products and convolutions; memory bandwidth limits all other operations
    nbytes: float  # read and written
    is_fp32: bool  # computes in float32; else in the run's precision
    is_convolution: bool
    is_grouped: bool  # a convolution in groups, whose small products leave most of a tensor core idle
    forward: bool  # belongs to the forward pass or the loss
    per_sample: tuple[float, float] = (0.0, 0.0)  # flops and bytes

    def at(self, batch: int) -> "OpCost":
        """Return the cost with ``batch`` samples."""
        flops, nbytes = self.per_sample
        return replace(
            self, flops=self.flops + batch * flops, nbytes=self.nbytes + batch * nbytes, per_sample=(0.0, 0.0)
        )


def op_cost(func: OpOverload, args: Any, kwargs: dict[str, Any], result: Any, *, forward: bool) -> OpCost | None:
    """Return the cost of one operation, None if it makes a view, allocates memory or asks for a property of a tensor.

    It reads its inputs and writes its results, or if it returns no tensor the inputs that its schema declares mutable.
    An operation that writes nothing is a query, such as ``prim::device``, and so is every other one of ``prim``.
    """
    name = str(func._schema.name).partition("::")[2]
    if func.is_view or name.startswith(_FREE):
        return None
    read = tensors_in((args, kwargs))
    written = tensors_in(result) or _mutated(func, args)
    if func.namespace == "prim" or not written:
        return None
    is_convolution = "convolution" in name
    nbytes = sum(map(_stored_bytes, (*read, *written)))
    if "batch_norm" in name:  # cuDNN's and torch's kernels read their input for the sums, and again to normalise
        nbytes += sum(_stored_bytes(value) for value in read if value.dim() > 1)
    floating = next((value for value in read if value.is_floating_point()), None)
    return OpCost(
        flops=_flops(func, args, kwargs, result),
        nbytes=nbytes,
        is_fp32=floating is not None and floating.dtype == torch.float32,
        is_convolution=is_convolution,
        is_grouped=is_convolution and next(a for a in reversed(args) if type(a) is int) > 1,
        forward=forward,
    )


def _flops(func: OpOverload, args: Any, kwargs: dict[str, Any], result: Any) -> float:
    """Return the FLOPs of a product or convolution by torch's formulas, 0 of other operations.

    Its formula of a convolution's backward pass counts the weights' gradient once for each group: each gradient takes
    what the forward pass takes, two for each output and each weight that it depends on.
    """
    if func._schema.name == "aten::convolution_backward":
        grad, image, weight = args[:3]
        is_transposed, gradients = args[7], sum(args[10][:2])
        return float(2 * (image if is_transposed else grad).numel() * weight[0].numel() * gradients)
    formula = flop_registry.get(func.overloadpacket)
    return float(formula(*args, **kwargs, out_val=result)) if formula else 0.0


def tensors_in(values: Any) -> list[torch.Tensor]:
    """Return the tensors in a nest of containers."""
    return [value for value in tree_iter(values) if isinstance(value, torch.Tensor)]


def _mutated(func: OpOverload, args: Any) -> list[torch.Tensor]:
    """Return the inputs that an operation changes in place."""
    pairs = zip(func._schema.arguments, args, strict=False)  # arguments left at their defaults are missing in args
    return tensors_in([value for spec, value in pairs if spec.alias_info is not None and spec.alias_info.is_write])


def _stored_bytes(tensor: torch.Tensor) -> float:
    """Return the bytes that a tensor occupies; an expanded one has fewer than its elements would take."""
    return float(min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()))
