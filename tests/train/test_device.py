"""Which arithmetic a device gets, and what is said of it. No GPU takes part: torch's answers are put in its mouth."""

from collections.abc import Iterator

import pytest
import torch

from roofscale.config import RunConfig
from roofscale.errors import ConfigError
from roofscale.train import device


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """A GPU of the compute capability that the test asks for; what is set of torch's arithmetic is set back."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: request.param)
    before = torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision = "ieee", "tf32"
    yield
    torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision = before


def chosen(precision: str) -> device.Execution:
    return device.select_device(RunConfig(precision=precision))


AMPERE, TURING = (8, 6), (7, 5)


@pytest.mark.parametrize(
    ("gpu", "asked", "expected", "conv"),
    [
        (AMPERE, "auto", "bf16", "TF32"),
        (AMPERE, "bf16", "bf16", "TF32"),
        (AMPERE, "fp16", "fp16", "TF32"),
        (AMPERE, "fp32", "fp32", "TF32"),
        (TURING, "auto", "fp16", "IEEE"),
        (TURING, "fp32", "fp32", "IEEE"),
    ],
    indirect=["gpu"],
)
def test_a_gpu_gets_what_it_computes_natively_and_float32_is_said(
    gpu: None, asked: str, expected: str, conv: str
) -> None:
    where = chosen(asked)
    assert (where.device.type, where.precision) == ("cuda", expected)
    assert f"float32 is {conv} in convolutions and IEEE in matrix products" in where.why
    assert torch.backends.cudnn.conv.fp32_precision == "tf32"
    assert torch.backends.cuda.matmul.fp32_precision == "ieee"


@pytest.mark.parametrize("gpu", [TURING], indirect=True)
def test_bf16_is_refused_where_it_would_be_emulated(gpu: None) -> None:
    with pytest.raises(ConfigError, match=r"no native bf16.*use fp16 or auto"):
        chosen("bf16")


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16"])
def test_a_cpu_leaves_the_arithmetic_of_gpus_alone(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = torch.backends.cudnn.conv.fp32_precision
    assert chosen(precision).device.type == "cpu"
    assert torch.backends.cudnn.conv.fp32_precision == before


def test_a_cpu_has_no_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="use precision=auto"):
        chosen("fp16")
