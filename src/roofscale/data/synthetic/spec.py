"""The specification of generated data: which data sets, how many images, of what size."""

import dataclasses
import zlib
from dataclasses import dataclass

import numpy as np

from roofscale.config import DATASETS
from roofscale.errors import ConfigError, did_you_mean

RENDER_VERSION = 3  # to be raised with every change of rendered pixels, so that old images are not reused


@dataclass(frozen=True)
class GenerateSpec:
    """The specification of generated data; the same spec gives identical files (with the same OpenCV and NumPy).

    Raises:
        ConfigError: a count or size out of range, or an unknown data set.
    """

    datasets: tuple[str, ...] = ("rid",)
    train: int = 100  # images of RID
    val: int = 40
    test: int = 20
    roofline_samples: int = 400  # without splits: a random tenth is validation
    image_px: int = 512  # side of a RID image
    roofline_px: int = 224  # side of a Roofline image
    airs_tiles: tuple[int, int, int] = (7, 3, 1)  # train, val, test
    airs_tile_px: int = 2048  # side of an AIRS tile; the real ones have 10000
    seed: int = 0
    drawing: int = RENDER_VERSION

    def __post_init__(self) -> None:
        for name in self.datasets:
            if name not in DATASETS:
                raise ConfigError(f"data set {name!r}: expected {', '.join(DATASETS)}.{did_you_mean(name, DATASETS)}")
        if (
            min(self.train, self.val, self.roofline_samples, *self.airs_tiles[:2]) < 1
            or min(self.test, self.airs_tiles[2], self.seed) < 0
        ):
            raise ConfigError(
                f"{self}: expected at least 1 sample or tile in train and in val, 0 in test, and a seed of 0 or more."
            )
        for side, most in ((self.image_px, 4096), (self.roofline_px, 4096), (self.airs_tile_px, 10000)):
            if not 32 <= side <= most:
                raise ConfigError(f"an image side of {side} px: expected 32 to {most}.")

    @property
    def folder_name(self) -> str:
        """Folder name that identifies the spec, except for its data sets, which are subfolders of it."""
        tiles = "-".join(map(str, self.airs_tiles))
        return (
            f"rid{self.image_px}-{self.train}-{self.val}-{self.test}_roofline{self.roofline_px}-"
            f"{self.roofline_samples}_airs{self.airs_tile_px}-{tiles}_seed{self.seed}_drawing{self.drawing}"
        )

    def describe(self, dataset: str) -> str:
        """Return the amounts of one data set in words."""
        tiles = "-".join(map(str, self.airs_tiles))
        return {
            "rid": f"{self.train} training, {self.val} validation and {self.test} test images",
            "roofline": f"{self.roofline_samples} images",
            "airs": f"{tiles} tiles of {self.airs_tile_px} px for train-val-test",
        }[dataset]

    def scene_seed(self, dataset: str, index: int) -> int:
        """Return the 32-bit seed of one image, from the spec's seed, the data set and the image's index."""
        words = [self.seed, zlib.crc32(dataset.encode()), index]
        return int(np.random.SeedSequence(words).generate_state(1)[0])

    def for_dataset(self, dataset: str) -> "GenerateSpec":
        """Return the same spec with only one data set."""
        return dataclasses.replace(self, datasets=(dataset,))
