"""Memory that a CUDA kernel allocates and frees within one operation, which no trace on a CPU shows, from its shapes.

The terms and the published measurements that support each are in ``gpu_terms.yaml``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch._ops import OpOverload

TERMS = Path(__file__).with_name("gpu_terms.yaml")
WORKSPACE = "workspace"  # kind of these storages
_FLOOR_BYTES = {
    name: 2.0**20 * mib
    for name, mib in yaml.safe_load(TERMS.read_text(encoding="utf-8"))["workspace_floor_mib"].items()
}
_WINOGRAD_OUTPUT, _WINOGRAD_INPUT = 4, 6  # pixels of a tile's side: Winograd's F(4x4, 3x3) reads 6x6 to give 4x4


@dataclass(frozen=True)
class Convolution:
    """Shapes of a convolution or of its backward pass: input and output (N,C,H,W), weight (O,C/groups,h,w)."""

    input: tuple[int, ...]
    weight: tuple[int, ...]
    output: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    is_transposed: bool
    groups: int
    dtype: torch.dtype
    channels_last: bool
    backward: bool

    @classmethod
    def of(cls, func: OpOverload, args: Any, result: Any) -> "Convolution | None":
        """Read the shapes from a dispatched operation; None if it is no convolution."""
        name = func._schema.name
        if name == "aten::convolution":
            image, weight, output, rest = args[0], args[1], result, args[3:]
        elif name == "aten::convolution_backward":
            output, image, weight, rest = args[0], args[1], args[2], args[4:]
        else:
            return None
        stride, _padding, dilation, is_transposed, _output_padding, groups = rest[:6]
        return cls(
            tuple(image.shape), tuple(weight.shape), tuple(output.shape), tuple(stride), tuple(dilation), is_transposed,
            groups, image.dtype, image.dim() == 4 and image.is_contiguous(memory_format=torch.channels_last),
            name.endswith("backward"),
        )  # fmt: skip

    @property
    def uses_winograd(self) -> bool:
        """Whether cuDNN's non-fused Winograd can compute it: float32, dense, 3x3, without stride or dilation."""
        unit = {*self.stride, *self.dilation, self.groups} == {1}
        return unit and self.weight[2:] == (3, 3) and self.dtype == torch.float32 and not self.is_transposed

    @property
    def workspace_bytes(self) -> float:
        """Bytes of the transformed tiles, in proportion to the batch but for the weights; 0 without Winograd."""
        if not self.uses_winograd:
            return 0.0
        count, channels, _, _ = self.input
        height, width = self.output[2:]
        tiles = count * -(-height // _WINOGRAD_OUTPUT) * -(-width // _WINOGRAD_OUTPUT)
        transformed = tiles * (channels + self.output[1]) + channels * self.output[1]
        return float(self.dtype.itemsize * _WINOGRAD_INPUT**2 * transformed)


def workspace_bytes(func: OpOverload, args: Any, result: Any) -> tuple[float, float] | None:
    """Return the bytes that an operation's CUDA kernel allocates beyond its results; None if it needs none.

    The first number is linear in the batch; the second is the least that is allocated, whatever the batch.

    Args:
        func, args, result: call as a dispatch mode receives it.
    """
    if func._schema.name == "aten::_softmax_backward_data":  # SoftMax.cu: ``Tensor tmp = grad * output``
        return float(args[0].numel() * args[0].element_size()), 0.0
    convolution = Convolution.of(func, args, result)
    if convolution is None:
        return None
    return convolution.workspace_bytes, _FLOOR_BYTES["fp32" if convolution.dtype == torch.float32 else "half"]
