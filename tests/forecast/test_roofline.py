"""The work of a traced step against torch's own counter and against hand counts, and the roofline over it."""

import dataclasses

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from roofscale import compute
from roofscale.config import RunConfig
from roofscale.errors import ConfigError
from roofscale.forecast.gpu_memory import GpuForecaster
from roofscale.forecast.op_cost import OpCost, op_cost
from roofscale.forecast.roofline_model import GpuPeaks, calibration_of, estimate_step, peaks_of
from roofscale.forecast.trace import trace_batch, trace_run
from roofscale.forecast.training_step import TrainingStep
from roofscale.train.device import Execution
from roofscale.train.trainer import Trainer

SMALL = RunConfig(encoder="resnet18", image_size=64)


class Noting(TorchDispatchMode):
    """The work of every operation under it, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, OpCost | None] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.found[func._schema.name] = op_cost(func, args, kwargs or {}, result, forward=True)
        return result


def test_flops_are_those_that_torch_counts_in_a_real_step() -> None:
    work = trace_batch(TrainingStep.of_run(SMALL), "fp32", 2).work
    trainer = Trainer(SMALL, 2, execution=Execution(torch.device("cpu"), "fp32", "here"))
    image_NCHW = torch.zeros(2, 3, 64, 64)
    with FlopCounterMode(display=False) as forward:
        logits_NKHW = trainer.forward(image_NCHW)
    with FlopCounterMode(display=False) as backward:
        logits_NKHW.sum().backward()
    assert sum(one.flops for one in work if one.forward) == forward.get_total_flops() > 1e8
    assert sum(one.flops for one in work) == forward.get_total_flops() + backward.get_total_flops()


def test_bytes_are_those_read_and_written() -> None:
    a, row = torch.ones(10, 100), torch.ones(100)
    with Noting() as noting:
        b = a + 1
        b.mul_(a)
        a.view(1000)
        torch.empty(7)
        row.expand(10, 100) * a
        torch._fused_adamw_([a], [a], [b], [b], [], [torch.ones(())], lr=1.0, beta1=0.9, beta2=0.9, weight_decay=0.0,
                            eps=1.0, amsgrad=False, maximize=False)  # fmt: skip
    found = {name.partition("::")[2]: one and one.nbytes for name, one in noting.found.items()}
    assert found["add"] == 2 * 4000
    assert found["mul_"] == 3 * 4000, "reads both, writes one"
    assert found["view"] is None
    assert found["empty"] is None
    assert found["mul"] == 400 + 2 * 4000, "an expanded row is read once"
    assert found["_fused_adamw_"] == 4 * 4000 + 4 + 4 * 4000, "reads a step count too, and returns nothing"


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 16, 3, stride=2),
        nn.Conv2d(8, 16, 3, groups=4),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.ConvTranspose2d(8, 16, 2, stride=2),
    ],
    ids=str,
)
def test_each_gradient_of_a_convolution_takes_the_flops_of_its_forward_pass(layer: nn.Module) -> None:
    image = torch.ones(2, 8, 16, 16, requires_grad=True)
    with Noting() as forward:
        output = layer(image)
    with Noting() as backward:
        output.sum().backward()
    one, both = forward.found["aten::convolution"], backward.found["aten::convolution_backward"]
    assert one
    assert both
    assert both.flops == 2 * one.flops > 0


@pytest.mark.parametrize(
    ("query", "args"),
    [
        (torch.ops.prim.device.default, ()),
        (torch.ops.prim.layout.default, ()),
        (torch.ops.aten.is_pinned.default, ()),
        (torch.ops.aten.is_same_size.default, (torch.ones(10),)),
        (torch.ops.aten._local_scalar_dense.default, ()),
        (torch.ops.aten.size.default, ()),
        (torch.ops.aten.stride.default, ()),
        (torch.ops.aten.is_contiguous.default, ()),
    ],
    ids=str,
)
def test_a_query_moves_no_bytes(query: torch._ops.OpOverload, args: tuple[object, ...]) -> None:
    tensor = torch.ones(10)
    assert op_cost(query, (tensor, *args), {}, "an answer that is no tensor", forward=True) is None


def test_no_operation_of_a_traced_step_is_a_query() -> None:
    with FakeTensorMode(), Noting() as noting:
        image = torch.ones(2, 4, 8, 8)
        torch.nn.functional.conv2d(image, torch.ones(3, 4, 1, 1)).to(image.device, image.dtype)
    assert not [name for name, cost in noting.found.items() if cost and not name.startswith("aten::")]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_trace_has_the_work_of_every_batch_size(precision: str) -> None:
    any_batch, five = (
        trace_run(SMALL, precision).at(5).work,
        trace_batch(TrainingStep.of_run(SMALL), precision, 5).work,
    )
    assert [(one.flops, one.nbytes) for one in any_batch] == [(one.flops, one.nbytes) for one in five]
    wide = [one for one in five if one.flops and one.is_fp32]
    assert bool(wide) == (precision == "fp32"), "under autocast no product or convolution is left in float32"


def test_each_operation_takes_the_longer_of_arithmetic_and_memory() -> None:
    peaks = peaks_of("A10G")
    arithmetic = OpCost(
        flops=70e12, nbytes=6e9, is_fp32=False, is_convolution=True, is_grouped=False, forward=True
    )  # 1 s against 0.01
    memory = OpCost(
        flops=0.0, nbytes=1200e9, is_fp32=True, is_convolution=False, is_grouped=False, forward=False
    )  # 2 s
    found = estimate_step([arithmetic, memory], "A10G", "bf16", 2)
    assert peaks.memory == 600
    fitted = calibration_of("A10G")
    first, second = fitted.launch + fitted.arithmetic, fitted.launch + 2 * fitted.memory
    assert (found.seconds, found.forward_seconds) == pytest.approx((first + second, first))
    assert found.arithmetic_share == pytest.approx(first / (first + second))
    assert (found.deviation, found.evidence) == (fitted.deviation, fitted.evidence)
    grouped = estimate_step([dataclasses.replace(arithmetic, is_grouped=True)], "A10G", "bf16", 2)
    assert grouped.seconds == pytest.approx(fitted.launch + fitted.grouped)


def test_every_gpu_has_a_calibration_and_says_what_it_stands_on() -> None:
    for gpu in ("A10G", "RTX 3090", "T4", "no such GPU"):
        fitted = calibration_of(gpu)
        assert fitted.grouped >= fitted.arithmetic > 0
        assert fitted.deviation > 0.1
        assert fitted.evidence
    assert calibration_of("A10G") == calibration_of("RTX 3090") != calibration_of("T4")


def test_tf32_is_for_convolutions_and_where_there_is_any() -> None:
    ampere, turing = peaks_of("A100"), peaks_of("T4")
    assert ampere.flops_per_second("fp32", convolution=True) == 156e12
    assert ampere.flops_per_second("fp32", convolution=False) == 19.5e12
    assert turing.flops_per_second("fp32", convolution=True) == 8.1e12
    assert ampere.flops_per_second("bf16", convolution=True) == 312e12


def test_every_gpu_that_can_be_named_has_its_peaks() -> None:
    gpus = {compute.get(name).gpu for name in compute.names()} - {""}
    for gpu in gpus:
        peaks = peaks_of(gpu)
        assert isinstance(peaks, GpuPeaks)
        assert peaks.source
        assert peaks.fp32 <= (peaks.tf32 or peaks.fp32) < peaks.fp16
    with pytest.raises(ConfigError, match=r"H9000.*known are.*A10G"):
        peaks_of("H9000")


@pytest.mark.parametrize(("parts", "batch"), [(2, 8), (3, 24), (8, 8), (4, 1)])
def test_a_batch_in_parts_takes_the_work_of_the_whole(parts: int, batch: int) -> None:
    where = compute.get("ml.g5.xlarge")
    whole = GpuForecaster.of_run(SMALL, where).step(batch)
    cut = GpuForecaster.of_run(SMALL.with_overrides({"batch_size": batch, "micro_batches": parts}), where).step(batch)
    assert cut.samples == batch
    assert cut.flops == pytest.approx(whole.flops), "the optimiser has no products"
    assert cut.forward_seconds > 0.9 * whole.forward_seconds, "and the weights are read for each part"
