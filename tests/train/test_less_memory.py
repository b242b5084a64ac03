"""Training in parts and with recomputed activations: the same step in less memory."""

import dataclasses

import pytest
import torch
from torch import nn

from roofscale import model as models
from roofscale.config import RunConfig
from roofscale.data.sample import CHANNELS, Batch
from roofscale.errors import ConfigError
from roofscale.forecast.trace import trace_batch
from roofscale.forecast.training_step import TrainingStep
from roofscale.train.trainer import Trainer

SMALL = RunConfig(encoder="resnet18", image_size=64, batch_size=6, precision="fp32", threads=1)


def batch(size: int, seed: int = 0) -> Batch:
    """Random images; some channels are not labelled, so that the parts weigh differently."""
    generator = torch.Generator().manual_seed(seed)
    image_NCHW = torch.randint(0, 256, (size, 3, 64, 64), generator=generator, dtype=torch.uint8)
    target_NKHW = (torch.rand(size, len(CHANNELS), 64, 64, generator=generator) > 0.7).to(torch.uint8)
    labelled_NK = torch.rand(size, len(CHANNELS), generator=generator) > 0.4
    labelled_NK[:, 0] = True
    return Batch(image_NCHW, target_NKHW, labelled_NK, [f"made/{i}" for i in range(size)])


class Still(Trainer):
    """Batch normalisation at its running statistics, which would otherwise be those of each part."""

    def begin(self) -> None:
        super().begin()
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


def gradients(trainer: Trainer) -> list[torch.Tensor]:
    return [p.grad.clone() for p in trainer.model.parameters() if p.grad is not None]


@pytest.mark.parametrize("parts", [2, 4, 6])
def test_a_batch_in_parts_has_the_loss_and_the_gradients_of_the_whole(parts: int) -> None:
    whole, cut = (Still(dataclasses.replace(SMALL, micro_batches=count), 10) for count in (1, parts))
    given = batch(6)
    assert [len(part.ids) for part in cut.parts(given)] == {2: [3, 3], 4: [2, 2, 1, 1], 6: [1] * 6}[parts]
    for step in range(2):
        (loss, norm), (loss_cut, norm_cut) = (trainer.step(batch(6, step)) for trainer in (whole, cut))
        assert loss_cut == pytest.approx(loss, rel=1e-5)
        assert norm_cut == pytest.approx(norm, rel=1e-4)
    for one, other in zip(gradients(whole), gradients(cut), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5)


def test_a_smaller_last_batch_has_fewer_parts() -> None:
    trainer = Trainer(dataclasses.replace(SMALL, micro_batches=4), 10)
    assert [part.ids for part in trainer.parts(batch(3))] == [["made/0"], ["made/1"], ["made/2"]]


def test_a_part_that_is_not_finite_changes_nothing() -> None:
    trainer = Trainer(dataclasses.replace(SMALL, micro_batches=2), 10)
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(float("nan"))
    before = [p.clone() for p in trainer.model.parameters()][1:]
    loss, norm = trainer.step(batch(6))
    assert (loss == loss, norm == norm) == (False, False)
    assert all(torch.equal(one, other) for one, other in zip(before, list(trainer.model.parameters())[1:], strict=True))


@pytest.mark.parametrize("encoder", ["resnet18", "efficientnet_b0"])
def test_recomputed_activations_change_no_loss_and_take_less_memory(encoder: str) -> None:
    plain = dataclasses.replace(SMALL, encoder=encoder)
    saving = dataclasses.replace(plain, activation_checkpointing=True)
    losses = [
        [trainer.step(batch(6, step))[0] for step in range(2)] for trainer in (Trainer(plain, 10), Trainer(saving, 10))
    ]
    assert losses[0] == losses[1]
    large = [dataclasses.replace(config, image_size=256, batch_size=2) for config in (plain, saving)]
    traces = [trace_batch(TrainingStep.of_run(one), "fp32", 2) for one in large]
    peaks = [max(held for *_, held in trace.live_bytes()) for trace in traces]
    assert peaks[1] < 0.95 * peaks[0]


def test_an_encoder_that_cannot_recompute_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from timm.models._features import FeatureListNet

    def cannot(self: object, enable: bool = True) -> None:
        raise AssertionError("gradient checkpointing not supported")

    monkeypatch.setattr(FeatureListNet, "set_grad_checkpointing", cannot)
    with pytest.raises(ConfigError, match="resnet18 has no such switch"):
        models.build(dataclasses.replace(SMALL, activation_checkpointing=True))
