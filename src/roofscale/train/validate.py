"""Validation: the loss of each sample, its loss under the best constant prediction, and scores from summed counts."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from roofscale.data.loader import make_loader
from roofscale.data.sample import CHANNELS, Source
from roofscale.errors import DataError
from roofscale.measurement import Validation
from roofscale.train import distributed
from roofscale.train.loss import constant_losses, mean_labelled, sample_losses
from roofscale.train.scores import confusion_counts, scores
from roofscale.train.trainer import Trainer

_SHEET = 4  # samples on a prediction sheet
Row = tuple[str, np.ndarray, np.ndarray, np.ndarray]  # of a prediction sheet: id, image, target, probability
Stopping = Callable[[], bool]  # whether the process was asked to stop; called after each batch


class _Part(NamedTuple):
    """The samples that one process has validated, in order."""

    ids: list[str]
    losses_N: torch.Tensor
    shares_NK: torch.Tensor  # of positive pixels
    labelled_NK: torch.Tensor
    counts_4K: torch.Tensor
    skipped: list[str]


def sheet_arrays(rows: Sequence[Row], labelled: Sequence[bool]) -> dict[str, np.ndarray]:
    """Build the prediction sheet: the arrays of the first validation samples with the model's predictions.

    Returns:
        ``image`` (N,H,W,3) uint8, ``target`` (N,K,H,W) uint8, ``probability`` (N,K,H,W) float16, ``ids`` (N,) and
        ``labelled`` (K,) bool.
    """
    columns = zip(("ids", "image", "target", "probability"), zip(*rows[:_SHEET], strict=True), strict=True)
    return {name: np.stack(column) for name, column in columns} | {"labelled": np.array(labelled)}


@torch.inference_mode()
def validate(
    trainer: Trainer, source: Source, stopping: Stopping, sheet: list[Row] | None = None
) -> tuple[Validation, list[str]]:
    """Validate the model on a split, in a fixed order and without augmentation.

    In a distributed run each process takes its part of the split, and all return the same result. If a process is asked
    to stop, its part is cut short: the caller must check ``stopping`` before it uses the result.

    Args:
        trainer: whose ``eval_model`` is validated.
        source: the validation split.
        stopping: called after each batch.
        sheet: receives the first samples of this process's part.

    Returns:
        The validation, and the messages of the samples left out (``on_bad_sample=skip``).

    Raises:
        DataError: a broken sample under ``on_bad_sample=error``, or all samples are broken.
    """
    start = time.perf_counter()
    parts = distributed.all_gather(_validate_part(trainer, source, stopping, sheet))
    ids = [name for part in parts for name in part.ids]
    skipped = [complaint for part in parts for complaint in part.skipped]
    if not ids:
        raise DataError(f"validation of {source.name}: every sample is broken. {' '.join(skipped[:3])}")
    losses_N, shares_NK, labelled_NK = (torch.cat(tensors) for tensors in zip(*(p[1:4] for p in parts), strict=True))
    counts_4K = torch.stack([part.counts_4K for part in parts]).sum(0)
    validation = Validation(
        step=trainer.progress.step,
        epoch=trainer.progress.epoch,
        dataset=source.name,
        sample_ids=tuple(ids),
        losses=tuple(losses_N.tolist()),
        constant_losses=tuple(constant_losses(shares_NK, labelled_NK).tolist()),
        metrics={"loss": losses_N.mean().item(), **scores(counts_4K, source.labelled)},
        seconds=time.perf_counter() - start,
    )
    return validation, skipped


def _validate_part(trainer: Trainer, source: Source, stopping: Stopping, sheet: list[Row] | None) -> _Part:
    trainer.eval_model.eval()
    counts_4K = torch.zeros(4, len(CHANNELS), dtype=torch.int64)
    ids: list[str] = []
    losses, shares, labelled = [torch.zeros(0)], [torch.zeros(0, len(CHANNELS))], [torch.zeros(0, len(CHANNELS)).bool()]
    loader = make_loader(trainer.config, [source], epoch=0, train=False, rank=distributed.rank())
    for batch in loader:
        image_NCHW, target_NKHW, labelled_NK = trainer.to_device(batch)
        logits_NKHW = trainer.predict(image_NCHW)
        losses_NK = sample_losses(logits_NKHW, target_NKHW, labelled_NK)
        losses.append(mean_labelled(losses_NK, labelled_NK, dim=1).cpu())
        shares.append(target_NKHW.float().mean((2, 3)).cpu())
        labelled.append(labelled_NK.cpu())
        counts_4K += confusion_counts(logits_NKHW, target_NKHW, labelled_NK).cpu()
        ids += batch.ids
        if sheet is not None and len(sheet) < _SHEET:
            image_NHWC, probability_NKHW = batch.image_NCHW.permute(0, 2, 3, 1), logits_NKHW.sigmoid().half().cpu()
            sheet += zip(
                batch.ids, image_NHWC.numpy(), batch.target_NKHW.numpy(), probability_NKHW.numpy(), strict=True
            )
        if stopping():
            break
    return _Part(ids, torch.cat(losses), torch.cat(shares), torch.cat(labelled), counts_4K, loader.skipped)
