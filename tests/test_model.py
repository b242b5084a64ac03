"""The model: any decoder over a timm encoder, whole with its normalisation, the same from the same seed."""

import pytest
import torch

from roofscale import model
from roofscale.config import RunConfig
from roofscale.errors import ConfigError

SMALL = RunConfig(encoder="resnet18", image_size=64)


@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [("resnet18", "unet"), ("resnet18", "fpn"), ("resnet18", "deeplabv3plus"), ("mobilenetv3_small_100", "linknet"),
     ("efficientnet_b0", "manet")],
)  # fmt: skip
def test_any_decoder_gives_a_logit_for_each_pixel_and_channel(encoder: str, decoder: str) -> None:
    net = model.build(RunConfig(encoder=encoder, decoder=decoder, image_size=64)).eval()
    with torch.inference_mode():
        logits = net(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    assert logits.shape == (2, 4, 64, 64)
    assert logits.dtype == torch.float32


def test_uint8_and_float_pixels_mean_the_same() -> None:
    net = model.build(SMALL).eval()
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(net(image), net(image.float()))


def test_the_same_seed_gives_the_same_weights() -> None:
    one, two, other = (model.build(SMALL.with_overrides({"seed": seed})).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_weights_that_cannot_be_reached_say_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"pretrained=true.*HF_HOME.*pretrained=false"):
        model.build(SMALL.with_overrides({"pretrained": True}))
