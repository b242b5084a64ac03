"""Segmentation scores: confusion counts of each channel are summed over samples, and the ratios taken of the sums.

The score of a class without any pixel is NaN and left out of means; a channel that a data set does not label is not
counted.

Shape suffixes: N batch, K channels, H height, W width, 4 = tp, fp, fn, tn.
"""

import math
from collections.abc import Sequence

import torch

from roofscale.data.sample import CHANNELS
from roofscale.torch_compat import segmentation_models


def confusion_counts(logits_NKHW: torch.Tensor, target_NKHW: torch.Tensor, labelled_NK: torch.Tensor) -> torch.Tensor:
    """Count true and false positive and negative pixels at a threshold of 0.5.

    Args:
        logits_NKHW: float32.
        target_NKHW: 0 or 1, any dtype.
        labelled_NK: bool, whether the sample's data set labels the channel.

    Returns:
        ``(4,K)`` int64: tp, fp, fn, tn of each channel, over the samples that label it.
    """
    smp = segmentation_models()
    counts = smp.metrics.get_stats(logits_NKHW.sigmoid(), target_NKHW.long(), mode="multilabel", threshold=0.5)
    return torch.stack([(c * labelled_NK).sum(0) for c in counts])


def scores(counts_4K: torch.Tensor, labelled: Sequence[bool]) -> dict[str, float]:
    """Compute IoU, F1 and accuracy of each labelled channel, and their means over the channels that are not NaN.

    Args:
        counts_4K: ``confusion_counts``, summed over batches.
        labelled: of each channel, whether the data set labels it.

    Returns:
        ``iou_roof``, ``f1_roof``, ``accuracy_roof``, ..., and ``iou``, ``f1``, ``accuracy``.
    """
    smp = segmentation_models()
    functions = {"iou": smp.metrics.iou_score, "f1": smp.metrics.f1_score, "accuracy": smp.metrics.accuracy}
    result: dict[str, float] = {}
    for name, function in functions.items():
        values_K = function(*counts_4K.unsqueeze(1), reduction="none", zero_division=math.nan).squeeze(0).tolist()
        by_channel = {c: v for c, v, known in zip(CHANNELS, values_K, labelled, strict=True) if known}
        result |= {f"{name}_{channel}": value for channel, value in by_channel.items()}
        present = [value for value in by_channel.values() if not math.isnan(value)]
        result[name] = sum(present) / len(present) if present else math.nan
    return result
