"""A trained model, ready to segment windows of an image on the fastest arithmetic that this machine has.

Shape suffixes: N windows, K channels, C = 3 colours (RGB), H height, W width.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from roofscale import model as models
from roofscale.config import RunConfig
from roofscale.data.airs import check_label_values
from roofscale.data.augment import resized
from roofscale.data.sample import CHANNELS, Pixels
from roofscale.predict.raster import NODATA, Mask, MaskWriter, Raster, open_image, open_label
from roofscale.predict.sliding_window import Probabilities, RowBlock, Segment, Tiling, sliding_window_inference
from roofscale.train import device as devices


class Segmenter:
    """Gives the probability of some channels for each px of windows.

    Args:
        config: of the run that trained the model.
        weights: the model's state.
        channels: of ``CHANNELS``, in the order in which they are given back.
        window: side of the images that the model is given, px; windows of another size are resized, as training
            resizes its images.
    """

    def __init__(
        self, config: RunConfig, weights: Mapping[str, torch.Tensor], channels: Sequence[str], window: int
    ) -> None:
        config = config.with_overrides({"precision": "auto", "pretrained": False, "image_size": window})
        self.where = devices.select_device(config)
        self._window = window
        self._channels = [CHANNELS.index(channel) for channel in channels]
        self._format = models.memory_format(config)
        self._model = models.build(config)
        self._model.load_state_dict(weights)
        self._model.eval().to(self.where.device).to(memory_format=self._format)  # type: ignore[call-overload]  # torch's stubs
        # On a CPU several windows at once are no faster, and take that much more memory.
        self.batch = 1 if self.where.device.type == "cpu" else config.batch_size

    @torch.inference_mode()
    def __call__(self, images_NHWC: Pixels) -> Probabilities:
        """Segment windows of one size, as (N,K,H,W)."""
        side = images_NHWC.shape[1]
        fitted_NHWC = np.stack([resized(image_HWC, self._window) for image_HWC in images_NHWC])
        image_NCHW = torch.from_numpy(fitted_NHWC).permute(0, 3, 1, 2).to(self.where.device)
        with self.where.autocast():
            logits_NKHW = self._model(image_NCHW.contiguous(memory_format=self._format))
        probability_NKHW = logits_NKHW[:, self._channels].sigmoid()
        if side != self._window:
            probability_NKHW = F.interpolate(probability_NKHW, (side, side), mode="bilinear", antialias=True)
        found: Probabilities = probability_NKHW.cpu().numpy()
        return found


ProgressCallback = Callable[[int], object]  # told how many windows are done since it was told last


@dataclass(frozen=True)
class InferenceSettings:
    """How pictures are cut for a model, and its probabilities into yes and no."""

    segmenter: Segmenter  # of one channel
    tiling: Tiling
    threshold: float  # the least probability that is a yes


@dataclass(frozen=True)
class MaskCoverage:
    """What a mask says of a picture."""

    px: int  # that show something
    found: int  # of these, that belong to the channel

    @property
    def share(self) -> float:
        """Of what the picture shows; NaN where that is nothing."""
        return self.found / self.px if self.px else math.nan


def predict_mask(image: Raster, cutting: InferenceSettings, mask: MaskWriter, tick: ProgressCallback) -> MaskCoverage:
    """Write the mask of a picture: 1 and 0, and nodata where the picture shows nothing."""
    px = found = 0
    for _, found_HW, valid_HW in _decided(image, cutting, tick):
        mask.write(np.where(valid_HW, found_HW, NODATA).astype(np.uint8))
        px += int(valid_HW.sum())
        found += int((found_HW & valid_HW).sum())
    return MaskCoverage(px, found)


def whole_image_counts(picture: Path, label: Path, cutting: InferenceSettings, tick: ProgressCallback) -> torch.Tensor:
    """Count a picture's px against its label of roofs, where it shows something.

    Returns:
        ``(4,K)`` int64 as ``train.scores.count`` gives it: tp, fp, fn, tn of each channel; of roofs alone not 0.

    Raises:
        DataError: one of the files cannot be used.
    """
    counts_4K = torch.zeros(4, len(CHANNELS), dtype=torch.int64)
    with open_image(picture) as image, open_label(label, image) as labels:
        for first, found_HW, valid_HW in _decided(image, cutting, tick):
            label_HW = labels.rows(first, first + len(found_HW))
            check_label_values(label, int(label_HW.max()))
            true_HW = label_HW > 0
            kinds = found_HW & true_HW, found_HW & ~true_HW, ~found_HW & true_HW, ~found_HW & ~true_HW
            counts_4K[:, 0] += torch.tensor([int((kind_HW & valid_HW).sum()) for kind_HW in kinds])
    return counts_4K


def _decided(image: Raster, cutting: InferenceSettings, tick: ProgressCallback) -> Iterator[tuple[int, Mask, Mask]]:
    """Part by part from top to bottom: its first row, where the channel is found, and where the picture shows
    something."""
    for first, probability_KHW in _segmented(image, cutting, tick):
        found_HW = probability_KHW[0] >= cutting.threshold
        yield first, found_HW, image.valid(first, first + len(found_HW))


def _segmented(image: Raster, cutting: InferenceSettings, tick: ProgressCallback) -> Iterator[RowBlock]:
    segmenter = cutting.segmenter
    segment = _ticking(segmenter, tick)
    return sliding_window_inference(image.rows, image.height, image.width, cutting.tiling, segment, segmenter.batch)


def _ticking(segment: Segment, tick: ProgressCallback) -> Segment:
    def and_tick(images_NHWC: Pixels) -> Probabilities:
        found_NKHW = segment(images_NHWC)
        tick(len(images_NHWC))
        return found_NKHW

    return and_tick
