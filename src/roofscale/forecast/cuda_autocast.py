"""Makes CPU autocast choose the precisions that CUDA autocast would.

Tensors traced on a CPU can only be cast by CPU autocast, whose list of operations that run in float32 is shorter than
CUDA's. The difference is large: an upsampled feature map is float32 on CUDA and stays bfloat16 on a CPU.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def _with_methods(*names: str) -> set[Callable[..., Any]]:
    """The functions of these names in torch, in torch.nn.functional and on tensors."""
    return {getattr(place, name) for place in (torch, F, torch.Tensor) for name in names if hasattr(place, name)}


# Source: AT_FORALL_FP32 and AT_FORALL_FP32_SET_OPT_DTYPE in aten/src/ATen/autocast_mode.h; those that segmentation
# models use.
_FLOAT32 = _with_methods(
    "acos", "asin", "cosh", "cosine_similarity", "cumprod", "cumsum", "erfinv", "exp", "expm1", "group_norm",
    "hinge_embedding_loss", "huber_loss", "interpolate", "kl_div", "l1_loss", "layer_norm", "log", "log10", "log1p",
    "log2", "log_softmax", "mse_loss", "native_layer_norm", "norm", "normalize", "pow", "__pow__", "prod", "reciprocal",
    "renorm", "rsqrt", "sinh", "smooth_l1_loss", "softmax", "softmin", "softplus", "sum", "tan", "upsample",
)  # fmt: skip
_HALF = (torch.bfloat16, torch.float16)


class CudaAutocast(TorchFunctionMode):
    """While active, and inside CPU autocast, CUDA's float32 operations run in float32."""

    def __torch_function__(
        self, func: Any, types: Iterable[Any], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Cast what CUDA autocast would cast, and call."""
        kwargs = kwargs or {}
        if func not in _FLOAT32 or not torch.is_autocast_enabled("cpu"):
            return func(*args, **kwargs)
        args, kwargs = tuple(map(_to_float32, args)), {name: _to_float32(value) for name, value in kwargs.items()}
        with torch.autocast("cpu", enabled=False):
            return func(*args, **kwargs)


def _to_float32(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.dtype in _HALF else value
