"""The one sample type that every data set is read into.

Shape suffixes: N batch, K channels of CHANNELS, C = 3 colours (RGB), H height, W width.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch  # a launcher opens data sets, and loads no batch

CHANNELS = ("roof", "eave", "ridge", "hip")

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Sample:
    """One image with its masks, as read, before it meets image_size."""

    id: str  # unique within the data set, stable across machines
    image_HWC: Pixels  # uint8 RGB
    target_HWK: Pixels  # uint8 0 or 1; channels that the data set does not label are 0


class Source(Protocol):
    """One split of one data set on disk, opened lazily and safe to send to a loader process."""

    name: str  # of DATASETS
    labelled: tuple[bool, ...]  # per channel of CHANNELS: whether this data set labels it at all

    def __len__(self) -> int: ...

    @property
    def roof_share_N(self) -> npt.NDArray[np.float32] | None:
        """Share of each sample's px that are roof, for ``roof_sampling``; None: not known, none is drawn more often."""
        ...

    def read(self, index: int) -> Sample:
        """Read one sample.

        Raises:
            DataError: the file is missing, broken or holds values that it should not; names the path.
        """
        ...

    def path(self, index: int) -> Path:
        """The image file that sample ``index`` is read from."""
        ...


class Batch(NamedTuple):
    """What the loader yields: still uint8, because the model normalises (a quarter of the shared memory)."""

    image_NCHW: "torch.Tensor"  # uint8 RGB
    target_NKHW: "torch.Tensor"  # uint8 0 or 1
    labelled_NK: "torch.Tensor"  # bool
    ids: list[str]  # "<data set>/<sample id>"
