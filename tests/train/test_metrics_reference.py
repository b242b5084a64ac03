"""IoU, F1 and accuracy against an independent implementation."""

import pytest
import torch

from roofscale.data.sample import CHANNELS
from roofscale.torch_compat import import_torchvision
from roofscale.train.scores import confusion_counts, scores

import_torchvision()  # torchmetrics imports it
from torchmetrics.functional import classification as reference  # noqa: E402


@pytest.mark.parametrize("seed", range(5))
def test_ratios_are_those_of_torchmetrics(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_NKHW = torch.randn(3, len(CHANNELS), 16, 16, generator=generator)
    target_NKHW = (torch.rand(3, len(CHANNELS), 16, 16, generator=generator) < 0.3).to(torch.uint8)
    everything = torch.ones(3, len(CHANNELS), dtype=torch.bool)
    found = scores(confusion_counts(logits_NKHW, target_NKHW, everything), [True] * len(CHANNELS))

    words = {"num_labels": len(CHANNELS), "average": "none"}
    probability = logits_NKHW.sigmoid()  # torchmetrics would take logits within 0..1 for probabilities
    expected = {
        "iou": reference.multilabel_jaccard_index(probability, target_NKHW, **words),
        "f1": reference.multilabel_f1_score(probability, target_NKHW, **words),
        "accuracy": reference.multilabel_accuracy(probability, target_NKHW, **words),
    }
    for name, values_K in expected.items():
        assert [found[f"{name}_{channel}"] for channel in CHANNELS] == pytest.approx(values_K.tolist(), abs=1e-6)
        assert found[name] == pytest.approx(values_K.mean().item(), abs=1e-6)
