"""Who is in train, val and test, and which samples a run takes first: functions of what is there and a seed alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from roofscale.data.leaks import ImageFingerprint, OverlappingPair, on_common_ground

VAL_SHARE = TEST_SHARE = 0.1  # the rest, 80 %, trains
TRAIN, VAL, TEST, NOWHERE = 0, 1, 2, -1

_Parts = npt.NDArray[np.int64]  # for each image: TRAIN, VAL, TEST or NOWHERE


@dataclass(frozen=True)
class Split:
    """Indices of the samples of each part."""

    train: tuple[int, ...]
    val: tuple[int, ...]
    test: tuple[int, ...]

    def split_of_each(self, count: int) -> list[str]:
        """For each of ``count`` samples 'train', 'val', 'test', or '' where it is in none."""
        names = [""] * count
        for name in ("train", "val", "test"):
            for index in getattr(self, name):
                names[index] = name
        return names


def random_split(count: int, seed: int) -> Split:
    """Deal ``count`` samples out to 80 % train, 10 % val and 10 % test.

    Train is never empty; val has one from two samples on, test from three on.
    """
    order = permutation(count, seed)
    val, test = _held_out(count)
    return Split(train=order[val + test :], val=order[:val], test=order[val : val + test])


def spatial_split(images: Sequence[ImageFingerprint], pairs: Sequence[OverlappingPair], seed: int) -> Split:
    """Deal images out to about 80 % train, 10 % val and 10 % test so that no pair is parted.

    Chains of pairs stay together: they fill val, then test, in a seeded order as far as they fit, and train takes the
    rest; without pairs this is ``random_split``. A chain of more than train's 80 % (a whole village, where each image
    overlaps the next) would leave val and test too few, so it is cut across a seeded direction: one end is val, the
    other test, and what overlaps an end is left out of train.
    """
    parts = np.full(len(images), TRAIN)
    order = permutation(len(images), seed)
    chains = _connected_components(order, pairs)
    longest = max(chains, key=len, default=())
    if len(longest) > len(images) * (1 - VAL_SHARE - TEST_SHARE) and len(longest) > 2:
        cut = _cut([images[i] for i in longest], seed)
        parts[list(longest)] = cut
        _leave_out_what_crosses(parts, pairs)
        if (parts[list(longest)] == TRAIN).any():
            chains.remove(longest)
        else:  # all of it shows the same place: no cut keeps its ends apart
            parts[list(longest)] = TRAIN
    _assign(parts, chains)
    return Split(*(tuple(i for i in order if parts[i] == part) for part in (TRAIN, VAL, TEST)))


def permutation(count: int, seed: int) -> tuple[int, ...]:
    """All of ``range(count)`` in a seeded order; its first 10 are among its first 20, which is why runs with more
    samples see all that runs with fewer saw."""
    return tuple(np.random.default_rng(seed).permutation(count).tolist())


def _held_out(count: int) -> tuple[int, int]:
    """How many of ``count`` samples are val and test."""
    return max(round(count * VAL_SHARE), int(count >= 2)), max(round(count * TEST_SHARE), int(count >= 3))


def _connected_components(order: Sequence[int], pairs: Sequence[OverlappingPair]) -> list[tuple[int, ...]]:
    """The connected components of the pairs, ordered by their first member in ``order``."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = [pair.first for pair in pairs], [pair.second for pair in pairs]
    graph: Any = coo_array((np.ones(len(pairs), np.int8), ends), shape=(len(order), len(order)))
    _, component = connected_components(graph, directed=False)
    chains: dict[int, list[int]] = {}
    for i in order:
        chains.setdefault(int(component[i]), []).append(i)
    return [tuple(members) for members in chains.values()]


def _assign(parts: _Parts, chains: Sequence[tuple[int, ...]]) -> None:
    """Give whole chains to val and test as far as they fit; a part that would stay empty takes the shortest chain."""
    left = list(chains)
    for part, wanted in zip((VAL, TEST), _held_out(len(parts)), strict=True):
        for chain in list(left):
            if len(left) > 1 and (parts == part).sum() + len(chain) <= wanted:
                parts[list(chain)] = part
                left.remove(chain)
        if wanted and len(left) > 1 and not (parts == part).any():
            shortest = min(left, key=len)
            parts[list(shortest)] = part
            left.remove(shortest)


def _cut(chain: Sequence[ImageFingerprint], seed: int) -> _Parts:
    """One end of a chain to val and the other to test, by where the images lie along a seeded direction."""
    angle = np.random.default_rng(seed).uniform(0, 2 * np.pi)
    middles = np.zeros((len(chain), 2))
    for members, corners_G42 in on_common_ground(chain):
        middles[members] = corners_G42.mean(1)
    order = np.argsort(middles @ (np.cos(angle), np.sin(angle)), kind="stable")
    val, test = _held_out(len(chain))
    parts = np.full(len(chain), TRAIN)
    parts[order[:val]], parts[order[len(chain) - test :]] = VAL, TEST
    return parts


def _leave_out_what_crosses(parts: _Parts, pairs: Sequence[OverlappingPair]) -> None:
    """Take out of train, then out of test, whatever still has a partner in another part."""
    ends = np.array([pair[:2] for pair in pairs], np.int64).reshape(-1, 2)
    for part in (TRAIN, TEST):
        of = parts[ends]
        crossing = ends[(of[:, 0] != of[:, 1]) & (of != NOWHERE).all(1)]
        parts[crossing[parts[crossing] == part]] = NOWHERE
