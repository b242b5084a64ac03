"""The moving average of the weights: what it is, and that it is what is judged and kept."""

import dataclasses

import pytest
import torch
from torch import nn

from roofscale import model as models
from roofscale.config import RunConfig
from roofscale.data.sample import CHANNELS, Batch
from roofscale.forecast.host_memory import MemoryProfile
from roofscale.forecast.trace import trace_batch
from roofscale.forecast.training_step import TrainingStep
from roofscale.train.trainer import Trainer

SMALL = RunConfig(encoder="resnet18", image_size=64, precision="fp32", threads=1, ema=0.6)


def batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    image_NCHW = torch.randint(0, 256, (2, 3, 64, 64), generator=generator, dtype=torch.uint8)
    target_NKHW = (torch.rand(2, len(CHANNELS), 64, 64, generator=generator) > 0.7).to(torch.uint8)
    return Batch(image_NCHW, target_NKHW, torch.ones(2, len(CHANNELS), dtype=torch.bool), ["a", "b"])


def trained(config: RunConfig, steps: int) -> tuple[Trainer, list[dict[str, torch.Tensor]]]:
    """A trainer after some steps, and the trained model's state after each."""
    trainer, states = Trainer(config, 10), []
    for step in range(steps):
        trainer.step(batch(step))
        trainer.progress.step += 1
        states.append({name: value.clone() for name, value in trainer.model.state_dict().items()})
    return trainer, states


def test_it_follows_the_formula_with_a_decay_that_grows_to_the_one_asked_for() -> None:
    trainer, states = trained(SMALL, 5)
    decays = [0.0] + [min(0.6, 1 - (1 + past) ** (-2 / 3)) for past in range(1, 5)]
    assert decays[-2:] == [0.6, 0.6]
    expected = states[0]
    for decay, state in zip(decays, states, strict=True):
        for name, value in state.items():
            floating = value.is_floating_point()
            expected[name] = decay * expected[name] + (1 - decay) * value if floating else value
    found = trainer.eval_model.state_dict()
    assert found.keys() == expected.keys()
    assert "net.encoder.model.bn1.running_mean" in found, "the statistics of batch normalisation among them"
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def test_the_average_is_what_is_judged_and_the_trained_weights_are_the_same_as_without_it() -> None:
    trainer, states = trained(SMALL, 3)
    plain, states_without = trained(dataclasses.replace(SMALL, ema=0.0), 3)
    assert all(torch.equal(one, states_without[-1][name]) for name, one in states[-1].items())
    assert plain.eval_model is plain.model

    image_NCHW = batch(9).image_NCHW
    kept = models.build(SMALL)
    kept.load_state_dict(trainer.eval_model.state_dict())
    for module in (kept, trainer.eval_model, plain.eval_model):
        module.eval()
    with torch.no_grad():
        torch.testing.assert_close(trainer.predict(image_NCHW), kept(image_NCHW), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(trainer.predict(image_NCHW), plain.predict(image_NCHW), atol=1e-2)


def test_a_state_taken_up_goes_on_bit_for_bit() -> None:
    whole, _ = trained(SMALL, 4)
    half, _ = trained(SMALL, 2)
    other = Trainer(SMALL, 10)
    other.restore(half.state())
    for step in (2, 3):
        other.step(batch(step))
        other.progress.step += 1
    for one, two in ((whole.model, other.model), (whole.eval_model, other.eval_model)):
        assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_it_is_one_more_copy_of_the_model_in_what_is_forecast() -> None:
    plain = dataclasses.replace(SMALL, ema=0.0)
    net = models.build(plain)
    peaks = {}
    for config in (plain, SMALL):
        for fake in (True, False):
            trace = trace_batch(TrainingStep.of_run(config), "fp32", 2, fake=fake)
            peaks[config.ema, fake] = max(held for *_, held in trace.live_bytes())
    copy = sum(value.nbytes for value in net.state_dict().values())
    assert peaks[0.6, True] - peaks[0.0, True] == pytest.approx(copy, rel=0.01)
    assert peaks[0.6, True] == pytest.approx(peaks[0.6, False], rel=0.01)
    assert MemoryProfile.of(SMALL, "fp32", 1) != MemoryProfile.of(plain, "fp32", 1), (
        "peaks with it and without cannot be compared"
    )


def test_what_is_written_anew_in_each_step_counts_it() -> None:
    (plain, _), (averaged, _) = trained(dataclasses.replace(SMALL, ema=0.0), 1), trained(SMALL, 1)
    copy = sum(value.nbytes for value in plain.model.state_dict().values())
    assert averaged.mutable_state_bytes - plain.mutable_state_bytes == copy


def test_batch_normalisation_never_trains_in_the_average() -> None:
    trainer, _ = trained(SMALL, 2)
    assert not any(module.training for module in trainer.eval_model.modules() if isinstance(module, nn.BatchNorm2d))
