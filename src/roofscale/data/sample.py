"""The sample, source and batch types that all data sets share.

Shape suffixes: N batch, K channels of CHANNELS, C = 3 colours (RGB), H height, W width.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch  # for types only: the launcher opens data sets without importing torch

CHANNELS = ("roof", "eave", "ridge", "hip")

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Sample:
    """One image with its masks, as read, before it is fitted to image_size."""

    id: str  # unique within the data set, stable across machines
    image_HWC: Pixels  # uint8 RGB
    target_HWK: Pixels  # uint8 0 or 1; channels that the data set does not label are 0


class Source(Protocol):
    """A selection of the samples of one data set on disk, opened lazily and safe to send to a loader process."""

    name: str  # of DATASETS
    labelled: tuple[bool, ...]  # per channel of CHANNELS: whether this data set labels it at all

    def __len__(self) -> int: ...

    @property
    def roof_share_N(self) -> npt.NDArray[np.float32] | None:
        """Roof px over px of each sample, for ``roof_sampling``; None if not known: each is drawn once per epoch."""
        ...

    def read(self, index: int) -> Sample:
        """Read one sample.

        Raises:
            DataError: a file is missing, broken or holds invalid values; the message names its path.
        """
        ...

    def path(self, index: int) -> Path:
        """Return the image file that sample ``index`` is read from."""
        ...


class Batch(NamedTuple):
    """A batch of the loader, in uint8: a quarter of float32's shared memory; the model normalises it."""

    image_NCHW: "torch.Tensor"  # uint8 RGB
    target_NKHW: "torch.Tensor"  # uint8 0 or 1
    labelled_NK: "torch.Tensor"  # bool
    ids: list[str]  # "<data set>/<sample id>"
