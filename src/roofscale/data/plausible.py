"""Whether images and masks can be what they are said to be: each value is allowed, all of them together may not be."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from roofscale.data.file_error import FileError, FileErrorKind
from roofscale.data.sample import Sample

_LEAST = 2  # samples; of a single one nothing follows


class Look(NamedTuple):
    """What one sample looks like."""

    blank: bool  # the image has one colour only
    brightest: int  # 0 to 255
    any_marked: bool | None = None  # by the mask; None where it could not be read
    all_marked: bool | None = None


def look_at(sample: Sample, labelled: Sequence[bool]) -> Look:
    """Look at a sample that lies in memory; ``labelled`` says which channels of its target count."""
    pixels_PC = sample.image_HWC.reshape(-1, sample.image_HWC.shape[-1])
    target = sample.target_HWK[..., list(labelled)]
    return Look(
        blank=bool((pixels_PC == pixels_PC[0]).all()),
        brightest=int(pixels_PC.max()),
        any_marked=bool(target.any()),
        all_marked=bool(target.any(-1).all()),
    )


def doubts(where: Path, looks: Sequence[Look]) -> Iterator[FileError]:
    """What cannot be right about many samples of one data set, where all of them show it."""
    masks = [look for look in looks if look.all_marked is not None]
    if len(masks) >= _LEAST and all(look.all_marked for look in masks):
        yield FileError(
            FileErrorKind.IMPLAUSIBLE,
            where,
            f"not one px of the {len(masks)} masks looked at is background; expected some around each roof. Are these "
            "masks of 0 and 1 where others are expected (RID's background is 17, not 0)?",
        )
    if len(looks) >= _LEAST and all(look.brightest <= 1 for look in looks):
        yield FileError(
            FileErrorKind.IMPLAUSIBLE,
            where,
            f"no value of the {len(looks)} images looked at is above 1; expected 0 to 255. Were they scaled to 0-1? "
            "Multiply them by 255.",
        )


def blank(file: Path, sample: str = "") -> FileError:
    """The problem of an image of one colour only."""
    return FileError(
        FileErrorKind.BLANK,
        file,
        f"{sample}the image has one colour only; expected a picture. Look at it, and take it out.",
    )
