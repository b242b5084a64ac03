"""The run config: every knob of one training run with its default, unit and range.

Precedence, lowest first: the defaults below, a file, overrides (``batch_size=8``). Phase files, the command line and
MLflow parameters spell the knobs alike.
"""

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from roofscale.errors import ConfigError, did_you_mean, shown
from roofscale.files import naming, read_yaml

DATASETS = ("rid", "roofline", "airs")
CACHED_STEPS = 3  # at the end of a run, on a cached batch; their median is the reference for the data stall

# Decoders with a branch that pools the image to one value of each channel before it normalises: over a single image
# batch norm has no variance there.
_POOLING_DECODERS = frozenset({"deeplabv3", "deeplabv3plus", "pan", "upernet"})

# The costs that a knob affects: the peak memory of host or GPU, the seconds of a training step on a ready batch, the
# seconds in which the loader prepares a batch. A knob of _NONE affects the result, the data drawn or the run's length.
Cost = Literal["memory", "step", "loader"]
_NONE: frozenset[Cost] = frozenset()
_MEMORY: frozenset[Cost] = frozenset({"memory"})
_LOADER: frozenset[Cost] = frozenset({"loader"})
_STEP: frozenset[Cost] = frozenset({"memory", "step"})


def knob(
    default: Any,
    meaning: str,
    affects: frozenset[Cost],
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] = (),
    in_fingerprint: bool = True,
) -> Any:
    """Declare a knob of ``RunConfig``.

    Args:
        default: its value unless a file or an override sets it.
        meaning: one line with the unit, for help texts and messages.
        affects: the costs of a run that it changes.
        low: smallest value; None is no bound.
        high: largest value; None is no bound.
        choices: the values of a text, or of the items of a list; empty allows any.
        in_fingerprint: False if it only says where the pixels are read from, not what the run computes.
    """
    metadata = {"meaning": meaning, "affects": affects, "low": low, "high": high, "choices": tuple(choices)}
    return dataclasses.field(default=default, metadata={**metadata, "in_fingerprint": in_fingerprint})


@dataclass(frozen=True)
class RunConfig:
    """Every knob of one training run.

    Raises:
        ConfigError: a value of the wrong type, out of range, or not among the choices.
    """

    # data
    datasets: tuple[str, ...] = knob(("rid",), "data sets to train on, in this order", _LOADER, choices=DATASETS)
    data_root: str = knob("", "folder with rid/, roofline/, airs/; empty: generated data", _NONE, in_fingerprint=False)
    split: str = knob(
        "published",
        "who is in train, val and test: the published split, or a seeded one: random, or spatial, which keeps images "
        "that show the same ground or have the same pixels in one part",
        _NONE,
        choices=("published", "random", "spatial"),
    )
    split_number: int = knob(1, "which of RID's published splits; the seed of the others", _NONE, low=1, high=5)
    max_samples: int = knob(10, "training samples of each data set (AIRS: windows); 0 = all", _NONE, low=0)
    val_samples: int = knob(40, "validation samples of each data set; 0 = all", _NONE, low=0)
    image_size: int = knob(
        512, "side of the square training image, px; a multiple of 32", _STEP | _LOADER, low=32, high=4096
    )
    fit: str = knob(
        "resize",
        "how an image of another size meets image_size: resize, or pad and crop",
        _LOADER,
        choices=("resize", "crop"),
    )
    augment: str = knob(
        "light",
        "training augmentations: none, light (flips, turns, brightness), heavy",
        _LOADER,
        choices=("none", "light", "heavy"),
    )
    roof_sampling: float = knob(
        0.0,
        "share of the AIRS windows drawn for training that go by their roofs, the more roof the oftener; 0 = each once",
        _LOADER,
        low=0.0,
        high=1.0,
    )
    tile_cache_gib: float = knob(
        0.0,
        "disk for copies of AIRS tiles in a layout that windows are slow to read from, GiB; 0 = no copies",
        _LOADER,
        low=0.0,
        in_fingerprint=False,
    )
    on_bad_sample: str = knob(
        "error",
        "a broken file: error names it and ends the run; skip counts and logs it",
        _NONE,
        choices=("error", "skip"),
    )
    # model
    encoder: str = knob("resnet34", "timm encoder name", _STEP)
    decoder: str = knob("unet", "segmentation-models-pytorch decoder name", _STEP)
    pretrained: bool = knob(
        False, "start the encoder from ImageNet weights (needs the model hub or its cache)", _MEMORY
    )
    # training
    batch_size: int = knob(2, "samples per optimiser step per device", _STEP, low=1)
    processes: int = knob(1, "training processes on each machine, one a GPU; all take one step together", _STEP, low=1)
    instance_count: int = knob(1, "machines that train together, each with its processes; SageMaker only", _STEP, low=1)
    micro_batches: int = knob(
        1,
        "parts, of a sample at least, that a batch is trained in: memory of a part, step of the whole batch",
        _STEP,
        low=1,
    )
    num_workers: int = knob(
        2, "loader processes of each training process; 0 loads in that itself", _MEMORY | _LOADER, low=0
    )
    prefetch_factor: int = knob(2, "batches each loader process prepares ahead", _MEMORY | _LOADER, low=1)
    epochs: int = knob(1, "passes over each data set", _NONE, low=1)
    schedule: str = knob(
        "sequential", "data sets one after the other, or mixed in each epoch", _NONE, choices=("sequential", "mixed")
    )
    lr: float = knob(1e-3, "peak learning rate of AdamW", _NONE, low=0.0)
    lr_schedule: str = knob(
        "onecycle", "how the learning rate moves over the run", _NONE, choices=("onecycle", "constant")
    )
    weight_decay: float = knob(1e-2, "AdamW's decoupled weight decay", _NONE, low=0.0)
    grad_clip: float = knob(1.0, "largest gradient norm, L2; 0 = no clipping", _NONE, low=0.0)
    ema: float = knob(
        0.0,
        "decay a step of the weights' moving average, which is then what is validated and kept as the best; 0 = none",
        _STEP,
        low=0.0,
        high=0.99999,
    )
    precision: str = knob(
        "auto",
        "arithmetic of the forward pass; auto: the fastest that the device computes natively",
        _STEP,
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    channels_last: bool = knob(True, "NHWC memory format for the model and its input", _STEP)
    activation_checkpointing: bool = knob(
        False, "keep only some of the encoder's activations and compute the others again: less memory, more time", _STEP
    )
    compile: bool = knob(
        False,
        "compile the training step with torch.compile: minutes at the start, and a C++ compiler, or Triton on a GPU",
        _STEP,
    )
    seed: int = knob(0, "seed of weights, order and augmentation", _NONE, low=0, high=2**31 - 1)
    checkpoint_seconds: float = knob(
        60.0, "seconds between checkpoints; one is also written at SIGTERM", _NONE, low=0.0
    )
    # where and how long
    compute: str = knob("local", "where the run executes and how much it has (see compute.yaml)", _STEP)
    threads: int = knob(
        0,
        "CPU threads of the training process; 0: as many as others leave of the compute's cores, followed in mid-run; "
        "a fixed number alone repeats a run to the last digit whatever else the machine does",
        _STEP,
        low=0,
    )
    timeout_seconds: float = knob(86400.0, "longest a run may take, seconds", _NONE, low=1.0)
    stop_precision: float = knob(
        0.0,
        "only measure the pace: end once samples/s are known to within this share of them; 0 = train to the end",
        _NONE,
        low=0.0,
        high=1.0,
    )
    stop_below: float = knob(0.0, "with stop_precision: end once samples/s are certainly below this", _NONE, low=0.0)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name))
        if self.image_size % 32:
            raise ConfigError(
                f"image_size={self.image_size}: expected a multiple of 32, because the encoder halves "
                f"the image five times; try {max(32, round(self.image_size / 32) * 32)}."
            )
        if not self.datasets or len(set(self.datasets)) != len(self.datasets):
            raise ConfigError(
                f"datasets={list(self.datasets)}: expected one or more of {', '.join(DATASETS)}, each once."
            )

    def with_overrides(self, overrides: Mapping[str, Any] | Sequence[str]) -> "RunConfig":
        """Return a copy with overrides applied in order: ``key=value`` words, or a mapping of knobs to values.

        Raises:
            ConfigError: an unknown key, or a value that does not fit.
        """
        pairs = overrides.items() if isinstance(overrides, Mapping) else map(_split_override, overrides)
        return dataclasses.replace(self, **{key: parse_value(key, value) for key, value in pairs})

    def as_dict(self) -> dict[str, Any]:
        """Return the config as plain JSON values, in the order of the fields."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(self).items()}

    def to_strings(self) -> dict[str, str]:
        """Return the values as written on the command line and logged as MLflow parameters."""
        return {key: _write(value) for key, value in self.as_dict().items()}

    def diff(self, other: "RunConfig") -> dict[str, str]:
        """Return this config's knobs, as written, that differ from those of another config."""
        others = other.to_strings()
        return {key: value for key, value in self.to_strings().items() if value != others[key]}

    @property
    def least_batch(self) -> int:
        """The smallest batch_size that can be trained.

        A micro-batch needs two images if the decoder normalises one value of each image and channel.
        """
        return 2 * self.micro_batches if self.decoder in _POOLING_DECODERS else 1

    def require_batch(self) -> None:
        """Check that the batch can be trained.

        Raises:
            ConfigError: it has fewer images than ``least_batch``.
        """
        if self.batch_size < self.least_batch:
            parts = f" micro_batches={self.micro_batches}" if self.micro_batches > 1 else ""
            raise ConfigError(
                f"batch_size={self.batch_size}{parts}: decoder={self.decoder} normalises over the images of each part "
                f"of a batch, and needs two of them; expected batch_size={self.least_batch} or more. Raise it, or "
                "choose another decoder."
            )

    @property
    def passes(self) -> int:
        """The number of passes over the training data: ``epochs`` of each data set in turn, or of all of them mixed."""
        return self.epochs * (1 if self.schedule == "mixed" else len(self.datasets))

    @property
    def world_size(self) -> int:
        """The number of processes that train together, over all machines."""
        return self.processes * self.instance_count

    @property
    def global_batch_size(self) -> int:
        """The number of samples of one optimiser step, over all processes."""
        return self.batch_size * self.world_size

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits of a hash over the knobs that decide what the run computes.

        Independent of the folder of the data; see ``in_fingerprint`` of ``knob``.
        """
        knobs = {key: value for key, value in self.as_dict().items() if FIELDS[key].metadata["in_fingerprint"]}
        return hashlib.sha256(json.dumps(knobs, sort_keys=True).encode()).hexdigest()[:12]


FIELDS: Mapping[str, "dataclasses.Field[Any]"] = types.MappingProxyType(
    {field.name: field for field in dataclasses.fields(RunConfig)}
)
_TYPES: dict[str, Any] = typing.get_type_hints(RunConfig)


def affecting(*costs: Cost) -> frozenset[str]:
    """Return the knobs that affect at least one of these costs of a run.

    Every comparison of runs by memory or pace, and every forecast from other runs, uses these.
    """
    return frozenset(key for key, field in FIELDS.items() if field.metadata["affects"].intersection(costs))


def load(file: Path | None = None, overrides: Mapping[str, Any] | Sequence[str] = ()) -> RunConfig:
    """Resolve a run config: the defaults, then a YAML file, then overrides.

    Raises:
        ConfigError: an unreadable file, an unknown key or a value that does not fit.
    """
    config = RunConfig()
    if file is not None:
        content = read_yaml(file, "batch_size: 8")
        with naming(file):
            config = config.with_overrides(content)
    return config.with_overrides(overrides)


def parse_value(key: str, value: Any) -> Any:
    """Convert a value, typed or written as text, to the type of the knob ``key``.

    Raises:
        ConfigError: an unknown key, or a value that the field's type cannot take.
    """
    if key not in FIELDS:
        raise ConfigError(f"{key!r} is no knob of the run config.{did_you_mean(key, FIELDS)}")
    try:
        return _convert(_TYPES[key], value)
    except (ValueError, TypeError, OverflowError) as error:
        example = _write(FIELDS[key].default) or "path/to/folder"
        raise ConfigError(
            f"{key}={value!r}: expected {_type_name(_TYPES[key])} ({FIELDS[key].metadata['meaning']}), "
            f"such as {key}={example}."
        ) from error


def _convert(kind: Any, value: Any) -> Any:
    if kind is bool:
        return _to_bool(value)
    if kind is int:
        return _to_int(value)
    if kind is float:
        if isinstance(value, bool):
            raise ValueError(value)
        return float(value)
    if kind is str:
        if not isinstance(value, str | int | float | Path):
            raise ValueError(value)
        return str(value)
    if isinstance(value, str):
        value = [part.strip().strip("'\"") for part in value.strip().strip("[]()").split(",") if part.strip()]
    return tuple(str(part) for part in value)


def _to_bool(value: Any) -> bool:
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if isinstance(value, bool):
        return value
    if str(value).strip().lower() not in words:
        raise ValueError(value)
    return words[str(value).strip().lower()]


def _to_int(value: Any) -> int:
    """Convert 8, '8' and '1e4' (a string to PyYAML); raise ValueError for 8.5 and for a bool."""
    if isinstance(value, bool):
        raise ValueError(value)
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            value = float(value)
    if value != int(value):
        raise ValueError(value)
    return int(value)


def _write(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value)


def _type_name(kind: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    return names.get(kind, "a list separated by commas")


def _split_override(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not equals:
        raise ConfigError(f"{word!r}: expected key=value, such as batch_size=8.")
    return key.strip(), value.strip()


def _check(field: "dataclasses.Field[Any]", value: Any) -> None:
    low, high, choices = (field.metadata[k] for k in ("low", "high", "choices"))
    where = f"{field.name}={_write(value)}"
    if isinstance(value, str) and shown(value) != value:
        raise ConfigError(f"{field.name}={shown(value)}: a name that is no UTF-8; rename it, or link to it by another.")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}: expected a finite number.")
    if (low is not None and value < low) or (high is not None and value > high):
        span = f"at least {low:g}" if high is None else f"between {low:g} and {high:g}"
        raise ConfigError(f"{where}: expected {span} ({field.metadata['meaning']}).")
    for word in (value if isinstance(value, tuple) else (value,)) if choices else ():
        if word not in choices:
            raise ConfigError(f"{where}: expected {' or '.join(choices)}.{did_you_mean(str(word), choices)}")
