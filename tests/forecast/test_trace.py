"""A traced training step against the same step really computed on the CPU."""

import pytest
import torch
from torch.nn import functional as F

from roofscale import model as models
from roofscale.config import RunConfig
from roofscale.forecast.cuda_autocast import CudaAutocast
from roofscale.forecast.trace import CONVOLUTION, Recorder, Trace, trace_batch, trace_training

SMALL = RunConfig(encoder="resnet18", image_size=64)


def peak(trace: Trace) -> float:
    return max(held for _, _, held in trace.live_bytes())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_a_fake_step_holds_what_a_real_one_holds(precision: str, channels_last: bool) -> None:
    config = SMALL.with_overrides({"channels_last": channels_last})
    net = models.build(config)
    fake = trace_batch(config, precision, net, 2)
    real = trace_batch(config, precision, net, 2, fake=False)
    assert peak(fake) == pytest.approx(peak(real), rel=0.01)
    assert sum(held for _, _, held in fake.live_bytes()) == pytest.approx(
        sum(h for _, _, h in real.live_bytes()), rel=0.01
    )


@pytest.mark.parametrize("encoder", ["resnet18", "mobilenetv3_small_100", "efficientnet_b0", "convnext_atto"])
def test_one_trace_serves_every_batch_size(encoder: str) -> None:
    config = SMALL.with_overrides({"encoder": encoder})
    any_batch = trace_training(config, "bf16")
    one = trace_batch(config, "bf16", models.build(config), 5)
    assert [s.nbytes for s in any_batch.at(5).storages] == [s.nbytes for s in one.storages]
    assert any_batch.at(5).events == one.events


def test_every_kind_of_tensor_is_told_apart() -> None:
    net = models.build(SMALL)
    weights = sum(4 * p.numel() for p in net.parameters())
    trace = trace_batch(SMALL, "bf16", net, 2)
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
    assert CONVOLUTION in trace.events


def test_the_model_that_is_traced_stays_as_it_is() -> None:
    net = models.build(SMALL)
    before = [p.clone() for p in net.parameters()]
    trace_batch(SMALL, "bf16", net, 2)
    assert all(torch.equal(old, new) for old, new in zip(before, net.parameters(), strict=True))
    assert next(net.parameters()).grad is None


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


def test_a_batch_in_parts_holds_what_it_really_holds() -> None:
    config = SMALL.with_overrides({"image_size": 320, "batch_size": 4, "micro_batches": 2})
    net = models.build(config)
    fake, real = (trace_batch(config, "fp32", net, 4, fake=fake) for fake in (True, False))
    assert peak(fake) == pytest.approx(peak(real), rel=0.01)
    whole = trace_batch(config.with_overrides({"micro_batches": 1}), "fp32", net, 4)
    assert peak(fake) < peak(whole), "fewer activations, though the first part's gradients lie beside them"


def test_further_parts_take_no_more_than_the_second() -> None:
    config = SMALL.with_overrides({"batch_size": 8, "micro_batches": 4})
    four = trace_batch(config, "bf16", models.build(config), 8)
    assert peak(trace_training(config, "bf16").at(2)) == pytest.approx(peak(four), rel=0.01)
