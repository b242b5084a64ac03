"""Synchronised batch normalisation on a CPU: statistics over the batch of all processes that train together.

torch's SyncBatchNorm needs a GPU. Here the modules stay in the model and only the function that they call is replaced,
so that weights, buffers and their names are those of a single process.

Shape suffixes: C channels, R ranks; x is (N,C,...) with any dimensions after C.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

Gather = Callable[[torch.Tensor], torch.Tensor]  # this process's tensor to those of all ranks, stacked


def install(model: nn.Module, gather: Gather) -> None:
    """Make every batch normalisation of a model take its statistics over all processes, in place."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.forward = functools.partial(_forward, gather, module.forward)  # type: ignore[method-assign]


def all_gather(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensors of all processes of the default group, stacked in the order of the ranks."""
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.stack(parts)


def _forward(gather: Gather, forward: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    with _Synchronised(gather):
        return forward(x)


class _Synchronised(TorchFunctionMode):
    """Replaces ``F.batch_norm`` by the synchronised function inside the ``with`` block.

    Independent of the module's class: timm's fused batch norm with activation calls ``F.batch_norm`` as well.
    """

    def __init__(self, gather: Gather) -> None:
        super().__init__()
        self._gather = gather

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm and kwargs["training"]:
            return _batch_norm(self._gather, *args, **kwargs)
        return func(*args, **kwargs)


def _batch_norm(
    gather: Gather,
    x: torch.Tensor,
    running_mean_C: torch.Tensor | None,
    running_var_C: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    training: bool,
    momentum: float,
    eps: float,
) -> torch.Tensor:
    """Compute ``F.batch_norm`` in training over all processes' samples, and update the running statistics."""
    assert training
    normalised: tuple[torch.Tensor, ...] = _Normalise.apply(x, weight, bias, eps, gather)  # type: ignore[no-untyped-call]
    y, mean_C, var_C, count = normalised
    if running_mean_C is not None and running_var_C is not None:
        with torch.no_grad():
            running_mean_C.lerp_(mean_C, momentum)
            running_var_C.lerp_(var_C * (count / (count - 1)), momentum)  # unbiased, as in F.batch_norm
    return y


class _Normalise(torch.autograd.Function):
    """The normalisation and its gradient; statistics in float32 for any input type.

    Source of the gradient: S. Ioffe and C. Szegedy, Batch normalization, ICML 2015, section 3.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight_C: torch.Tensor, bias_C: torch.Tensor, eps: float, gather: Gather
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        mean_C, var_C, count = _statistics(x, gather)
        ctx.save_for_backward(x, weight_C, mean_C, (var_C + eps).rsqrt(), count)
        ctx.gather = gather
        y = F.batch_norm(x, mean_C, var_C, weight_C, bias_C, training=False, eps=eps)
        ctx.mark_non_differentiable(mean_C, var_C, count)
        return y, mean_C, var_C, count

    @staticmethod
    def backward(
        ctx: Any, grad: torch.Tensor, *_: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None, None]:
        x, weight_C, mean_C, scale_C, count = ctx.saved_tensors
        grad_wide = grad.float()
        normal = (x.float() - _wide(mean_C, x)) * _wide(scale_C, x)
        others = _all_but_channels(x)
        sums_2C = torch.stack([grad_wide.sum(others), (grad_wide * normal).sum(others)])
        mean_grad_C, mean_product_C = ctx.gather(sums_2C).sum(0) / count
        grad_x = (grad_wide - _wide(mean_grad_C, x)).sub_(normal.mul_(_wide(mean_product_C, x)))
        return grad_x.mul_(_wide(weight_C * scale_C, x)).to(x.dtype), sums_2C[1], sums_2C[0], None, None


def _statistics(x: torch.Tensor, gather: Gather) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute mean (C,), biased variance (C,) and the number of values per channel, over all processes.

    They are combined from the mean and variance of each process: sums of squares about 0 would cancel digits.
    Source: T. Chan, G. Golub, R. LeVeque, Updating formulae and a pairwise algorithm for computing sample variances,
    COMPSTAT 1982.
    """
    count = x.numel() // x.shape[1]
    if count:
        var_C, mean_C = torch.var_mean(x.float(), _all_but_channels(x), correction=0)
    else:  # this process has no sample in this batch
        var_C = mean_C = torch.zeros(x.shape[1])
    stats_R3C = gather(torch.stack([torch.full_like(mean_C, count), mean_C, var_C]))
    counts_RC, means_RC, vars_RC = stats_R3C.unbind(1)
    total_C = counts_RC.sum(0)
    all_mean_C = (counts_RC * means_RC).sum(0) / total_C
    all_var_C = (counts_RC * (vars_RC + (means_RC - all_mean_C).square())).sum(0) / total_C
    return all_mean_C, all_var_C, total_C[0]


def _all_but_channels(x: torch.Tensor) -> list[int]:
    return [dim for dim in range(x.dim()) if dim != 1]


def _wide(value_C: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Reshape (C,) so that it broadcasts over (N,C,...)."""
    return value_C.view(1, -1, *[1] * (x.dim() - 2))
