"""A trained model, ready to segment windows of an image on the fastest arithmetic that this machine has.

Shape suffixes: N windows, K channels, C = 3 colours (RGB), H height, W width.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from roofscale import model as models
from roofscale.config import RunConfig
from roofscale.data.augment import resized
from roofscale.data.sample import CHANNELS, Pixels
from roofscale.predict.blend import Probabilities
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
        self.where = devices.choose(config)
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
