"""Fit and augmentation: masks stay 0/1 and stay over what they mark."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roofscale.data.augment import augment, fit

sides = st.integers(8, 90)


def marked(height: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A dark image with a bright block, and a mask of exactly that block."""
    rng = np.random.default_rng(seed)
    top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
    mask = np.zeros((height, width, 2), np.uint8)
    mask[top : top + height // 2, left : left + width // 2, 0] = 1
    image = np.where(mask[..., :1] == 1, 220, 20).astype(np.uint8).repeat(3, axis=2)
    return image, mask


@given(height=sides, width=sides, seed=st.integers(0, 99), how=st.sampled_from(["resize", "crop"]))
@settings(max_examples=80, deadline=None)
def test_fit_keeps_masks_binary_and_aligned(height: int, width: int, seed: int, how: str) -> None:
    image, mask = marked(height, width, seed)
    fitted, target = fit(image, mask, 64, how, np.random.default_rng(seed))
    assert fitted.shape == (64, 64, 3)
    assert target.shape == (64, 64, 2)
    assert fitted.dtype == target.dtype == np.uint8
    assert set(np.unique(target)) <= {0, 1}
    assert not target[..., 1].any()
    disagree = (fitted[..., 0] > 120) != target[..., 0].astype(bool)
    # A crop moves px and changes none. A resize may differ along the block's edge, by one px of the finer raster.
    margin = 0 if how == "crop" else 4 * 64 * (1 + 64 / min(height, width)) / 2
    assert disagree.sum() <= margin


def test_crop_takes_the_centre_unless_given_chance() -> None:
    image = np.arange(100, dtype=np.uint8).repeat(100).reshape(100, 100, 1).repeat(3, axis=2)
    mask = np.zeros((100, 100, 1), np.uint8)
    centre, _ = fit(image, mask, 32, "crop")
    assert centre[0, 0, 0] == 34
    tops = {int(fit(image, mask, 32, "crop", np.random.default_rng(seed))[0][0, 0, 0]) for seed in range(30)}
    assert len(tops) > 10


def test_crop_pads_with_black_and_with_nothing_marked() -> None:
    image, mask = np.full((20, 40, 3), 200, np.uint8), np.ones((20, 40, 1), np.uint8)
    fitted, target = fit(image, mask, 32, "crop")
    assert (fitted[:20] == 200).all()
    assert not fitted[20:].any()
    assert target[:20].all()
    assert not target[20:].any()


@pytest.mark.parametrize("kind", ["light", "heavy"])
def test_augmentation_follows_its_seed_alone(kind: str) -> None:
    image, mask = marked(64, 64, 3)
    image = (image // 2 + np.random.default_rng(0).integers(0, 99, image.shape)).astype(np.uint8)
    first = [augment(image, mask, kind, seed) for seed in range(12)]
    for seed in reversed(range(12)):  # another order, after other calls
        again = augment(image, mask, kind, seed)
        assert all(np.array_equal(a, b) for a, b in zip(first[seed], again, strict=True))
    assert len({varied.tobytes() for varied, _ in first}) > 8


@pytest.mark.parametrize("kind", ["none", "light", "heavy"])
def test_augmentation_moves_masks_with_the_image(kind: str) -> None:
    image, mask = marked(64, 64, 5)
    for seed in range(20):
        varied, target = augment(image, mask, kind, seed)
        assert varied.dtype == target.dtype == np.uint8
        assert set(np.unique(target)) <= {0, 1}
        inside, outside = varied[target[..., 0] == 1], varied[target[..., 0] == 0]
        assert np.median(inside) > np.median(outside) + 60


def test_no_augmentation_needs_no_albumentations() -> None:
    """Machines that only measure may lack it, and its import costs start-up."""
    code = "import sys; from roofscale.data import loader; sys.exit('albumentations' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
