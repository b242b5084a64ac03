"""Windows with blended edges give what the whole image at once would give, where that can be known."""

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roofscale.data.sample import Pixels
from roofscale.errors import ConfigError
from roofscale.predict.sliding_window import Probabilities, Tiling, default_overlap, sliding_window_inference


def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def by_windows(image_HWC: Pixels, tiling: Tiling, segment: Callable[[Pixels], Probabilities], batch: int = 1):
    """The whole result, and the rows that were read, in the order in which they were."""
    height, width = image_HWC.shape[:2]
    read: list[int] = []

    def rows(first: int, last: int) -> Pixels:
        read.extend(range(first, last))
        return image_HWC[first:last]

    parts = list(sliding_window_inference(rows, height, width, tiling, segment, batch))
    assert [part.first for part in parts] == np.cumsum([0, *(p.probability_KHW.shape[1] for p in parts[:-1])]).tolist()
    return np.concatenate([part.probability_KHW for part in parts], axis=1), read


def pointwise(images_NHWC: Pixels) -> Probabilities:
    """A model that looks at one px at a time; two channels."""
    first_NHW = np.sin(images_NHWC.astype(np.float32).sum(-1))
    return np.stack([first_NHW, -first_NHW], axis=1)


def box(radius: int) -> Callable[[Pixels], Probabilities]:
    """A model of one channel that averages a square; beyond the edge of its input it sees zeros, as convolutions do."""

    def segment(images_NHWC: Pixels) -> Probabilities:
        grey_NHW = images_NHWC.mean(-1)
        padded = np.pad(grey_NHW, ((0, 0), (radius, radius), (radius, radius)))
        views = np.lib.stride_tricks.sliding_window_view(padded, (2 * radius + 1,) * 2, axis=(1, 2))
        return views.mean((-1, -2))[:, None].astype(np.float32)

    return segment


def blocks(side: int) -> Callable[[Pixels], Probabilities]:
    """A model with strides: every px gets the mean of its block of a grid that begins where its input begins."""

    def segment(images_NHWC: Pixels) -> Probabilities:
        count, height, width, _ = images_NHWC.shape
        means = images_NHWC.reshape(count, height // side, side, width // side, side, 3).mean((2, 4, 5))
        return np.kron(means, np.ones((1, side, side)))[:, None].astype(np.float32)

    return segment


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    window=st.integers(2, 12),
    overlap=st.integers(0, 6),
    cell=st.integers(1, 5),
    batch=st.integers(1, 3),
)
def test_a_model_of_single_px_gives_exactly_its_own_result(
    height: int, width: int, window: int, overlap: int, cell: int, batch: int
) -> None:
    tiling = Tiling(window * cell, min(overlap, window // 2) * cell, cell)
    image_HWC = noise(height, width)
    found_KHW, read = by_windows(image_HWC, tiling, pointwise, batch)
    assert np.array_equal(found_KHW, pointwise(image_HWC[None])[0])
    assert read == list(range(height)), "each row once, in order"


@pytest.mark.parametrize("shape", [(160, 224), (161, 130), (64, 400), (96, 96)])
def test_a_model_that_sees_less_than_a_quarter_of_the_overlap_gives_what_the_whole_image_gives(
    shape: tuple[int, int],
) -> None:
    tiling, image_HWC = Tiling(64, 32), noise(*shape)
    found_KHW, _ = by_windows(image_HWC, tiling, box(radius=8))
    padding = [(0, tiling.padded(side) - side) for side in shape]
    whole_KHW = box(radius=8)(np.pad(image_HWC, (*padding, (0, 0)), "symmetric")[None])[0]
    np.testing.assert_allclose(found_KHW, whole_KHW[:, : shape[0], : shape[1]], atol=1e-4)


def test_a_model_that_sees_farther_does_not() -> None:
    """The bound is no looser than what is promised; where it fails, edges fade instead of showing."""
    image_HWC = noise(160, 224)
    whole_KHW = box(radius=14)(image_HWC[None])[0]
    found_KHW, _ = by_windows(image_HWC, Tiling(64, 32), box(radius=14))
    cut_KHW, _ = by_windows(image_HWC, Tiling(64, 0), box(radius=14))
    blended, cut = (np.abs(found - whole_KHW).max() for found in (found_KHW, cut_KHW))
    assert 1 < blended < cut / 4


def test_windows_begin_where_the_models_strides_begin() -> None:
    image_HWC = noise(224, 352)
    found_KHW, _ = by_windows(image_HWC, Tiling(96, 32), blocks(32))
    assert np.array_equal(found_KHW, blocks(32)(image_HWC[None])[0])


@given(st.integers(1, 5000), st.integers(1, 20), st.integers(0, 10), st.integers(1, 40))
def test_windows_cover_a_side_and_overlap_by_no_less_than_asked(
    length: int, window: int, overlap: int, cell: int
) -> None:
    tiling = Tiling(window * cell, min(overlap, window // 2) * cell, cell)
    starts = tiling.starts(length)
    assert starts[0] == 0
    assert starts[-1] + tiling.window == tiling.padded(length) >= length
    assert all(start % cell == 0 for start in starts)
    strides = np.diff(starts)
    assert (strides > 0).all()
    assert (strides <= tiling.window - tiling.overlap).all()
    assert len(starts) == 1 or (len(starts) - 1) * (tiling.window - tiling.overlap) + tiling.window >= length


@pytest.mark.parametrize(
    ("scale", "window", "overlap", "seen_at"),
    [(1, 512, 128, 1), (0.5, 1024, 256, 0.5), (2, 256, 64, 2), (0.3, 1712, 428, 32 / 107)],
)
def test_a_scale_changes_what_a_window_covers(scale: float, window: int, overlap: int, seen_at: float) -> None:
    tiling = Tiling.of(512, 128, scale)
    assert (tiling.window, tiling.overlap) == (window, overlap)
    assert tiling.scale == seen_at == pytest.approx(scale, rel=0.01)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((500, 128, 1.0), "window=500: expected a multiple of 32 px; try 512"),
        ((0, 0, 1.0), "window=0"),
        ((512, 100, 1.0), "overlap=100: expected a multiple of 32 px, at most half of window=512; try 128"),
        ((512, 288, 1.0), "at most half"),
        ((512, 128, 0.0), "scale=0: expected a factor between"),
        ((512, 128, float("nan")), "scale=nan"),
    ],
)
def test_what_cannot_be_tiled_is_refused(words: tuple[int, int, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Tiling.of(*words)


@pytest.mark.parametrize(("window", "overlap"), [(32, 0), (64, 32), (96, 32), (224, 64), (512, 128), (1024, 256)])
def test_the_usual_overlap_is_one_that_can_be_had(window: int, overlap: int) -> None:
    assert Tiling.of(window, default_overlap(window)).overlap == overlap == default_overlap(window)


def test_memory_does_not_grow_with_the_height() -> None:
    def peak(height: int) -> int:
        tracemalloc.start()
        blank = np.zeros((64, 256, 3), np.uint8)
        for _ in sliding_window_inference(
            lambda first, last: blank[: last - first], height, 256, Tiling(64, 32), pointwise
        ):
            pass
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(64 * 40)  # what is allocated once, by the first call
    assert peak(64 * 40) < 1.1 * peak(64 * 5)
