"""Loss and metrics, each against a brute-force version of its definition."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roofscale.data.sample import CHANNELS
from roofscale.train.loss import constant_losses, mean_labelled, sample_losses
from roofscale.train.scores import confusion_counts, scores

K = len(CHANNELS)


def batch(seed: int, n: int = 3, side: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, K, side, side, generator=generator)
    target = (torch.rand(n, K, side, side, generator=generator) > 0.6).to(torch.uint8)
    labelled = torch.rand(n, K, generator=generator) > 0.4
    labelled[:, 0] = True
    return logits, target, labelled


def by_hand(logits: np.ndarray, target: np.ndarray) -> float:
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    bce = -(target * np.log(p) + (1 - target) * np.log(1 - p)).mean()
    dice = 1 - 2 * (p * target).sum() / (p.sum() + target.sum()) if target.any() else 0.0
    return float(bce + dice)


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_the_loss_is_bce_plus_dice_of_each_labelled_channel(seed: int) -> None:
    logits, target, labelled = batch(seed)
    target[0, 1] = 0  # a class that is not there
    losses = sample_losses(logits, target, labelled)
    for n in range(len(logits)):
        for k in range(K):
            expected = by_hand(logits[n, k].numpy(), target[n, k].numpy()) if labelled[n, k] else 0.0
            assert losses[n, k].item() == pytest.approx(expected, rel=1e-4)
    assert mean_labelled(losses, labelled).item() == pytest.approx(losses[labelled].mean().item(), rel=1e-5)


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_what_an_unlabelled_channel_holds_changes_neither_loss_nor_metrics(seed: int) -> None:
    logits, target, labelled = batch(seed)
    other_target = torch.where(labelled[:, :, None, None], target, 1 - target)
    other_logits = torch.where(labelled[:, :, None, None], logits, -logits)
    before = mean_labelled(sample_losses(logits, target, labelled), labelled)
    after = mean_labelled(sample_losses(other_logits, other_target, labelled), labelled)
    assert torch.equal(before, after)
    assert torch.equal(
        confusion_counts(logits, target, labelled), confusion_counts(other_logits, other_target, labelled)
    )


def test_an_unlabelled_channel_gets_no_gradient() -> None:
    logits, target, labelled = batch(3)
    logits.requires_grad_()
    mean_labelled(sample_losses(logits, target, labelled), labelled).backward()
    assert logits.grad is not None
    moved = logits.grad.abs().amax((2, 3)) > 0
    assert torch.equal(moved, labelled)


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_ratios_are_those_of_the_sets_of_pixels(seed: int) -> None:
    logits, target, labelled = batch(seed)
    found = scores(confusion_counts(logits, target, labelled), [True] * K)
    for k, channel in enumerate(CHANNELS):
        rows = labelled[:, k].numpy()
        said = set(zip(*np.nonzero(logits[rows][:, k].numpy() > 0), strict=True))
        true = set(zip(*np.nonzero(target[rows][:, k].numpy()), strict=True))
        pixels = int(rows.sum()) * logits[0, 0].numel()
        if not (said | true):
            continue
        assert found[f"iou_{channel}"] == pytest.approx(len(said & true) / len(said | true), rel=1e-5)
        assert found[f"f1_{channel}"] == pytest.approx(2 * len(said & true) / (len(said) + len(true)), rel=1e-5)
        assert found[f"accuracy_{channel}"] == pytest.approx(1 - len(said ^ true) / pixels, rel=1e-5)


def test_an_absent_class_is_nan_and_left_out_of_the_mean() -> None:
    logits = torch.full((1, K, 4, 4), -9.0)
    target = torch.zeros(1, K, 4, 4, dtype=torch.uint8)
    logits[:, 0], target[:, 0] = 9.0, 1
    found = scores(confusion_counts(logits, target, torch.ones(1, K, dtype=torch.bool)), [True, True, False, False])
    assert found["iou_roof"] == 1.0
    assert math.isnan(found["iou_eave"])
    assert found["iou"] == 1.0
    assert "iou_ridge" not in found


@settings(max_examples=20)
@given(st.lists(st.floats(0.0, 0.9), min_size=2, max_size=8))
def test_no_constant_prediction_beats_the_best_constant(shares: list[float]) -> None:
    side = 32
    target = torch.zeros(len(shares), K, side, side)
    for row, share in enumerate(shares):
        target[row, 0].view(-1)[: round(share * side * side)] = 1
    labelled = torch.zeros(len(shares), K, dtype=torch.bool)
    labelled[:, 0] = True
    best = constant_losses(target.mean((2, 3)), labelled)
    for logit in np.linspace(-6, 6, 25):
        losses = sample_losses(torch.full_like(target, float(logit)), target, labelled)
        assert best.mean() <= mean_labelled(losses, labelled, dim=1).mean() + 2e-3
