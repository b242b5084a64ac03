"""The nets of published measurements, rebuilt on a CPU from other projects' packages, each with its training step.

Needs the packages of requirements-bench.txt on the path. ``OldTorch`` records what torch before 1.11 kept for backward;
it is a setting of this benchmark, because the measurements are of that time.
"""

import contextlib
import copy
import importlib
import itertools
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from roofscale.forecast.trace import Recorder, fake_copy, replace_tensors
from roofscale.forecast.training_step import TrainingStep
from roofscale.torch_compat import import_torchvision

Row = Mapping[str, str]  # a row of the measurements


class LeftOut(Exception):
    """A row that cannot be forecast; the message says why."""


# ---- torch of the time


class OldTorch(Recorder):
    """Recorder of the lifetimes of torch before 1.11: a softmax kept its input for backward as well as its output."""

    def __init__(self) -> None:
        super().__init__()
        self._inputs: dict[int, torch.Tensor] = {}  # of softmaxes, by the storage of the output

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation as the recorder does, and hold or release the input of a softmax."""
        result = super().__torch_dispatch__(func, types, args, kwargs)
        name = func._schema.name
        if name in ("aten::_softmax", "aten::_log_softmax") and self.phase == "activations":
            self._inputs[id(result.untyped_storage())] = args[0].detach()
        elif name in ("aten::_softmax_backward_data", "aten::_log_softmax_backward_data"):
            self._inputs.pop(id(args[1].untyped_storage()), None)
        return result


class _ClampInPlace(torch.autograd.Function):
    """ReLU6 in place that keeps its result alone, as torch did before it kept a copy of the input."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        x.clamp_(0, 6)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        (y,) = ctx.saved_tensors
        return grads[0] * ((y > 0) & (y < 6))


@contextlib.contextmanager
def old_activations() -> Iterator[None]:
    """Let ReLU6 and hardswish keep what they kept before torch 1.7, while the context is open."""
    modules: tuple[Any, ...] = (nn.ReLU6, nn.Hardtanh, nn.Hardswish)
    forwards = [module.forward for module in modules]

    def clamp(self: Any, x: torch.Tensor) -> torch.Tensor:
        return _ClampInPlace.apply(x) if self.inplace else F.relu6(x)  # type: ignore[no-untyped-call]

    nn.ReLU6.forward = nn.Hardtanh.forward = clamp  # type: ignore[assignment,method-assign]
    nn.Hardswish.forward = lambda self, x: x * _ClampInPlace.apply(x + 3) / 6  # type: ignore[method-assign,no-untyped-call]
    try:
        yield
    finally:
        for module, forward in zip(modules, forwards, strict=True):
            module.forward = forward


@contextlib.contextmanager
def without_initial_values() -> Iterator[None]:
    """Skip the random initial values of weights, which play no part and take most of the time."""
    names = ("uniform_", "normal_", "erfinv_")
    methods = {name: getattr(torch.Tensor, name) for name in names}
    for name in names:
        setattr(torch.Tensor, name, lambda self, *_args, **_kwargs: self)
    try:
        yield
    finally:
        for name, method in methods.items():
            setattr(torch.Tensor, name, method)


# ---- mmsegmentation

# Families whose configs of today say AMP and whose published figures are of float32: forecast so, they agree to 0.1 %.
MEASURED_IN_FP32 = ("poolformer",)


def mmseg_step(row: Row) -> tuple[TrainingStep, int]:
    """Build the step of a row of mmsegmentation's tables, and its batch on each GPU.

    Raises:
        LeftOut: the config cannot be read or built, or its recipe is not known here.
    """
    mmseg = _mmseg()
    if not row["config_path"]:
        raise LeftOut("no config")
    try:
        config = mmseg.Config.fromfile(str(mmseg.folder / row["config_path"]))
    except Exception as error:  # configs import further packages
        raise LeftOut(f"config cannot be read: {type(error).__name__}: {str(error)[:150]}") from error
    height, width = _crop(config)
    wrapper = config.optim_wrapper
    names = {"SGD": _sgd, "AdamW": _adamw, "Adam": _adam}
    if wrapper.optimizer.type not in names:
        raise LeftOut(f"optimizer {wrapper.optimizer.type}")
    net = _mmseg_net(mmseg, config, row["config"])
    step = TrainingStep.of(
        net,
        lambda count: (torch.zeros(count, 3, height, width), torch.zeros(count, 1, height, width, dtype=torch.int64)),
        mmseg.loss,
        names[wrapper.optimizer.type],
        precision="fp16"
        if wrapper.get("type") == "AmpOptimWrapper" and row["family"] not in MEASURED_IN_FP32
        else "fp32",
        keeps_gradients=True,
        ddp=True,
        grad_clip=float((wrapper.get("clip_grad") or {}).get("max_norm", 0)),
        name=row["config"],
    )
    return step, int(row["batch_per_gpu"] or config.train_dataloader.batch_size)


def mmseg_forward(row: Row) -> Any:
    """Return a function of the net's forward pass on an image (1,3,1024,2048) with resize and argmax, and the net."""
    mmseg = _mmseg()
    net = _mmseg_net(mmseg, mmseg.Config.fromfile(str(mmseg.folder / row["config_path"])), row["config"])

    def forward(net: Any) -> torch.Tensor:
        logits = net._forward(torch.zeros(1, 3, 1024, 2048))
        logits = logits[-1] if isinstance(logits, list | tuple) else logits
        resized = F.interpolate(logits, size=(1024, 2048), mode="bilinear", align_corners=False)
        return resized.softmax(1).argmax(1)

    return net, forward


def _mmseg_net(mmseg: Any, config: Any, name: str) -> nn.Module:
    model = config.model.copy()
    if "r101" in name and model.backbone.get("depth") == 50:
        model.backbone.depth = 101  # configs of version 1 that assign ``model`` twice lose the depth
    _without_pretrained(model)
    model.pop("data_preprocessor", None)
    try:
        with without_initial_values():
            net: nn.Module = mmseg.MODELS.build(model)
    except Exception as error:  # compiled operators, further packages
        raise LeftOut(f"net cannot be built: {type(error).__name__}: {str(error)[:150]}") from error
    return net.train()


def _without_pretrained(settings: Any) -> None:
    if isinstance(settings, dict):
        for key in list(settings):
            if key in ("pretrained", "init_cfg"):
                settings[key] = None
            elif key == "type" and settings[key] == "SyncBN":
                settings[key] = "BN"
            else:
                _without_pretrained(settings[key])
    elif isinstance(settings, list | tuple):
        for value in settings:
            _without_pretrained(value)


def _crop(config: Any) -> tuple[int, int]:
    crop = config.get("crop_size") or config.model.get("data_preprocessor", {}).get("size")
    crop = crop or config.model.get("test_cfg", {}).get("crop_size")
    if crop is None:
        raise LeftOut("the config names no crop")
    return (crop, crop) if isinstance(crop, int) else (int(crop[0]), int(crop[1]))


def _sgd(weights: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(weights, lr=0.01, momentum=0.9, weight_decay=0.0005, foreach=False)


def _adamw(weights: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(weights, lr=1e-4, weight_decay=0.01, foreach=False)


def _adam(weights: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(weights, lr=1e-4, foreach=False)


class _Samples(list[Any]):
    """Stands for mmsegmentation's list of samples; ``label`` is what a head stacks of them."""

    label: torch.Tensor


def _mmseg_loss(net: Any, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    image, label = batch
    shape = {"img_shape": image.shape[2:], "pad_shape": image.shape[2:]}
    truths = ({name: types.SimpleNamespace(data=one) for name in ("gt_sem_seg", "gt_edge_map")} for one in label)
    samples = _Samples(types.SimpleNamespace(metainfo=shape, **truth) for truth in truths)
    samples.label = label
    total = torch.zeros(())
    for name, value in net.loss(image, samples).items():
        if "loss" in name:
            total = total + (sum(v.mean() for v in value) if isinstance(value, list | tuple) else value.mean())
    return total


def _accuracy(pred: torch.Tensor, target: torch.Tensor, **_: Any) -> torch.Tensor:
    """Compute pixel accuracy as versions before 0.23 did, without shapes that depend on values."""
    _, label = pred.topk(1, dim=1)
    correct = label.transpose(0, 1).eq(target.unsqueeze(0))
    return correct.reshape(-1).float().sum(0, keepdim=True) * (100.0 / target.numel())


def _one_hot(pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(pred).scatter_(1, target.clamp(0, pred.shape[1] - 1).unsqueeze(1), 1.0)


def _mmseg() -> Any:
    """Import mmsegmentation without its compiled operators; return what is used of it."""
    if not hasattr(_mmseg, "found"):
        import_torchvision()
        sys.modules["mmcv.ops"] = _missing_operators()
        mmengine, scope = importlib.import_module("mmengine.config"), importlib.import_module("mmengine.registry")
        models = importlib.import_module("mmseg.models")
        scope.DefaultScope.get_instance("mmseg", scope_name="mmseg")
        losses = "mmseg.models.losses"
        original = sys.modules[f"{losses}.accuracy"].accuracy
        for module in list(sys.modules.values()):
            if getattr(module, "__name__", "").startswith("mmseg") and getattr(module, "accuracy", None) is original:
                module.accuracy = _accuracy
        dice: Any = sys.modules[f"{losses}.dice_loss"]
        dice._expand_onehot_labels_dice, plain_dice = _one_hot, dice.dice_loss
        dice.dice_loss = lambda *args, **more: plain_dice(*args, **{**more, "ignore_index": None})
        head = importlib.import_module("mmseg.models.decode_heads.decode_head").BaseDecodeHead
        head._stack_batch_gt = lambda _self, samples: samples.label
        _mmseg.found = types.SimpleNamespace(  # type: ignore[attr-defined]
            Config=mmengine.Config,
            MODELS=importlib.import_module("mmseg.registry").MODELS,
            folder=Path(models.__file__).parents[1] / ".mim",
            loss=_mmseg_loss,
        )
    return _mmseg.found  # type: ignore[attr-defined]


def _missing_operators() -> types.ModuleType:
    """Return a module of operators that cannot be built, except one that torch has as well."""
    module = types.ModuleType("mmcv.ops")
    module.__path__ = []

    def point_sample(image: torch.Tensor, points: torch.Tensor, align_corners: bool = False, **more: Any) -> Any:
        flat = points.dim() == 3
        grid = points.unsqueeze(2) if flat else points
        sampled = F.grid_sample(image, 2 * grid - 1, align_corners=align_corners, **more)
        return sampled.squeeze(3) if flat else sampled

    def operator(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def refuse(*_: Any, **__: Any) -> None:
            raise NotImplementedError(f"mmcv.ops.{name} is a compiled operator")

        return point_sample if name == "point_sample" else type(name, (nn.Module,), {"__init__": refuse})

    module.__getattr__ = operator  # type: ignore[method-assign]
    return module


# ---- timm


def timm_step(row: Row) -> tuple[TrainingStep, int]:
    """Build the step of a row of timm's benchmark, and the batch that ran.

    Raises:
        LeftOut: timm has no such model today, or another one by its name.
    """
    import_torchvision()
    import timm
    from timm.layers import set_fused_attn

    set_fused_attn(enable=False)  # explicit attention, as in 2022
    net = _timm_net(timm, row["model"]).train()
    count, published = sum(weight.numel() for weight in net.parameters()) / 1e6, float(row["params_m"])
    if abs(count - published) > 0.011 + 0.002 * count:
        raise LeftOut(f"another model by this name today: {count:.2f} M weights, {published:.2f} M published")
    side, is_last = int(row["h"]), row["channels_last"] == "True"
    layout = torch.channels_last if is_last else torch.contiguous_format

    def inputs(count: int) -> torch.Tensor:
        return torch.zeros(count, 3, side, side).contiguous(memory_format=layout)

    def loss(net: nn.Module, image: torch.Tensor) -> torch.Tensor:
        logits = net(image)
        logits = logits[0] if isinstance(logits, tuple) else logits
        return F.cross_entropy(logits, torch.zeros(len(image), dtype=torch.int64))

    step = TrainingStep.of(
        net,
        inputs,
        loss,
        lambda weights: torch.optim.SGD(weights, lr=1e-4, momentum=0.9, nesterov=True, foreach=False),
        precision="fp16",
        keeps_gradients=True,
        channels_last=is_last,
        name=row["model"],
    )
    return step, int(row["batch_per_gpu"])


def _timm_net(timm: Any, name: str) -> nn.Module:
    """Build a model of timm, without memory for its weights if it reads none of their values."""
    try:
        try:
            with torch.device("meta"):
                return timm.create_model(name)  # type: ignore[no-any-return]
        except (NotImplementedError, RuntimeError):
            with without_initial_values():
                return timm.create_model(name)  # type: ignore[no-any-return]
    except Exception as error:
        raise LeftOut(f"net cannot be built: {type(error).__name__}: {str(error)[:150]}") from error


# ---- NVIDIA's nnU-Net


class _Block(nn.Sequential):
    def __init__(self, channels: int, filters: int, stride: int) -> None:
        layers: list[nn.Module] = []
        for first, second, step in ((channels, filters, stride), (filters, filters, 1)):
            layers += [nn.Conv2d(first, second, 3, step, 1, bias=False), nn.InstanceNorm2d(second, affine=True)]
            layers.append(nn.LeakyReLU(0.01, inplace=True))
        super().__init__(*layers)


class _NnUnet(nn.Module):
    """The 2D net for images (N,4,192,160): six levels, strides 1, 2, 2, 2, 2, 2, instance norm."""

    def __init__(self) -> None:
        super().__init__()
        filters = [min(2 ** (5 + level), 320) for level in range(6)]
        pairs = list(itertools.pairwise(filters))
        self.down = nn.ModuleList([_Block(4, filters[0], 1), *(_Block(a, b, 2) for a, b in pairs)])
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in reversed(pairs))
        self.join = nn.ModuleList(_Block(2 * a, a, 1) for a, _ in reversed(pairs))
        self.out = nn.Conv2d(filters[0], 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        levels = []
        for block in self.down:
            x = block(x)
            levels.append(x)
        for up, join, skip in zip(self.up, self.join, levels[-2::-1], strict=True):
            x = join(torch.cat((up(x), skip), 1))
        return self.out(x)


def nnunet_step(row: Row) -> tuple[TrainingStep, int]:
    """Build the step of NVIDIA's nnU-Net, with cross-entropy and Dice, and its batch."""

    def loss(net: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        image, label = batch
        logits = net(image)
        shares = logits.softmax(1)
        truth = torch.zeros_like(shares).scatter_(1, label.unsqueeze(1), 1.0)
        overlap, sizes = (shares * truth).sum((2, 3)), (shares + truth).sum((2, 3))
        return F.cross_entropy(logits, label) + 1 - ((2 * overlap + 1e-5) / (sizes + 1e-5)).mean()

    step = TrainingStep.of(
        _NnUnet(),
        lambda count: (torch.zeros(count, 4, 192, 160), torch.zeros(count, 192, 160, dtype=torch.int64)),
        loss,
        _adam,
        precision="fp16" if "amp" in row["precision"] else "fp32",
        name="nnU-Net",
    )
    return step, int(row["batch_per_gpu"])


# ---- inference


def trace_forward(net: nn.Module, forward: Any) -> tuple[Any, ...]:
    """Return the operations of a forward pass in evaluation mode."""
    recorder = Recorder()
    copied = copy.deepcopy(net).eval()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        replace_tensors(copied, fake_copy)
        with recorder:
            recorder.phase = "activations"
            forward(copied)
        return recorder.trace().work
