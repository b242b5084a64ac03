"""A traced training step against the same step really computed on the CPU."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from roofscale import model as models
from roofscale.config import RunConfig
from roofscale.data.sample import Batch
from roofscale.forecast import trace as tracing
from roofscale.forecast.cuda_autocast import CudaAutocast
from roofscale.forecast.trace import Recorder, Storage, Trace, trace_run
from roofscale.forecast.training_step import TrainingStep
from roofscale.forecast.workspace import WORKSPACE
from roofscale.train.device import Execution
from roofscale.train.trainer import Trainer

SMALL = RunConfig(encoder="resnet18", image_size=64)


def peak(trace: Trace) -> float:
    return max(held for _, _, held in trace.live_bytes())


def trace_batch(config: RunConfig, precision: str, batch: int, *, fake: bool = True) -> Trace:
    return tracing.trace_batch(TrainingStep.of_run(config), precision, batch, fake=fake)


def without_workspace(trace: Trace) -> Trace:
    none = [
        dataclasses.replace(s, nbytes=0.0, per_sample=0.0, least=0.0) if s.kind == WORKSPACE else s
        for s in trace.storages
    ]
    return dataclasses.replace(trace, storages=tuple(none))


def really_taken(config: RunConfig, count: int, steps: int) -> float:
    """Peak bytes of the trainer's own steps on the CPU."""
    recorder = Recorder()
    size = config.image_size
    with recorder:
        trainer = Trainer(config, 10, execution=Execution(torch.device("cpu"), "fp32", "here"))
        for step in range(steps):
            batch = Batch(
                torch.zeros(count, 3, size, size, dtype=torch.uint8),
                torch.zeros(count, 4, size, size, dtype=torch.uint8),
                torch.ones(count, 4, dtype=torch.bool),
                [str(number) for number in range(count)],
            )
            trainer.step(batch)
            trainer.progress.step = step + 1
            del batch
    return peak(without_workspace(recorder.trace()))


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_first_two_steps_hold_what_the_trainers_own_steps_hold(parts: int, ema: float) -> None:
    config = SMALL.with_overrides({"micro_batches": parts, "ema": ema, "image_size": 128})
    two = without_workspace(trace_run(config, "fp32").first_two_steps(in_parts=parts > 1).at(8 // parts))
    waiting = 8 * (3 + 4) * 128 * 128 * (1 - 1 / parts)  # the batch lies in memory whole
    assert peak(two) + waiting == pytest.approx(really_taken(config, 8, 2), rel=0.01)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_a_fake_step_holds_what_a_real_one_holds(precision: str, channels_last: bool) -> None:
    config = SMALL.with_overrides({"channels_last": channels_last})
    fake = trace_batch(config, precision, 2)
    real = trace_batch(config, precision, 2, fake=False)
    assert peak(fake) == pytest.approx(peak(real), rel=0.01)
    assert sum(held for _, _, held in fake.live_bytes()) == pytest.approx(
        sum(h for _, _, h in real.live_bytes()), rel=0.01
    )


@pytest.mark.parametrize("encoder", ["resnet18", "mobilenetv3_small_100", "efficientnet_b0", "convnext_atto"])
def test_one_trace_serves_every_batch_size(encoder: str) -> None:
    config = SMALL.with_overrides({"encoder": encoder})
    any_batch = trace_run(config, "bf16")
    one = trace_batch(config, "bf16", 5)
    assert any_batch.at(5).storages == one.at(5).storages
    assert any_batch.at(5).events == one.events


def test_every_kind_of_tensor_is_told_apart() -> None:
    net = models.build(SMALL)
    weights = sum(4 * p.numel() for p in net.parameters())
    trace = trace_batch(SMALL, "bf16", 2)
    held = {kind: 0.0 for kind in ("parameters", "gradients", "optimizer")}
    alive: set[int] = set()
    for index, born, _ in trace.live_bytes():
        (alive.add if born else alive.remove)(index)
    for storage in (trace.storages[index] for index in alive):
        held[storage.kind] = held.get(storage.kind, 0.0) + storage.nbytes
    assert held["gradients"] == weights
    assert held["optimizer"] == pytest.approx(2 * weights, rel=1e-3), "two moments, and a step count for each"
    assert held["parameters"] == pytest.approx(weights, rel=0.01), "buffers of batch normalisation beside them"
    modules = {storage.module for storage in trace.storages if storage.kind == "activations"}
    assert any(name.startswith("net.encoder") for name in modules)
    assert any(name.startswith("net.decoder") for name in modules)
    assert any(storage.kind == WORKSPACE for storage in trace.storages)
    assert trace.gradient_bytes == weights


def test_the_model_that_is_traced_stays_as_it_is() -> None:
    step = TrainingStep.of_run(SMALL)
    before = [p.clone() for p in step.net.parameters()]
    tracing.trace_batch(step, "bf16", 2)
    assert all(torch.equal(old, new) for old, new in zip(before, step.net.parameters(), strict=True))
    assert next(step.net.parameters()).grad is None


def test_the_recorder_sees_births_and_deaths_of_storages_and_not_of_views() -> None:
    recorder = Recorder()
    with recorder:
        first = torch.ones(1000)
        view = first.view(10, 100)
        second = first + 1
        del first  # the view keeps it alive
        del second
        third = view[:5].clone()
        del third, view
    trace = recorder.trace()
    assert [storage.nbytes for storage in trace.storages] == [4000, 4000, 2000]
    assert trace.events == (0, 1, 1, 2, 0, 2), "the last two died together: in order of birth"
    assert [held for _, _, held in trace.live_bytes()] == [4000, 8000, 4000, 6000, 2000, 0]


def test_what_cuda_runs_in_float32_is_float32() -> None:
    image_NCHW = torch.ones(1, 2, 4, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert F.interpolate(image_NCHW, scale_factor=2).dtype == torch.bfloat16
        with CudaAutocast():
            assert F.interpolate(image_NCHW, scale_factor=2).dtype == torch.float32
            assert F.relu(image_NCHW).dtype == torch.bfloat16
    with CudaAutocast():
        assert image_NCHW.sum().dtype == torch.bfloat16, "outside of autocast nothing is cast"


def test_the_second_step_frees_the_gradients_of_the_first() -> None:
    weight, old, state, new = (
        Storage(100.0, kind, "") for kind in ("parameters", "gradients", "optimizer", "gradients")
    )
    image = Storage(0.0, "activations", "", per_sample=7.0)
    step = Trace((weight, old, state, image, new), (0, 1, 2, 1, 3, 4, 3), start=3)  # frees 1, takes 3, leaves 4
    two, parts = step.first_two_steps(), step.first_two_steps(in_parts=True)
    held = [held for *_, held in two.at(1).live_bytes()]
    assert held == [100, 107, 207, 200, 300, 200, 207, 307, 300], "the state is allocated after the first step"
    assert [held for *_, held in parts.at(1).live_bytes()] == [100, 107, 207, 200, 300, 307, 407, 307, 300]
