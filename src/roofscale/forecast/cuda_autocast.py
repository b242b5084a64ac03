"""Mode that makes operations on a CPU choose the dtypes, and keep the tensors, that they would on CUDA.

Tensors traced on a CPU are cast by CPU autocast, whose list of operations that run in float32 is shorter than CUDA's.
The difference is large: an upsampled feature map is float32 on CUDA and stays bfloat16 on a CPU. A dropout keeps a mask
of one byte an element on CUDA, and of the input's dtype on a CPU.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def _with_methods(*names: str) -> set[Callable[..., Any]]:
    """Return the functions of these names in torch and torch.nn.functional, and the methods of tensors."""
    return {getattr(owner, name) for owner in (torch, F, torch.Tensor) for name in names if hasattr(owner, name)}


# Source: AT_FORALL_FP32 and AT_FORALL_FP32_SET_OPT_DTYPE in aten/src/ATen/autocast_mode.h, reduced to operations that
# segmentation models use.
_FLOAT32 = _with_methods(
    "acos", "asin", "cosh", "cosine_similarity", "cumprod", "cumsum", "erfinv", "exp", "expm1", "group_norm",
    "hinge_embedding_loss", "huber_loss", "interpolate", "kl_div", "l1_loss", "layer_norm", "log", "log10", "log1p",
    "log2", "log_softmax", "mse_loss", "native_layer_norm", "norm", "normalize", "pow", "__pow__", "prod", "reciprocal",
    "renorm", "rsqrt", "sinh", "smooth_l1_loss", "softmax", "softmin", "softplus", "sum", "tan", "upsample",
)  # fmt: skip
_DROPOUT = _with_methods("dropout")
_HALF = (torch.bfloat16, torch.float16)


class CudaAutocast(TorchFunctionMode):
    """Function mode of CUDA's dropout, and of CUDA autocast's float32 operations if CPU autocast is enabled."""

    def __torch_function__(
        self, func: Any, types: Iterable[Any], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Cast the arguments that CUDA autocast would cast, and call the function."""
        kwargs = kwargs or {}
        if func in _DROPOUT:
            return _dropout(*args, **kwargs)
        if func not in _FLOAT32 or not torch.is_autocast_enabled("cpu"):
            return func(*args, **kwargs)
        args, kwargs = tuple(map(_to_float32, args)), {name: _to_float32(value) for name, value in kwargs.items()}
        with torch.autocast("cpu", enabled=False):  # so that it casts nothing back to bfloat16
            return func(*args, **kwargs)


def _dropout(
    input: torch.Tensor, p: float = 0.5, training: bool | None = None, inplace: bool = False, *, train: bool = True
) -> torch.Tensor:
    """Apply dropout as CUDA's fused kernel does, which serves all but in-place calls (ATen/native/Dropout.cpp)."""
    training = train if training is None else training
    if training and not inplace and 0 < p < 1:
        return torch.native_dropout(input, p, train=True)[0]
    return (torch.dropout_ if inplace else torch.dropout)(input, p, training)


def _to_float32(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.dtype in _HALF else value
