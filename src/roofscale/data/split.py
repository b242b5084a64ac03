"""Who is in train, val and test, and which samples a run takes first: functions of counts and a seed alone."""

from dataclasses import dataclass

import numpy as np

VAL_SHARE = TEST_SHARE = 0.1  # the rest, 80 %, trains


@dataclass(frozen=True)
class RandomSplit:
    """Indices of the samples of each part."""

    train: tuple[int, ...]
    val: tuple[int, ...]
    test: tuple[int, ...]


def random_split(count: int, seed: int) -> RandomSplit:
    """Deal ``count`` samples out to 80 % train, 10 % val and 10 % test.

    Train is never empty; val has one from two samples on, test from three on.
    """
    order = permutation(count, seed)
    val = max(round(count * VAL_SHARE), int(count >= 2))
    test = max(round(count * TEST_SHARE), int(count >= 3))
    return RandomSplit(train=order[val + test :], val=order[:val], test=order[val : val + test])


def permutation(count: int, seed: int) -> tuple[int, ...]:
    """All of ``range(count)`` in a seeded order; its first 10 are among its first 20, which is why runs with more
    samples see all that runs with fewer saw."""
    return tuple(np.random.default_rng(seed).permutation(count).tolist())
