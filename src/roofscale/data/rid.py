"""The RID data set (Roof Information Dataset, Krapf et al. 2022, mediaTUM release): GeoTIFF images and PNG masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from roofscale.data import folders, geotiff
from roofscale.data.file_error import FileError, FileErrorKind
from roofscale.data.leaks import ImageFingerprint, fingerprint, read_footprint
from roofscale.data.sample import CHANNELS, Sample

IMAGES = "images_roof_centered_geotiff"
SEGMENTS = "masks_segments_reviewed"
SUPERSTRUCTURES = "masks_superstructures_reviewed"
KINDS = {IMAGES: folders.TIFF, SEGMENTS: folders.PNG, SUPERSTRUCTURES: folders.PNG}  # folder: endings of its files
SPLITS = "filenames_train_val_test_split"
PARTS = ("train", "val", "test")

# Segment ids 0 to 15 are azimuths N, NNE, NE, ... clockwise. In either mask the background is the last id, not 0.
FLAT, SEGMENT_BACKGROUND = 16, 17
SUPERSTRUCTURE_IDS = ("pvmodule", "dormer", "window", "ladder", "chimney", "shadow", "tree", "unknown", "background")
SUPERSTRUCTURE_BACKGROUND = SUPERSTRUCTURE_IDS.index("background")


@dataclass
class RidSource:
    """A selection of RID's images; roof is every segment except the background, of any azimuth."""

    folder: Path  # contains images_roof_centered_geotiff
    ids: tuple[str, ...]  # file names without ending, such as '880'
    name: str = "rid"
    labelled: tuple[bool, ...] = (True, False, False, False)
    roof_share_N: None = None  # not needed for sampling: each image is centred on a roof

    def __len__(self) -> int:
        return len(self.ids)

    def path(self, index: int) -> Path:
        """Return the GeoTIFF of sample ``index``."""
        return folders.file_named(self.folder / IMAGES, self.ids[index], folders.TIFF)

    def files(self, index: int) -> tuple[Path, ...]:
        """Return all files that sample ``index`` is read from: the image, then the mask."""
        return self.path(index), folders.file_named(self.folder / SEGMENTS, self.ids[index], folders.PNG)

    def read(self, index: int) -> Sample:
        """Read one sample, as uint8.

        Raises:
            FileError: image or mask is missing or broken, they differ in size, or the mask holds ids above 17.
        """
        image_file, mask_file = self.files(index)
        image_HWC = geotiff.read_rgb(image_file)
        segments_HW = geotiff.read_mask_png(mask_file, largest_id=SEGMENT_BACKGROUND)
        geotiff.check_same_size(image_file, image_HWC.shape[:2], mask_file, segments_HW.shape[:2])
        target_HWK = np.zeros((*segments_HW.shape, len(CHANNELS)), np.uint8)
        target_HWK[..., 0] = segments_HW != SEGMENT_BACKGROUND
        return Sample(self.ids[index], image_HWC, target_HWK)

    def fingerprints(self) -> list[ImageFingerprint]:
        """Return the fingerprint of every image, with its footprint."""
        return [fingerprint(self.path(index)) for index in range(len(self))]

    def footprints(self) -> list[ImageFingerprint]:
        """Return the footprint of every image, from its header alone."""
        return [read_footprint(self.path(index)) for index in range(len(self))]

    def sample_key(self, index: int) -> str:
        """Return what identifies sample ``index`` in any folder: its file name."""
        return self.path(index).name

    def subset(self, indices: Sequence[int]) -> "RidSource":
        """Return the same data set with only these samples, in this order."""
        return RidSource(self.folder, tuple(self.ids[i] for i in indices))


def find(root: Path) -> Path | None:
    """Return the folder of RID at or under ``root``, or None."""
    return folders.find_folder(root, lambda folder: (folder / IMAGES).is_dir())


def split_file(folder: Path, part: str, number: int) -> Path:
    """Return the path of the file that lists train, val or test of published split ``number``."""
    return folder / SPLITS / f"{part}_filenames_{number}_rev.txt"


def published_split_numbers(folder: Path) -> tuple[int, ...]:
    """Return the numbers of the published splits (1 to 5) that have all of their three files."""
    return tuple(n for n in range(1, 6) if all(split_file(folder, part, n).is_file() for part in PARTS))


def open_published(folder: Path, part: str, number: int) -> RidSource:
    """Open train, val or test of published split ``number``.

    Raises:
        FileError: the split file is missing or not a text file.
    """
    file = split_file(folder, part, number)
    if not file.is_file():
        complete = ", ".join(map(str, published_split_numbers(folder))) or "none"
        raise FileError(
            FileErrorKind.MISSING,
            file,
            f"this split file is missing (complete published splits here: {complete}). Set "
            "split_number to one of those, or split=random.",
        )
    return RidSource(folder, folders.read_names(file))


def open_all(folder: Path) -> RidSource:
    """Open every image in the folder, in the order of their numbers."""
    names = folders.names_in(folder / IMAGES, folders.TIFF)
    return RidSource(folder, tuple(sorted(names, key=folders.natural_key)))
