"""The segmentation model: a timm encoder with a segmentation-models-pytorch decoder.

Shape suffixes: N batch, C = 3 colours (RGB), K channels, H height, W width.
"""

from typing import Any

import torch
from torch import nn

from roofscale.config import RunConfig
from roofscale.data.sample import CHANNELS
from roofscale.errors import ConfigError, did_you_mean
from roofscale.torch_compat import segmentation_models

# ImageNet statistics of RGB in 0..255, which timm's weights expect (timm.data.constants).
_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


class RoofNet(nn.Module):
    """A segmentation net with its input normalisation, so that a logged model takes raw images.

    It maps ``(N,3,H,W)`` uint8, or float in 0..255, to ``(N,K,H,W)`` float32 logits over ``CHANNELS``; H and W are
    multiples of 32.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, image_NCHW: torch.Tensor) -> torch.Tensor:
        """Return float32 logits, also under autocast."""
        logits_NKHW: torch.Tensor = self.net((image_NCHW.float() - self.mean) / self.std)
        return logits_NKHW.float()


def build(config: RunConfig) -> RoofNet:
    """Build the model of a run config with seeded weights.

    Raises:
        ConfigError: an unknown encoder or decoder, a pair that does not go together or cannot take images of this
            size, or pretrained weights that cannot be loaded.
    """
    smp = segmentation_models()
    import timm

    decoders = list(smp.MODEL_ARCHITECTURES_MAPPING)
    if config.decoder not in decoders:
        raise ConfigError(
            f"decoder={config.decoder}: no decoder of segmentation-models-pytorch."
            f"{did_you_mean(config.decoder, decoders)}"
        )
    if not timm.is_model(config.encoder):
        raise ConfigError(
            f"encoder={config.encoder}: no model of timm.{_nearest_encoder(config.encoder, timm.list_models())}"
        )
    torch.manual_seed(config.seed)
    try:
        net = smp.create_model(
            config.decoder,
            encoder_name=f"tu-{config.encoder}",
            encoder_weights=config.pretrained or None,
            classes=len(CHANNELS),
        )
    except Exception as error:  # smp, timm and the hub raise types of their own
        raise _build_error(config, error) from error
    if config.activation_checkpointing:
        _checkpoint_activations(config, net)
    model = RoofNet(net)
    _check_image_size(config, model)
    return model


def _checkpoint_activations(config: RunConfig, net: nn.Module) -> None:
    """Make the encoder keep only the activations at the ends of its stages (Chen et al. 2016, arXiv:1604.06174)."""
    try:
        net.encoder.model.set_grad_checkpointing(True)  # type: ignore[operator, union-attr]  # smp's wrapper of timm's
    except (AttributeError, AssertionError) as error:
        raise ConfigError(
            f"activation_checkpointing=true: {config.encoder} has no such switch in timm; expected an encoder that "
            "does, such as resnet34, or set activation_checkpointing=false."
        ) from error


def _nearest_encoder(name: str, known: list[str]) -> str:
    near = did_you_mean(name, known)
    return near if near.startswith(" Did") else " List them with: python -c 'import timm; print(timm.list_models())'"


def _build_error(config: RunConfig, error: Exception) -> ConfigError:
    reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    if config.pretrained:
        return ConfigError(
            f"pretrained=true: the weights of {config.encoder} could not be loaded ({reason}). Where the model hub "
            "cannot be reached, fill its cache (HF_HOME) on a machine that can and copy it here, "
            "or set pretrained=false."
        )
    return ConfigError(
        f"encoder={config.encoder} decoder={config.decoder}: they do not go together ({reason}); "
        "try decoder=unet, or another encoder."
    )


def _check_image_size(config: RunConfig, model: RoofNet) -> None:
    """Run an image of the run's size through the model on the meta device: 0.1 s, no memory, no random numbers.

    The model is in training mode if micro-batches may be single images, on which batch normalisation can fail. An
    operation that needs values cannot run on the meta device: then nothing is decided, and training will show.

    Raises:
        ConfigError: the model cannot take the image, such as one that is made for a single size.
    """
    size = (config.image_size, config.image_size)
    state = {name: value.detach().to("meta") for name, value in (*model.named_parameters(), *model.named_buffers())}
    try:
        with torch.no_grad():
            image_NCHW = torch.empty(1, 3, *size, device="meta")
            alone = config.batch_size < 2 * config.micro_batches
            logits_NKHW = torch.func.functional_call(model.train(alone), state, (image_NCHW,))
    except NotImplementedError:
        return
    except Exception as error:  # timm asserts; torch raises many types for a wrong shape
        if "meta tensor" in str(error):
            return
        if "more than 1 value per channel" in str(error):
            raise ConfigError(
                f"batch_size={config.batch_size} micro_batches={config.micro_batches} image_size={config.image_size}: "
                f"encoder={config.encoder} decoder={config.decoder} normalises one value of each channel over the "
                "images of a part of a batch, and needs two of them. Raise batch_size or image_size, or lower "
                "micro_batches."
            ) from error
        raise _size_error(config, f"{type(error).__name__}: {error}".splitlines()[0][:300]) from error
    finally:
        model.train()
    if logits_NKHW.shape[2:] != size:
        raise _size_error(config, f"its logits are of {'x'.join(map(str, logits_NKHW.shape[2:]))} px")


def _size_error(config: RunConfig, reason: str) -> ConfigError:
    import timm

    pretrained = timm.get_pretrained_cfg(config.encoder)
    remedy = "try decoder=unet, or another encoder."
    if pretrained and pretrained.fixed_input_size and (side := pretrained.input_size[1]) != config.image_size:
        remedy = f"this encoder is made for image_size={side} alone: set that, or choose another encoder."
    return ConfigError(
        f"encoder={config.encoder} decoder={config.decoder} image_size={config.image_size}: expected a model that "
        f"takes images of that size, and this one does not ({reason}); {remedy}"
    )


def make_ema(model: nn.Module, decay: float) -> Any:
    """Build timm's moving average of a model: ``module`` is the averaged copy, ``update(model, step)`` updates it.

    The batch normalisation statistics are averaged like the weights. The decay grows to its full value over the first
    steps (warm-up), so that the random initial weights soon lose their influence.
    """
    from timm.utils.model_ema import ModelEmaV3

    return ModelEmaV3(model, decay=decay, use_warmup=True)


def count_parameters(model: nn.Module) -> int:
    """Return the number of trained values."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def memory_format(config: RunConfig) -> Any:
    """Return the torch memory format of a run config."""
    return torch.channels_last if config.channels_last else torch.contiguous_format
