"""Orders: every sample once, or by roof as often as expected; the same from seed and epoch."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roofscale.config import RunConfig
from roofscale.data.airs import AirsSource
from roofscale.data.loader import make_loader, sample_seed
from roofscale.data.sampling import SampleKey, epoch_order, expected_draws, file_order, systematic_sample
from roofscale.data.sources import open_sources

SHARES = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60).map(lambda s: np.array(s, np.float32))


def sources(root: Path, **knobs: object) -> tuple[RunConfig, list]:
    config = RunConfig(
        datasets=("rid", "airs"), max_samples=0, val_samples=0, image_size=64, num_workers=0, **knobs  # type: ignore[arg-type]
    )  # fmt: skip
    rid, airs = (split.train for split in open_sources(config, root).values())
    assert isinstance(airs, AirsSource)
    share_N = np.linspace(0, 0.5, len(airs), dtype=np.float32)
    return config, [rid, dataclasses.replace(airs, roof_share_N=share_N)]


@given(share_N=SHARES, roof_sampling=st.floats(0, 1), seed=st.integers(0, 2**31))
@settings(max_examples=200, deadline=None)
def test_each_sample_is_drawn_as_often_as_expected_rounded(
    share_N: np.ndarray, roof_sampling: float, seed: int
) -> None:
    expected_N = expected_draws(share_N, roof_sampling)
    assert expected_N.sum() == pytest.approx(len(share_N))
    indices = systematic_sample(share_N, roof_sampling, np.random.default_rng(seed))
    count_N = np.bincount(indices, minlength=len(share_N))
    assert count_N.sum() == len(share_N)
    assert (np.abs(count_N - expected_N) < 1 + 1e-6).all()


def test_expectation_goes_by_roof_and_keeps_the_mean() -> None:
    share_N = np.array([0, 0, 0.1, 0.3], np.float32)
    assert expected_draws(share_N, 0).tolist() == [1, 1, 1, 1]
    assert expected_draws(share_N, 1) == pytest.approx([0, 0, 1, 3])
    assert expected_draws(share_N, 0.5) == pytest.approx([0.5, 0.5, 1, 2])
    assert expected_draws(np.zeros(3, np.float32), 0.5).tolist() == [1, 1, 1]  # no roof anywhere


def test_without_sampling_the_order_is_the_permutation_that_it_always_was(generated: Path) -> None:
    _, mixed = sources(generated)
    keys_N3 = file_order(mixed)
    assert np.array_equal(epoch_order(mixed, 3, 5), keys_N3[np.random.default_rng((3, 5)).permutation(len(keys_N3))])
    assert keys_N3[:, :2].tolist() == [[n, i] for n, source in enumerate(mixed) for i in range(len(source))]
    assert not keys_N3[:, 2].any()


def test_sampling_follows_seed_and_epoch_and_touches_only_what_knows_its_roofs(generated: Path) -> None:
    _, mixed = sources(generated)
    orders = [epoch_order(mixed, *by, roof_sampling=0.8).tolist() for by in ((3, 0), (3, 0), (3, 1), (4, 0))]
    assert orders[0] == orders[1]
    assert len({str(order) for order in orders}) == 3
    rid = sorted(key for key in orders[0] if key[0] == 0)
    assert rid == [[0, index, 0] for index in range(len(mixed[0]))]
    airs = [tuple(key) for key in orders[0] if key[0] == 1]
    assert len(airs) == len(mixed[1])
    assert len(set(airs)) == len(airs)  # drawn again is another draw
    assert max(draw for _, _, draw in airs) >= 1
    share_N = mixed[1].roof_share_N
    assert np.mean([share_N[index] for _, index, _ in airs]) > 1.2 * share_N.mean()


def test_a_sample_drawn_again_is_varied_anew_and_drawn_once_as_ever() -> None:
    once = sample_seed(1, 2, "airs", SampleKey(0, 7, 0))
    assert once == int(np.random.SeedSequence([1, 2, 836600871, 7]).generate_state(1)[0])
    assert once != sample_seed(1, 2, "airs", SampleKey(0, 7, 1))


def test_a_resumed_epoch_goes_on_in_the_sampled_order(generated: Path) -> None:
    config, mixed = sources(generated, roof_sampling=0.7, batch_size=4)
    whole = [batch.ids for batch in make_loader(config, mixed, epoch=1, train=True)]
    rest = [batch.ids for batch in make_loader(config, mixed, epoch=1, train=True, skip_batches=3)]
    assert whole[3:] == rest
    ids = [id_ for batch in whole for id_ in batch]
    assert len(set(ids)) < len(ids)
