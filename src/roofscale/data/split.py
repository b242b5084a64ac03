"""Random and spatial splits into train, val and test, as functions of the samples and a seed alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from roofscale.data.leaks import ImageFingerprint, OverlappingPair, on_common_ground

VAL_SHARE = TEST_SHARE = 0.1
TRAIN_SHARE = 1 - VAL_SHARE - TEST_SHARE
TRAIN, VAL, TEST, NOWHERE = 0, 1, 2, -1

_Parts = npt.NDArray[np.int64]  # for each image: TRAIN, VAL, TEST or NOWHERE


@dataclass(frozen=True)
class Split:
    """The indices of the samples of each part."""

    train: tuple[int, ...]
    val: tuple[int, ...]
    test: tuple[int, ...]

    def split_of_each(self, count: int) -> list[str]:
        """Return 'train', 'val', 'test' or '' (in no part) for each of ``count`` samples."""
        names = [""] * count
        for name in ("train", "val", "test"):
            for index in getattr(self, name):
                names[index] = name
        return names


def random_split(count: int, seed: int) -> Split:
    """Split ``count`` samples at random into 80 % train, 10 % val and 10 % test.

    Train is never empty; val has at least one of two or more samples, test one of three or more.
    """
    order = permutation(count, seed)
    val, test = _held_out(count)
    return Split(train=order[val + test :], val=order[:val], test=order[val : val + test])


def spatial_split(images: Sequence[ImageFingerprint], pairs: Sequence[OverlappingPair], seed: int) -> Split:
    """Split images into about 80 % train, 10 % val and 10 % test so that no pair is in two parts.

    Connected components of the pairs stay together: they fill val, then test, in a seeded order as far as they fit, and
    train gets the rest; without pairs this is ``random_split``. A component of more than 80 % of the images (a village
    of which each image overlaps the next) would leave too few for val and test, so it is cut across a seeded direction:
    one end is val, the other test, and images that overlap an end are left out of train.
    """
    parts = np.full(len(images), TRAIN)
    order = permutation(len(images), seed)
    components = _connected_components(order, pairs)
    largest = max(components, key=len, default=())
    if len(largest) > len(images) * TRAIN_SHARE and len(largest) > 2:
        parts[list(largest)] = _cut([images[i] for i in largest], seed)
        _leave_out_crossing(parts, pairs)
        if (parts[list(largest)] == TRAIN).any():
            components.remove(largest)
        else:  # all images show the same ground: no cut separates its ends
            parts[list(largest)] = TRAIN
    _assign(parts, components)
    return Split(*(tuple(i for i in order if parts[i] == part) for part in (TRAIN, VAL, TEST)))


def permutation(count: int, seed: int) -> tuple[int, ...]:
    """Return ``range(count)`` in a seeded order.

    Callers take the first n, so that a run with more samples has all samples of a run with fewer.
    """
    return tuple(np.random.default_rng(seed).permutation(count).tolist())


def _held_out(count: int) -> tuple[int, int]:
    """Return how many of ``count`` samples are val and how many are test."""
    return max(round(count * VAL_SHARE), int(count >= 2)), max(round(count * TEST_SHARE), int(count >= 3))


def _connected_components(order: Sequence[int], pairs: Sequence[OverlappingPair]) -> list[tuple[int, ...]]:
    """Return the connected components of the pairs, ordered by their first member in ``order``."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = [pair.first for pair in pairs], [pair.second for pair in pairs]
    graph: Any = coo_array((np.ones(len(pairs), np.int8), ends), shape=(len(order), len(order)))
    _, component = connected_components(graph, directed=False)
    members: dict[int, list[int]] = {}
    for i in order:
        members.setdefault(int(component[i]), []).append(i)
    return [tuple(group) for group in members.values()]


def _assign(parts: _Parts, components: Sequence[tuple[int, ...]]) -> None:
    """Assign whole components to val and test as far as they fit; a part that stays empty gets the smallest one."""
    unassigned = list(components)
    for part, wanted in zip((VAL, TEST), _held_out(len(parts)), strict=True):
        for component in list(unassigned):
            if len(unassigned) > 1 and (parts == part).sum() + len(component) <= wanted:
                parts[list(component)] = part
                unassigned.remove(component)
        if wanted and len(unassigned) > 1 and not (parts == part).any():
            smallest = min(unassigned, key=len)
            parts[list(smallest)] = part
            unassigned.remove(smallest)


def _cut(component: Sequence[ImageFingerprint], seed: int) -> _Parts:
    """Return the parts of a component's images: its ends along a seeded direction are val and test, the rest train."""
    angle = np.random.default_rng(seed).uniform(0, 2 * np.pi)
    centres = np.zeros((len(component), 2))
    for members, corners_G42 in on_common_ground(component):
        centres[members] = corners_G42.mean(1)
    order = np.argsort(centres @ (np.cos(angle), np.sin(angle)), kind="stable")
    val, test = _held_out(len(component))
    parts = np.full(len(component), TRAIN)
    parts[order[:val]], parts[order[len(component) - test :]] = VAL, TEST
    return parts


def _leave_out_crossing(parts: _Parts, pairs: Sequence[OverlappingPair]) -> None:
    """Take images out of train, then out of test, that still have a partner in another part."""
    ends = np.array([pair[:2] for pair in pairs], np.int64).reshape(-1, 2)
    for part in (TRAIN, TEST):
        end_parts = parts[ends]
        crossing = ends[(end_parts[:, 0] != end_parts[:, 1]) & (end_parts != NOWHERE).all(1)]
        parts[crossing[parts[crossing] == part]] = NOWHERE
