"""The device and the precision of a run, chosen by what the machine computes natively."""

from dataclasses import dataclass

import torch

from roofscale.config import RunConfig
from roofscale.errors import ConfigError


@dataclass(frozen=True)
class Execution:
    """The device and the precision that a run computes with."""

    device: torch.device
    precision: str  # fp32, bf16 or fp16
    why: str  # one sentence on the choice, a fact of the measurement

    def autocast(self) -> torch.autocast:
        """Return the autocast context of the forward pass; disabled under fp32."""
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision, torch.bfloat16)
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.precision != "fp32")


def select_device(config: RunConfig) -> Execution:
    """Choose the device and resolve ``precision``.

    ``auto`` takes bf16 where it is native (CUDA compute capability 8.0 and later; a CPU with AVX512-BF16 or AMX, where
    it takes less than half the time of fp32), fp16 on older GPUs, and fp32 on other CPUs, which only emulate bf16.

    Raises:
        ConfigError: fp16 on a CPU, or bf16 on a GPU without it.
    """
    if torch.cuda.is_available():
        return _cuda(config)
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    cpu = torch.device("cpu")
    if config.precision == "fp16":
        raise ConfigError("precision=fp16: a CPU has no fast fp16; use precision=auto, or compute with a GPU.")
    if config.precision != "auto":
        slow = "" if native or config.precision == "fp32" else ", which this CPU only emulates, slowly"
        return Execution(cpu, config.precision, f"{config.precision} as asked{slow}")
    if native:
        return Execution(cpu, "bf16", "bf16: this CPU has AVX512-BF16 or AMX")
    return Execution(cpu, "fp32", "fp32: this CPU has no native bf16 (AVX512-BF16 or AMX)")


def _cuda(config: RunConfig) -> Execution:
    gpu = torch.device("cuda")
    name, has_bf16 = torch.cuda.get_device_name(), torch.cuda.get_device_capability() >= (8, 0)
    fp32 = _settle_fp32(has_tf32=has_bf16)  # both came with Ampere
    if config.precision == "bf16" and not has_bf16:
        raise ConfigError(f"precision=bf16: {name} has no native bf16 (compute capability 8.0); use fp16 or auto.")
    if config.precision != "auto":
        return Execution(gpu, config.precision, f"{config.precision} as asked, on {name}; {fp32}")
    precision = "bf16" if has_bf16 else "fp16"
    return Execution(gpu, precision, f"{precision}: the fastest that {name} computes natively; {fp32}")


def _settle_fp32(*, has_tf32: bool) -> str:
    """Set how a GPU multiplies float32 to PyTorch's defaults, also if it was changed before; return it as a text.

    TF32 rounds the factors to 10 bits of mantissa. Convolutions, nearly all of a segmentation net, use it with
    precision=fp32; under bf16 and fp16 autocast no convolution or matrix product is left in float32.
    """
    torch.backends.cudnn.conv.fp32_precision = "tf32"  # type: ignore[attr-defined]  # missing from torch's stubs
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    return f"float32 is {'TF32' if has_tf32 else 'IEEE'} in convolutions and IEEE in matrix products"
