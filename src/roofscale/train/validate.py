"""Validation: the loss of each sample, the best constant's loss on the same sample, and ratios from counts."""

import dataclasses
import time
from collections.abc import Callable

import numpy as np
import torch

from roofscale.data.loader import make_loader
from roofscale.data.sample import CHANNELS, Source
from roofscale.errors import DataError
from roofscale.measurement import Validation
from roofscale.train.loss import constant_losses, mean_labelled, sample_losses
from roofscale.train.metrics import count, ratios
from roofscale.train.trainer import Trainer

Tick = Callable[[], None]  # called after each batch; raises to stop


@torch.inference_mode()
def validate(trainer: Trainer, source: Source, tick: Tick) -> tuple[Validation, list[str]]:
    """Run the model over all of a validation split, in a fixed order, without augmentation.

    Returns:
        The validation, and what is wrong with each sample left out (``on_bad_sample=skip``).

    Raises:
        DataError: a broken sample under ``on_bad_sample=error``, or not one that is whole.
    """
    start = time.perf_counter()
    trainer.model.eval()
    counts_4K = torch.zeros(4, len(CHANNELS), dtype=torch.int64)
    ids: list[str] = []
    losses, shares, known = [], [], []
    loader = make_loader(trainer.config, [source], epoch=0, train=False)
    for batch in loader:
        image_NCHW, target_NKHW, labelled_NK = trainer.to_device(batch)
        logits_NKHW = trainer.forward(image_NCHW)
        losses_NK = sample_losses(logits_NKHW, target_NKHW, labelled_NK)
        losses.append(mean_labelled(losses_NK, labelled_NK, dim=1).cpu())
        shares.append(target_NKHW.float().mean((2, 3)).cpu())
        known.append(labelled_NK.cpu())
        counts_4K += count(logits_NKHW, target_NKHW, labelled_NK).cpu()
        ids += batch.ids
        tick()
    if not ids:
        raise DataError(f"validation of {source.name}: every sample is broken. {' '.join(loader.skipped[:3])}")
    constants = constant_losses(torch.cat(shares), torch.cat(known))
    validation = Validation(
        step=trainer.progress.step,
        epoch=trainer.progress.epoch,
        dataset=source.name,
        sample_ids=tuple(ids),
        losses=tuple(torch.cat(losses).tolist()),
        constant_losses=tuple(constants.tolist()),
        metrics={"loss": torch.cat(losses).mean().item(), **ratios(counts_4K, source.labelled)},
        seconds=time.perf_counter() - start,
    )
    return validation, loader.skipped


@torch.inference_mode()
def prediction_sheet(trainer: Trainer, source: Source, most: int = 4) -> dict[str, np.ndarray]:
    """The first validation samples with what the model makes of them.

    Returns:
        ``image`` (N,H,W,3) uint8, ``target`` (N,K,H,W) uint8, ``probability`` (N,K,H,W) float16, ``ids`` (N,) and
        ``labelled`` (K,) bool.
    """
    trainer.model.eval()
    images, targets, probabilities, ids = [], [], [], []
    for batch in make_loader(dataclasses.replace(trainer.config, num_workers=0), [source], epoch=0, train=False):
        logits_NKHW = trainer.forward(trainer.to_device(batch)[0])
        images.append(batch.image_NCHW.permute(0, 2, 3, 1).numpy())
        targets.append(batch.target_NKHW.numpy())
        probabilities.append(logits_NKHW.sigmoid().half().cpu().numpy())
        ids += batch.ids
        if len(ids) >= most:
            break
    arrays = {"image": images, "target": targets, "probability": probabilities}
    plain = {"ids": np.array(ids[:most]), "labelled": np.array(source.labelled)}
    return {name: np.concatenate(parts)[:most] for name, parts in arrays.items()} | plain
