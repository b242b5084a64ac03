"""Plausibility of images and masks: values that are valid one by one, but not for all samples of a data set."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from roofscale.data.file_error import FileError, FileErrorKind
from roofscale.data.sample import Sample

_MIN_SAMPLES = 2  # a single sample proves nothing


class Look(NamedTuple):
    """Statistics of one sample's image and mask."""

    blank: bool  # the image has one colour only
    brightest: int  # the image's largest value, 0 to 255
    any_marked: bool | None = None  # any px is in a labelled channel of the mask; None if the mask was not read
    all_marked: bool | None = None  # the same for all px


def look_at(sample: Sample, labelled: Sequence[bool]) -> Look:
    """Return the statistics of a sample; ``labelled`` selects the channels of its target that count."""
    pixels_PC = sample.image_HWC.reshape(-1, sample.image_HWC.shape[-1])
    target = sample.target_HWK[..., list(labelled)]
    return Look(
        blank=bool((pixels_PC == pixels_PC[0]).all()),
        brightest=int(pixels_PC.max()),
        any_marked=bool(target.any()),
        all_marked=bool(target.any(-1).all()),
    )


def doubts(where: Path, looks: Sequence[Look]) -> Iterator[FileError]:
    """Yield an error for each implausible property that all samples of a data set at ``where`` have."""
    masks = [look for look in looks if look.all_marked is not None]
    if len(masks) >= _MIN_SAMPLES and all(look.all_marked for look in masks):
        yield FileError(
            FileErrorKind.IMPLAUSIBLE,
            where,
            f"not one px of the {len(masks)} masks looked at is background; expected some around each roof. Are these "
            "masks of 0 and 1 where others are expected (RID's background is 17, not 0)?",
        )
    if len(looks) >= _MIN_SAMPLES and all(look.brightest <= 1 for look in looks):
        yield FileError(
            FileErrorKind.IMPLAUSIBLE,
            where,
            f"no value of the {len(looks)} images looked at is above 1; expected 0 to 255. Were they scaled to 0-1? "
            "Multiply them by 255.",
        )


def blank(file: Path, sample: str = "") -> FileError:
    """Return the error for an image of one colour only; ``sample`` is a prefix that names it within its file."""
    return FileError(
        FileErrorKind.BLANK,
        file,
        f"{sample}the image has one colour only; expected an aerial image. Look at it, and take it out.",
    )
