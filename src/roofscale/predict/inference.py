"""Inference with a trained model: masks of whole images, and their confusion counts against labels.

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
from roofscale.predict.sliding_window import Probabilities, Segment, Tiling, sliding_window_inference
from roofscale.train import device as devices


class Segmenter:
    """A trained model that predicts the probability of some channels for each pixel of square windows.

    It runs on the device and in the precision that ``select_device`` chooses with precision=auto.

    Args:
        config: of the run that trained the model.
        weights: the model's state dict.
        channels: of ``CHANNELS``, in the order of the result.
        window: side of the model's input, px; windows of another size are resized, as training resizes its images.

    Raises:
        ConfigError: the model cannot be built.
    """

    def __init__(
        self, config: RunConfig, weights: Mapping[str, torch.Tensor], channels: Sequence[str], window: int
    ) -> None:
        config = config.with_overrides({"precision": "auto", "pretrained": False, "image_size": window})
        self.execution = devices.select_device(config)
        self._window = window
        self._channels = [CHANNELS.index(channel) for channel in channels]
        self._format = models.memory_format(config)
        self._model = models.build(config)
        self._model.load_state_dict(weights)
        self._model.eval().to(self.execution.device).to(memory_format=self._format)  # type: ignore[call-overload]  # torch's stubs
        # On a CPU a batch of several windows is no faster and takes that much more memory.
        self.batch = 1 if self.execution.device.type == "cpu" else config.batch_size

    @torch.inference_mode()
    def __call__(self, images_NHWC: Pixels) -> Probabilities:
        """Predict windows (N,H,W,3) of one size; return probabilities (N,K,H,W) float32."""
        side = images_NHWC.shape[1]
        fitted_NHWC = np.stack([resized(image_HWC, self._window) for image_HWC in images_NHWC])
        image_NCHW = torch.from_numpy(fitted_NHWC).permute(0, 3, 1, 2).to(self.execution.device)
        with self.execution.autocast():
            logits_NKHW = self._model(image_NCHW.contiguous(memory_format=self._format))
        probability_NKHW = logits_NKHW[:, self._channels].sigmoid()
        if side != self._window:
            probability_NKHW = F.interpolate(probability_NKHW, (side, side), mode="bilinear", antialias=True)
        result: Probabilities = probability_NKHW.cpu().numpy()
        return result


ProgressCallback = Callable[[int], object]  # called with the number of windows done since the last call


@dataclass(frozen=True)
class InferenceSettings:
    """The model, the tiling of images and the threshold that turns probabilities into a mask."""

    segmenter: Segmenter  # of one channel
    tiling: Tiling
    threshold: float  # smallest probability that counts as found


@dataclass(frozen=True)
class MaskCoverage:
    """How much of an image belongs to a channel."""

    px: int  # valid pixels of the image
    found: int  # of these, pixels of the channel

    @property
    def share(self) -> float:
        """Share of the channel in the valid pixels; NaN if there is none."""
        return self.found / self.px if self.px else math.nan


def predict_mask(image: Raster, cutting: InferenceSettings, mask: MaskWriter, tick: ProgressCallback) -> MaskCoverage:
    """Write the mask of an image: 1 and 0, and ``NODATA`` where the image is not valid.

    Raises:
        DataError: the image cannot be read.
    """
    px = found = 0
    for _, found_HW, valid_HW in _masks_by_rows(image, cutting, tick):
        mask.write(np.where(valid_HW, found_HW, NODATA).astype(np.uint8))
        px += int(valid_HW.sum())
        found += int((found_HW & valid_HW).sum())
    return MaskCoverage(px, found)


def whole_image_counts(picture: Path, label: Path, cutting: InferenceSettings, tick: ProgressCallback) -> torch.Tensor:
    """Count an image's valid pixels against its label of roofs.

    Returns:
        ``(4,K)`` int64 as ``train.scores.confusion_counts`` returns them: tp, fp, fn, tn of each channel; all but the
        roof's are 0.

    Raises:
        DataError: the image or the label cannot be used.
    """
    counts_4K = torch.zeros(4, len(CHANNELS), dtype=torch.int64)
    with open_image(picture) as image, open_label(label, image) as labels:
        for first, found_HW, valid_HW in _masks_by_rows(image, cutting, tick):
            label_HW = labels.rows(first, first + len(found_HW))
            check_label_values(label, int(label_HW.max()))
            true_HW = label_HW > 0
            masks = found_HW & true_HW, found_HW & ~true_HW, ~found_HW & true_HW, ~found_HW & ~true_HW
            counts_4K[:, 0] += torch.tensor([int((mask_HW & valid_HW).sum()) for mask_HW in masks])
    return counts_4K


def _masks_by_rows(
    image: Raster, cutting: InferenceSettings, tick: ProgressCallback
) -> Iterator[tuple[int, Mask, Mask]]:
    """Yield blocks of rows from top to bottom: first row, mask of the channel (H,W), mask of valid pixels (H,W)."""
    segmenter = cutting.segmenter
    segment = _with_progress(segmenter, tick)
    for first, probability_KHW in sliding_window_inference(
        image.rows, image.height, image.width, cutting.tiling, segment, segmenter.batch
    ):
        found_HW = probability_KHW[0] >= cutting.threshold
        yield first, found_HW, image.valid(first, first + len(found_HW))


def _with_progress(segment: Segment, tick: ProgressCallback) -> Segment:
    def segment_and_tick(images_NHWC: Pixels) -> Probabilities:
        probability_NKHW = segment(images_NHWC)
        tick(len(images_NHWC))
        return probability_NKHW

    return segment_and_tick
