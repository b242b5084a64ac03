"""The order of samples: a function of seed and epoch alone, so that a resumed run continues in the same order.

Orders are arrays (N,3) of source, sample and draw, not objects: 80,000 samples take 2 MiB, and forked loader processes
share them without copying.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from roofscale.data.sample import Source

Keys = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SampleKey:
    """One draw of one sample of one of several sources."""

    source: int  # index into the sources
    index: int  # of the sample in its source
    draw: int  # counts the draws of this sample in the epoch, from 0


def file_order(sources: Sequence[Source]) -> Keys:
    """Return every sample of every source, in the order of the sources and of their samples."""
    return _concatenate([_keys(number, np.arange(len(source))) for number, source in enumerate(sources)])


def epoch_order(sources: Sequence[Source], seed: int, epoch: int, roof_sampling: float = 0.0) -> Keys:
    """Return an epoch's samples, as many of each source as it has, shuffled by seed and epoch alone.

    Every sample is drawn once, except from a source with known roof shares if ``roof_sampling`` is above 0: see
    ``systematic_sample``.
    """
    parts = []
    for number, source in enumerate(sources):
        if source.roof_share_N is None or not roof_sampling:
            parts.append(_keys(number, np.arange(len(source))))
        else:
            rng = np.random.default_rng((seed, epoch, zlib.crc32(source.name.encode())))
            parts.append(_keys(number, systematic_sample(source.roof_share_N, roof_sampling, rng)))
    keys_N3 = _concatenate(parts)
    return keys_N3[np.random.default_rng((seed, epoch)).permutation(len(keys_N3))]


def expected_draws(roof_share_N: npt.NDArray[np.float32], roof_sampling: float) -> npt.NDArray[np.float64]:
    """Return the mean number of draws of each sample in an epoch, (N,).

    It is (1 - roof_sampling) + roof_sampling * share / mean(share); 1 if no sample has any roof.
    """
    share_N = roof_share_N.astype(np.float64)
    mean = share_N.mean()
    return (1 - roof_sampling) + roof_sampling * share_N / mean if mean > 0 else np.ones(len(share_N))


def systematic_sample(
    roof_share_N: npt.NDArray[np.float32], roof_sampling: float, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Draw as many samples as there are, each as often as expected, rounded up or down; return sorted indices.

    Systematic sampling over a shuffled list has a smaller variance than independent draws, and with roof_sampling = 0
    it draws each sample exactly once.
    """
    count = len(roof_share_N)
    shuffled_N = rng.permutation(count)
    ends_N = expected_draws(roof_share_N, roof_sampling)[shuffled_N].cumsum()
    ticks_N = np.searchsorted(ends_N, np.arange(count) + rng.random(), side="right")
    return np.sort(shuffled_N[np.minimum(ticks_N, count - 1)])  # by rounding, the last end may be slightly too small


def _keys(source: int, sorted_N: npt.NDArray[np.int64]) -> Keys:
    """Return keys (N,3) for sorted indices of one source; equal ones are adjacent and get draw numbers 0, 1, ..."""
    draw_N = np.arange(len(sorted_N)) - np.searchsorted(sorted_N, sorted_N)
    return np.stack([np.full(len(sorted_N), source), sorted_N, draw_N], axis=1)


def _concatenate(parts: Sequence[Keys]) -> Keys:
    return np.concatenate([np.zeros((0, 3), np.int64), *parts])
