"""Memory that a CUDA kernel allocates and frees within one operation, which no trace on a CPU shows, from its shapes.

The terms and the published measurements that support each are in ``gpu_terms.yaml``.
"""

from pathlib import Path
from typing import Any

import torch
import yaml
from torch._ops import OpOverload

TERMS = Path(__file__).with_name("gpu_terms.yaml")
WORKSPACE = "workspace"  # kind of these storages
_FLOOR_MIB = yaml.safe_load(TERMS.read_text(encoding="utf-8"))["workspace_floor_mib"]
_TILE, _PATCH = 4, 6  # pixels of a side: Winograd's F(4x4, 3x3) reads a patch of 6x6 to give a tile of 4x4


def workspace_bytes(func: OpOverload, args: Any, result: Any) -> tuple[float, float] | None:
    """Return the bytes that an operation's CUDA kernel allocates beyond its results; None if it needs none.

    The first number is linear in the batch; the second is the least that is allocated for any batch.
    """
    match func._schema.name:
        case "aten::_softmax_backward_data":  # SoftMax.cu: ``Tensor tmp = grad * output``
            return float(args[0].numel() * args[0].element_size()), 0.0
        case "aten::convolution":
            image, weight, output, settings = args[0], args[1], result, args[3:]
        case "aten::convolution_backward":
            output, image, weight, settings = args[0], args[1], args[2], args[4:]
        case _:
            return None
    is_fp32 = image.dtype == torch.float32
    uses = is_fp32 and _suits_winograd(weight, settings)
    return _winograd_bytes(image, output) if uses else 0.0, 2.0**20 * _FLOOR_MIB["fp32" if is_fp32 else "half"]


def _suits_winograd(weight: torch.Tensor, settings: Any) -> bool:
    """Return whether cuDNN's non-fused Winograd can compute a convolution: dense, 3x3, no stride or dilation."""
    stride, _padding, dilation, is_transposed, _output_padding, groups = settings[:6]
    return {*stride, *dilation, groups} == {1} and tuple(weight.shape[2:]) == (3, 3) and not is_transposed


def _winograd_bytes(image_NCHW: torch.Tensor, output_NOHW: torch.Tensor) -> float:
    """Return the bytes of the transformed patches, tiles and weights in float32."""
    (count, channels), (outputs, height, width) = image_NCHW.shape[:2], output_NOHW.shape[1:]
    tiles = count * -(-height // _TILE) * -(-width // _TILE)
    return 4.0 * _PATCH**2 * (tiles * (channels + outputs) + channels * outputs)
