"""BCE + Dice loss over the labelled channels, and the loss of the best constant prediction as its baseline.

Shape suffixes: N batch, K channels, H height, W width, G grid of logits.
"""

import torch
from torch.nn import functional as F

from roofscale.torch_compat import segmentation_models


def sample_losses(logits_NKHW: torch.Tensor, target_NKHW: torch.Tensor, labelled_NK: torch.Tensor) -> torch.Tensor:
    """Compute BCE + soft Dice of each sample and channel, 0 where the channel is not labelled.

    Dice is left out if a sample has no pixel of the class, as in segmentation-models-pytorch's ``DiceLoss``: it would
    only reward an empty prediction, which BCE does already.

    Args:
        logits_NKHW: float32.
        target_NKHW: 0 or 1, any dtype.
        labelled_NK: bool, whether the sample's data set labels the channel.

    Returns:
        ``(N,K)`` float32.
    """
    smp = segmentation_models()
    target_NKHW = target_NKHW.to(logits_NKHW.dtype)
    bce_NK = F.binary_cross_entropy_with_logits(logits_NKHW, target_NKHW, reduction="none").mean((2, 3))
    dice_NK = 1 - smp.losses._functional.soft_dice_score(logits_NKHW.sigmoid(), target_NKHW, eps=1e-7, dims=(2, 3))
    present_NK = target_NKHW.amax((2, 3)) > 0
    losses_NK: torch.Tensor = (bce_NK + dice_NK * present_NK) * labelled_NK
    return losses_NK


def mean_labelled(losses_NK: torch.Tensor, labelled_NK: torch.Tensor, dim: int | None = None) -> torch.Tensor:
    """Average losses (N,K) over the labelled entries: of the whole batch, or along ``dim`` (1: loss of each sample)."""
    if dim is None:
        return losses_NK.sum() / labelled_NK.sum().clamp_min(1)
    return losses_NK.sum(dim) / labelled_NK.sum(dim).clamp_min(1)


def constant_losses(shares_NK: torch.Tensor, labelled_NK: torch.Tensor) -> torch.Tensor:
    """Compute the loss of each sample under the best constant prediction.

    Of all predictions with one probability per channel, the same for every pixel, the one with the smallest mean loss
    on these samples, found on a grid of logits. A model that does not beat it has learnt at most how much roof there
    is, not where.

    Args:
        shares_NK: share of positive pixels, float in 0..1.
        labelled_NK: bool, whether the sample's data set labels the channel.

    Returns:
        ``(N,)`` float32.
    """
    p_G = torch.linspace(-8, 8, 321).sigmoid()  # logits 0.05 apart
    share_NKG = shares_NK.unsqueeze(-1)
    bce_NKG = -(share_NKG * p_G.log() + (1 - share_NKG) * (1 - p_G).log())
    dice_NKG = (1 - 2 * p_G * share_NKG / (p_G + share_NKG)) * (share_NKG > 0)
    loss_NKG = (bce_NKG + dice_NKG) * labelled_NK.unsqueeze(-1)
    best_K = loss_NKG.sum(0).argmin(-1)
    losses_NK = loss_NKG[:, torch.arange(len(best_K)), best_K]
    return mean_labelled(losses_NK, labelled_NK, dim=1)
