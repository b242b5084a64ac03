"""Bring a sample to image_size, and vary it for training; images stay uint8, masks stay 0/1.

Fit comes first, because everything after it then works on fewer px. Roof, eave, ridge and hip mean the same after a
flip or a turn. RID's azimuth ids would not: they never come this far, as the reader reduces them to roof or not.
"""

import functools
import os
from typing import Any

import cv2
import numpy as np

from roofscale.data.sample import Pixels


def fit(
    image_HWC: Pixels, target_HWK: Pixels, side: int, how: str, rng: np.random.Generator | None = None
) -> tuple[Pixels, Pixels]:
    """Bring image and masks to ``side`` x ``side`` px.

    ``resize`` scales both axes, images by area averaging (down) or linearly (up), masks by the nearest px. ``crop``
    cuts a random place given ``rng``, else the centre; what is missing is padded at the right and at the bottom with
    black in the image and 0 (nothing there) in the masks.
    """
    if image_HWC.shape[:2] == (side, side):
        return image_HWC, target_HWK
    if how == "crop":
        return _crop(image_HWC, target_HWK, side, rng)
    # The "exact" kind samples px centres as the image's interpolation does; plain nearest is half a px off.
    target = cv2.resize(target_HWK, (side, side), interpolation=cv2.INTER_NEAREST_EXACT)
    return resized(image_HWC, side), np.asarray(target, np.uint8).reshape(side, side, target_HWK.shape[2])


def resized(image_HWC: Pixels, side: int) -> Pixels:
    """The image scaled to ``side`` x ``side`` px, by area averaging (down) or linearly (up)."""
    if image_HWC.shape[:2] == (side, side):
        return image_HWC
    shrinks = min(image_HWC.shape[:2]) > side
    image = cv2.resize(image_HWC, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray(image, np.uint8)


def _crop(image_HWC: Pixels, target_HWK: Pixels, side: int, rng: np.random.Generator | None) -> tuple[Pixels, Pixels]:
    height, width = image_HWC.shape[:2]
    spare = max(height - side, 0), max(width - side, 0)
    top, left = (n // 2 for n in spare) if rng is None else (int(rng.integers(n + 1)) for n in spare)
    missing = (0, max(side - height, 0)), (0, max(side - width, 0)), (0, 0)
    place = slice(top, top + side), slice(left, left + side)
    return np.pad(image_HWC[place], missing), np.pad(target_HWK[place], missing)


def get_ready(kind: str) -> None:
    """Build what ``augment`` needs, so that processes forked afterwards share it: its imports take 1.1 s and 33 MiB."""
    if kind != "none":
        _pipeline(kind)


def augment(image_HWC: Pixels, target_HWK: Pixels, kind: str, seed: int) -> tuple[Pixels, Pixels]:
    """Vary a sample; the same seed varies it in the same way, in whichever process and order."""
    if kind == "none":
        return image_HWC, target_HWK
    pipeline = _pipeline(kind)
    pipeline.set_random_seed(seed)
    varied = pipeline(image=image_HWC, mask=target_HWK)
    return varied["image"], varied["mask"]


@functools.cache
def _pipeline(kind: str) -> Any:
    """Build the albumentations pipeline ``light`` or ``heavy`` once in each process."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import asks a package index for news
    import albumentations as A

    steps: list[Any] = [A.D4(p=1.0)]  # the eight flips and turns
    if kind == "heavy":
        steps += [
            A.Affine(
                scale=(0.8, 1.25),
                rotate=(-45, 45),
                p=0.7,
                interpolation=cv2.INTER_LINEAR,
                mask_interpolation=cv2.INTER_NEAREST,
            ),
            A.HueSaturationValue(hue_shift_limit=8, sat_shift_limit=20, val_shift_limit=0, p=0.5),
            A.OneOf([A.GaussianBlur(blur_limit=(3, 5)), A.GaussNoise(std_range=(0.01, 0.04))], p=0.4),
            A.RandomShadow(p=0.2),
        ]
    steps.append(A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.7))
    return A.Compose(steps)
