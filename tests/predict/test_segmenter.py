"""A trained net, as it segments windows."""

import cv2
import numpy as np
import pytest
import torch
from tests.predict.tiny_images import noise

from roofscale import model as models
from roofscale.config import RunConfig
from roofscale.data.sample import Pixels
from roofscale.errors import ConfigError
from roofscale.predict.inference import Segmenter

CONFIG = RunConfig(encoder="resnet18", image_size=64, precision="fp16", batch_size=3)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    net = models.build(CONFIG)
    torch.nn.init.normal_(net.net.segmentation_head[0].weight, std=0.5)
    return net.state_dict()


def windows(count: int, side: int) -> Pixels:
    """Blurred noise, as pictures vary slowly."""
    image_HWC = cv2.GaussianBlur(noise(side, side * count).transpose(1, 2, 0), (0, 0), 4)
    return np.stack(np.split(image_HWC, count, axis=1))


def test_each_window_is_segmented_by_itself_and_each_channel_is_its_own(weights: dict[str, torch.Tensor]) -> None:
    segmenter = Segmenter(CONFIG, weights, ["roof", "hip"], 64)
    images_NHWC = windows(3, 64)
    found_NKHW = segmenter(images_NHWC)
    assert (found_NKHW.shape, found_NKHW.dtype) == ((3, 2, 64, 64), np.float32)
    assert ((found_NKHW > 0) & (found_NKHW < 1)).all()
    alone_NKHW = Segmenter(CONFIG, weights, ["hip"], 64)(images_NHWC[1:2])
    np.testing.assert_allclose(alone_NKHW[0, 0], found_NKHW[1, 1], atol=0.02)  # bf16 has three digits
    assert np.abs(found_NKHW[:, 0] - found_NKHW[:, 1]).max() > 0.1


def test_larger_windows_are_seen_at_the_models_size(weights: dict[str, torch.Tensor]) -> None:
    segmenter = Segmenter(CONFIG, weights, ["roof"], 64)
    large_NHWC = windows(1, 128)
    small_HWC = cv2.resize(large_NHWC[0], (64, 64), interpolation=cv2.INTER_AREA)
    found_HW, expected_HW = segmenter(large_NHWC)[0, 0], segmenter(small_HWC[None])[0, 0]
    assert found_HW.shape == (128, 128)
    again_HW = cv2.resize(found_HW, (64, 64), interpolation=cv2.INTER_AREA)
    assert np.corrcoef(again_HW.ravel(), expected_HW.ravel())[0, 1] > 0.97


def test_a_net_that_was_made_for_one_size_takes_no_other() -> None:
    config = RunConfig(encoder="swinv2_tiny_window8_256", image_size=256)
    with pytest.raises(ConfigError, match="image_size=256 alone"):
        Segmenter(config, {}, ["roof"], 128)
