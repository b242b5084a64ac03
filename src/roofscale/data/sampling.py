"""In which order samples are read: a function of seed and epoch alone, so that a resumed run goes on in the same one.

Orders are arrays (N,3) of source, sample and draw, not objects: 80,000 samples take 2 MiB, and forked loader processes
share them untouched.
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
    """One sample among several sources."""

    source: int
    index: int
    draw: int  # the how manieth time it is drawn in the epoch, from 0


def file_order(sources: Sequence[Source]) -> Keys:
    """Every sample of every source, in their own order."""
    return _joined([_keys(number, np.arange(len(source))) for number, source in enumerate(sources)])


def epoch_order(sources: Sequence[Source], seed: int, epoch: int, roof_sampling: float = 0.0) -> Keys:
    """As many samples of each source as it has, shuffled by seed and epoch alone.

    Every sample once, but where ``roof_sampling`` is above 0 and a source knows its roof shares: see ``drawn``.
    """
    parts = []
    for number, source in enumerate(sources):
        if source.roof_share_N is None or not roof_sampling:
            parts.append(_keys(number, np.arange(len(source))))
        else:
            rng = np.random.default_rng((seed, epoch, zlib.crc32(source.name.encode())))
            parts.append(_keys(number, systematic_sample(source.roof_share_N, roof_sampling, rng)))
    keys_N3 = _joined(parts)
    return keys_N3[np.random.default_rng((seed, epoch)).permutation(len(keys_N3))]


def expected_draws(roof_share_N: npt.NDArray[np.float32], roof_sampling: float) -> npt.NDArray[np.float64]:
    """How often each sample is drawn in an epoch, on average: 1 - roof_sampling for all, the rest by its roof share."""
    share_N = roof_share_N.astype(np.float64)
    mean = share_N.mean()
    return (1 - roof_sampling) + roof_sampling * share_N / mean if mean > 0 else np.ones(len(share_N))


def systematic_sample(
    roof_share_N: npt.NDArray[np.float32], roof_sampling: float, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Draw as many samples as there are, each as often as expected, rounded up or down: sorted indices.

    This is systematic sampling over a shuffled list: it draws closer to what is expected than independent draws would,
    and with roof_sampling = 0 each sample exactly once.
    """
    count = len(roof_share_N)
    shuffled_N = rng.permutation(count)
    ends_N = expected_draws(roof_share_N, roof_sampling)[shuffled_N].cumsum()
    ticks_N = np.searchsorted(ends_N, np.arange(count) + rng.random(), side="right")
    return np.sort(shuffled_N[np.minimum(ticks_N, count - 1)])  # rounding may leave the last end a hair short


def _keys(source: int, sorted_N: npt.NDArray[np.int64]) -> Keys:
    """(N,3) for indices of one source; equal ones stand side by side and are numbered."""
    draw_N = np.arange(len(sorted_N)) - np.searchsorted(sorted_N, sorted_N)
    return np.stack([np.full(len(sorted_N), source), sorted_N, draw_N], axis=1)


def _joined(parts: Sequence[Keys]) -> Keys:
    return np.concatenate([np.zeros((0, 3), np.int64), *parts])
