"""Fitting of samples to image_size, and augmentation for training; images stay uint8, masks stay 0/1.

Samples are fitted first, so that augmentation works on fewer px. Roof, eave, ridge and hip keep their meaning after a
flip or a rotation. RID's azimuth ids would not, but the reader has reduced them to roof or not.
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
    """Fit image and masks to ``side`` x ``side`` px.

    Args:
        image_HWC: uint8 RGB.
        target_HWK: uint8 masks of the same height and width.
        side: of the result, px.
        how: ``resize`` scales both axes, images by area averaging (down) or linearly (up), masks by the nearest px.
            ``crop`` cuts at a random position given ``rng``, else at the centre, and pads an image that is too small
            at the right and at the bottom with black, its masks with 0.
        rng: for a random crop.
    """
    if image_HWC.shape[:2] == (side, side):
        return image_HWC, target_HWK
    if how == "crop":
        return _crop(image_HWC, target_HWK, side, rng)
    # INTER_NEAREST_EXACT samples px centres as the image's interpolation does; INTER_NEAREST is half a px off.
    target = cv2.resize(target_HWK, (side, side), interpolation=cv2.INTER_NEAREST_EXACT)
    return resized(image_HWC, side), np.asarray(target, np.uint8).reshape(side, side, target_HWK.shape[2])


def resized(image_HWC: Pixels, side: int) -> Pixels:
    """Return the image scaled to ``side`` x ``side`` px, by area averaging (down) or linearly (up)."""
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
    crop = slice(top, top + side), slice(left, left + side)
    return np.pad(image_HWC[crop], missing), np.pad(target_HWK[crop], missing)


def get_ready(kind: str) -> None:
    """Build the augmentation pipeline, so that processes forked later share it: its imports take 1.1 s and 33 MiB."""
    if kind != "none":
        _pipeline(kind)


def augment(image_HWC: Pixels, target_HWK: Pixels, kind: str, seed: int) -> tuple[Pixels, Pixels]:
    """Augment a sample (``kind`` none, light or heavy); the same seed gives the same result in any process."""
    if kind == "none":
        return image_HWC, target_HWK
    pipeline = _pipeline(kind)
    pipeline.set_random_seed(seed)
    augmented = pipeline(image=image_HWC, mask=target_HWK)
    return augmented["image"], augmented["mask"]


@functools.cache
def _pipeline(kind: str) -> Any:
    """Build the albumentations pipeline ``light`` or ``heavy`` once in each process."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import asks a package index for a newer version
    import albumentations as A

    steps: list[Any] = [A.D4(p=1.0)]  # the eight flips and rotations by 90 degrees
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
