"""The compile switch: what is compiled, what is not, and what is no longer forecast."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._inductor.exc import InvalidCxxCompiler

from roofscale.compute import get
from roofscale.config import RunConfig
from roofscale.data.sample import CHANNELS, Batch
from roofscale.errors import ConfigError
from roofscale.forecast.gpu_memory import GpuForecaster
from roofscale.forecast.trace import trace_run
from roofscale.train import __main__ as process
from roofscale.train.trainer import Trainer

SMALL = RunConfig(encoder="resnet18", image_size=64, precision="fp32", threads=1, compile=True)


def test_the_training_step_is_compiled_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in that computes as it is written: a compiler takes a minute, see benchmarks/switches.py."""
    calls = []

    class Compiled(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self._orig_mod = model

        def forward(self, image_NCHW: torch.Tensor) -> torch.Tensor:
            calls.append(len(image_NCHW))
            return self._orig_mod(image_NCHW)

    monkeypatch.setattr(torch, "compile", Compiled)
    given = Batch(
        torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8),
        torch.randint(0, 2, (2, len(CHANNELS), 64, 64), dtype=torch.uint8),
        torch.ones(2, len(CHANNELS), dtype=torch.bool),
        ["a", "b"],
    )
    compiled, plain = Trainer(SMALL, 10), Trainer(dataclasses.replace(SMALL, compile=False), 10)
    assert compiled.step(given) == plain.step(given)
    assert calls == [2]
    compiled.predict(given.image_NCHW)
    assert calls == [2], "validation has other shapes, and is not worth compiling anew"
    assert compiled.state()["model"].keys() == plain.state()["model"].keys(), "a checkpoint of one fits the other"


def test_a_compiled_step_is_not_foreseen() -> None:
    with pytest.raises(ConfigError, match=r"compile=true.*set compile=false, or measure"):
        trace_run(SMALL, "bf16")
    with pytest.raises(ConfigError, match="compile=true"):
        GpuForecaster.of_run(SMALL, get("ml.g5.xlarge")).forecast(2)


def test_a_step_that_cannot_be_compiled_is_told_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> str:
        raise torch._dynamo.exc.BackendCompilerFailed(len, InvalidCxxCompiler(), None)

    monkeypatch.setattr(process.signal, "signal", lambda *_: None)
    monkeypatch.setattr(process, "train", fails)
    assert process.main(tmp_path) == 1
    end = json.loads((tmp_path / "events.jsonl").read_text().splitlines()[-1])
    assert end["outcome"] == "crashed"
    assert end["detail"].startswith("compile=true: the step could not be compiled (BackendCompilerFailed")
    assert end["detail"].endswith("set compile=false")
