"""The model: any decoder over a timm encoder, whole with its normalisation, the same from the same seed."""

import pytest
import torch

from roofscale import model
from roofscale.config import RunConfig
from roofscale.errors import ConfigError
from roofscale.torch_compat import segmentation_models

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


@pytest.mark.parametrize("size", [64, 512])
def test_an_encoder_made_for_one_size_says_which(size: int) -> None:
    swin = RunConfig(encoder="swin_tiny_patch4_window7_224", image_size=size)
    with pytest.raises(ConfigError, match=rf"image_size={size}: .*doesn't match model.*image_size=224"):
        model.build(swin)


def test_trying_the_size_leaves_no_trace_in_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = model.build(SMALL)
    after = torch.rand(3)
    monkeypatch.setattr(model, "_check_image_size", lambda *_: None)
    untried = model.build(SMALL)
    assert torch.equal(after, torch.rand(3))
    assert tried.training
    assert all(torch.equal(one, other) for one, other in zip(tried.state_dict().values(),
               untried.state_dict().values(), strict=True))  # fmt: skip
    assert {value.device.type for value in (*tried.parameters(), *tried.buffers())} == {"cpu"}


def test_a_model_that_hangs_on_values_is_left_to_the_training() -> None:
    class Looks(torch.nn.Module):
        def forward(self, image_NCHW: torch.Tensor) -> torch.Tensor:
            return image_NCHW * (1 if image_NCHW.mean().item() > 0 else 2)

    class Shrinks(torch.nn.Module):
        def forward(self, image_NCHW: torch.Tensor) -> torch.Tensor:
            return image_NCHW[..., ::2, ::2]

    model._check_image_size(SMALL, model.RoofNet(Looks()))
    with pytest.raises(ConfigError, match=r"logits are of 32x32 px"):
        model._check_image_size(SMALL, model.RoofNet(Shrinks()))


@pytest.mark.parametrize("decoder", sorted(segmentation_models().MODEL_ARCHITECTURES_MAPPING))
def test_what_a_decoder_needs_of_a_batch_is_known_beforehand(decoder: str) -> None:
    """The model itself is asked: it is tried in training on one image."""
    one = SMALL.with_overrides({"decoder": decoder, "batch_size": 1, "image_size": 128})
    if one.least_batch == 1:
        model.build(one)
        one.require_batch()
    else:
        with pytest.raises(ConfigError, match="needs two of them"):
            model.build(one)
        with pytest.raises(ConfigError, match="expected batch_size=2 or more"):
            one.require_batch()
        with pytest.raises(ConfigError, match="expected batch_size=6 or more"):
            one.with_overrides({"batch_size": 5, "micro_batches": 3}).require_batch()
        one.with_overrides({"batch_size": 2}).require_batch()


def test_the_smallest_images_of_all_cannot_be_trained_alone() -> None:
    with pytest.raises(ConfigError, match="Raise batch_size or image_size"):
        model.build(SMALL.with_overrides({"batch_size": 1, "image_size": 32}))
    model.build(SMALL.with_overrides({"batch_size": 2, "image_size": 32}))
