"""The GPU forecast of steps that are not the trainer's own, and of what CUDA kernels take beyond a trace."""

import json
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn import functional as F

from roofscale import forecast
from roofscale.cli import main
from roofscale.errors import ConfigError
from roofscale.forecast.allocator import MIB
from roofscale.forecast.cuda_autocast import CudaAutocast
from roofscale.forecast.trace import Trace, trace_step
from roofscale.forecast.training_step import TrainingStep
from roofscale.forecast.workspace import WORKSPACE, workspace_bytes


def sgd(weights: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(weights, lr=0.1, momentum=0.9, foreach=False)


def step(net: nn.Module, **settings: Any) -> TrainingStep:
    settings = {"inputs": lambda count: torch.zeros(count, 4, 32, 32), **settings}
    settings.setdefault("loss", lambda net, image: net(image).float().mean())
    return TrainingStep.of(net, optimizer=sgd, precision=settings.pop("precision", "fp32"), **settings)


def held(trace: Trace, kind: str) -> float:
    """Bytes of a kind that are alive at the end."""
    alive: set[int] = set()
    for index, born in trace.events_in_order():
        (alive.add if born else alive.remove)(index)
    return sum(trace.storages[index].nbytes for index in alive if trace.storages[index].kind == kind)


class Tied(nn.Module):
    """Two outputs, a weight used twice, a frozen part, a plain tensor attribute, and a SyncBatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.second.weight = self.first.weight
        self.frozen = nn.Conv2d(4, 4, 1).requires_grad_(requires_grad=False)
        self.norm = nn.SyncBatchNorm(4)
        self.scale = torch.full((4, 1, 1), 0.5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.norm(self.frozen(self.first(x))) * self.scale
        return self.second(x), x


def test_any_net_can_be_described() -> None:
    net = Tied()
    described = step(net, loss=lambda net, image: sum(one.mean() for one in net(image)))
    trace = trace_step(described, "fp32").first_two_steps().at(4)
    trained = sum(weight.nbytes for weight in net.parameters() if weight.requires_grad)
    assert held(trace, "gradients") == trained
    assert held(trace, "optimizer") == trained, "one momentum"
    fixed = sum(t.nbytes for t in (*net.parameters(), *net.buffers(), net.scale))
    assert held(trace, "parameters") == fixed, "the shared weight once"
    assert isinstance(net.norm, nn.SyncBatchNorm), "the user's net stays as it is"


def test_kept_gradients_and_buckets_are_counted_throughout() -> None:
    net = nn.Sequential(*(nn.Conv2d(64, 64, 3, padding=1) for _ in range(8)))
    inputs = {"inputs": lambda count: torch.zeros(count, 64, 8, 8)}
    dropped, kept, ddp = (
        forecast.gpu(step(net, **inputs, **more)).forecast(2)
        for more in ({}, {"keeps_gradients": True}, {"keeps_gradients": True, "ddp": True})
    )
    gradients = sum(weight.nbytes for weight in net.parameters()) / MIB
    assert kept.allocated_mib > dropped.allocated_mib
    assert ddp.kinds["gradient buckets"] == pytest.approx(gradients)
    assert ddp.allocated_mib == pytest.approx(kept.allocated_mib + gradients, abs=0.01)


def test_shapes_that_depend_on_values_are_refused_with_operation_and_module() -> None:
    class Mining(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[x > 0.5]

    net = nn.Sequential(nn.Conv2d(4, 4, 1), Mining())
    with pytest.raises(ConfigError, match=r"my net: .*in module 1, operation aten.nonzero.*choose another model"):
        forecast.gpu(step(net, name="my net")).forecast(2)


@pytest.mark.parametrize(("in_place", "size"), [(False, 1), (True, 4)])
def test_a_dropout_keeps_the_mask_that_cuda_keeps(in_place: bool, size: int) -> None:
    saved: list[torch.Tensor] = []
    x = torch.ones(8, 100, requires_grad=True) * 1
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t), CudaAutocast():
        F.dropout(x, 0.5, training=True, inplace=in_place)
        assert torch.equal(F.dropout(x.detach(), 0.5, training=False), x.detach())
    assert max(t.element_size() for t in saved if t.shape == x.shape) == size


def workspace_of(layer: nn.Module, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[float, float]:
    image, weight = torch.zeros(shape, dtype=dtype, device="meta"), layer.weight.to("meta", dtype)
    args = (image, weight, None, layer.stride, layer.padding, layer.dilation, False, (0, 0), layer.groups)
    func = torch.ops.aten.convolution.default
    return workspace_bytes(func, args, func(*args)) or (0.0, 0.0)


def test_winograd_is_for_dense_float32_convolutions_of_3x3() -> None:
    dense = nn.Conv2d(64, 128, 3, padding=1)
    tiles = 2 * 8 * 8  # of 4x4 in 2 images of 32x32
    assert workspace_of(dense, (2, 64, 32, 32))[0] == 4 * 36 * (tiles * (64 + 128) + 64 * 128)
    others = (nn.Conv2d(64, 128, 1), nn.Conv2d(64, 128, 3, stride=2), nn.Conv2d(64, 128, 3, dilation=2),
              nn.Conv2d(64, 64, 3, groups=64))  # fmt: skip
    assert [workspace_of(layer, (2, 64, 32, 32))[0] for layer in others] == [0] * 4
    assert workspace_of(dense, (2, 64, 32, 32), torch.bfloat16)[0] == 0


def test_a_workspace_grows_with_the_batch_from_its_floor() -> None:
    net = nn.Sequential(nn.Conv2d(4, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1))
    trace = trace_step(step(net), "fp32")
    floor = 32 * MIB
    for batch in (2, 64, 1024):
        largest = max(s.nbytes for s in trace.at(batch).storages if s.kind == WORKSPACE)
        assert largest == max(floor, 4 * 36 * (batch * 64 * 128 + 64 * 64))


def test_a_softmax_needs_scratch_of_its_size_in_backward() -> None:
    grad = torch.zeros(2, 10)
    assert workspace_bytes(torch.ops.aten._softmax_backward_data.default, (grad, grad), grad) == (80, 0)
    assert workspace_bytes(torch.ops.aten.relu.default, (grad,), grad) is None


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def write(body: str) -> str:
        name = f"package_of_{tmp_path.name}"
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(body))
        sys.modules.pop(name, None)
        return f"{name}:step"

    return write


def test_the_command_forecasts_a_step_that_a_function_returns(package: Callable[[str], str]) -> None:
    path = package("""
        import torch
        from roofscale.forecast.training_step import TrainingStep
        def step():
            return TrainingStep.of(torch.nn.Conv2d(3, 8, 3), lambda n: torch.zeros(n, 3, 64, 64),
                                   lambda net, x: net(x).float().mean(), torch.optim.AdamW, name="one layer")
    """)
    words = ["forecast", "gpu", "--model", path, "--batch-size", "4", "--compute", "ml.g5.xlarge"]
    found = CliRunner().invoke(main, words)
    assert found.exit_code == 0, found.output
    assert "one layer, batch 4, bf16" in found.output
    assert "runs its code on this machine" in found.output
    assert json.loads(CliRunner().invoke(main, [*words, "--json"]).stdout)["fit"] == "fits"


@pytest.mark.parametrize(("body", "complaint"), [("def step(): return 3", "returned a int; expected a TrainingStep"),
                                                 ("x = 1", "expected a function without arguments"),
                                                 ("def step(): 1 / 0", "ZeroDivisionError")])  # fmt: skip
def test_a_function_that_returns_no_step_is_refused(package: Callable[[str], str], body: str, complaint: str) -> None:
    words = ["forecast", "gpu", "--model", package(body), "--compute", "ml.g5.xlarge"]
    found = CliRunner().invoke(main, words)
    assert found.exit_code == 2
    assert complaint in " ".join(found.output.split())
