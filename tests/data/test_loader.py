"""Batches: the same whatever the worker count or what was skipped; broken files named or counted."""

import dataclasses
import logging
import pickle
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from roofscale.config import RunConfig
from roofscale.data import augment, rid
from roofscale.data.file_error import FileError, FileErrorKind
from roofscale.data.loader import make_loader
from roofscale.data.sample import Batch, Sample, Source
from roofscale.data.sampling import epoch_order, file_order
from roofscale.data.sources import open_sources
from roofscale.errors import DataError

CONFIG = RunConfig(datasets=("rid", "roofline", "airs"), max_samples=5, val_samples=0, image_size=64, num_workers=0)


def sources(root: Path, *names: str, part: str = "train", config: RunConfig = CONFIG) -> list[Source]:
    opened = open_sources(dataclasses.replace(config, datasets=names), root)
    return [getattr(split, part) for split in opened.values()]


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        a.ids == b.ids and all(torch.equal(x, y) for x, y in zip(a[:3], b[:3], strict=True))
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("fit", ["resize", "crop"])
def test_same_batches_with_and_without_workers_and_after_a_skip(generated: Path, fit: str) -> None:
    mixed = sources(generated, "rid", "roofline", "airs")
    config = dataclasses.replace(CONFIG, augment="heavy", fit=fit)
    alone = list(make_loader(config, mixed, epoch=1, train=True))
    two = dataclasses.replace(config, num_workers=2)
    assert same(alone, list(make_loader(two, mixed, epoch=1, train=True)))
    resumed = make_loader(two, mixed, epoch=1, train=True, skip_batches=3)
    assert len(resumed) == len(alone) - 3
    assert same(alone[3:], list(resumed))
    assert resumed.position == len(alone)
    assert not same(alone, list(make_loader(config, mixed, epoch=2, train=True)))
    assert not same(alone, list(make_loader(dataclasses.replace(config, seed=7), mixed, epoch=1, train=True)))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc can be asked")
@pytest.mark.parametrize(("workers", "given_back"), [(0, False), (1, True)])
def test_free_memory_is_given_back_before_processes_are_forked(generated: Path, workers: int, given_back: bool) -> None:
    blocks = [np.ones(2**13) for _ in range(2000)]  # 64 KiB each
    last = blocks.pop()  # malloc cannot shrink below what lies on top
    held = psutil.Process().memory_info().rss
    blocks.clear()
    loader = make_loader(
        dataclasses.replace(CONFIG, num_workers=workers), sources(generated, "rid"), epoch=0, train=True
    )
    next(iter(loader))
    assert (held - psutil.Process().memory_info().rss > 1000 * last.nbytes) is given_back


@pytest.mark.parametrize(("workers", "train", "built"), [(0, True, False), (1, False, False), (1, True, True)])
def test_what_augmentation_imports_is_there_before_processes_are_forked(
    generated: Path, workers: int, train: bool, built: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(augment, "get_ready", asked.append)
    config = dataclasses.replace(CONFIG, num_workers=workers, augment="heavy")
    next(iter(make_loader(config, sources(generated, "rid"), epoch=0, train=train)))
    assert asked == (["heavy"] if built else [])


def test_batch_holds_uint8_contiguous_targets_and_says_what_is_labelled(generated: Path) -> None:
    batch = next(iter(make_loader(CONFIG, sources(generated, "rid", "roofline"), epoch=0, train=True)))
    assert batch.image_NCHW.shape == (2, 3, 64, 64)
    assert batch.target_NKHW.shape == (2, 4, 64, 64)
    assert batch.image_NCHW.dtype == batch.target_NKHW.dtype == torch.uint8
    assert batch.image_NCHW.is_contiguous(memory_format=torch.channels_last)
    assert batch.target_NKHW.is_contiguous()
    for labelled, id_ in zip(batch.labelled_NK.tolist(), batch.ids, strict=True):
        assert labelled == ([True, False, False, False] if id_.startswith("rid/") else [False, True, True, True])
    plain = dataclasses.replace(CONFIG, channels_last=False)
    batch = next(iter(make_loader(plain, sources(generated, "rid"), epoch=0, train=True)))
    assert batch.image_NCHW.is_contiguous()


def test_channels_that_a_data_set_does_not_label_stay_zero(generated: Path) -> None:
    for batch in make_loader(CONFIG, sources(generated, "rid", "roofline", "airs"), epoch=0, train=True):
        assert not batch.target_NKHW[~batch.labelled_NK].any()


def test_without_augmentation_a_batch_is_the_file(generated: Path) -> None:
    config = dataclasses.replace(CONFIG, image_size=96, augment="none", batch_size=1)
    (source,) = sources(generated, "rid", config=config)
    read = {f"rid/{sample.id}": sample for sample in map(source.read, range(len(source)))}
    for batch in make_loader(config, [source], epoch=0, train=True):
        sample = read[batch.ids[0]]
        assert np.array_equal(batch.image_NCHW[0].permute(1, 2, 0).numpy(), sample.image_HWC)
        assert np.array_equal(batch.target_NKHW[0].permute(1, 2, 0).numpy(), sample.target_HWK)


def test_validation_keeps_order_and_every_sample(generated: Path) -> None:
    (source,) = sources(generated, "rid", part="val")
    runs = [list(make_loader(CONFIG, [source], epoch=epoch, train=False)) for epoch in (0, 1)]
    assert [id_ for batch in runs[0] for id_ in batch.ids] == [f"rid/{source.read(i).id}" for i in range(len(source))]
    assert len(runs[0][-1].ids) == 1  # 3 samples in twos
    assert same(*runs)


def test_order_is_a_shuffle_of_all_sources(generated: Path) -> None:
    mixed = sources(generated, "rid", "airs")
    first, again, other = (epoch_order(mixed, 3, epoch).tolist() for epoch in (0, 0, 1))
    assert sorted(first) == file_order(mixed).tolist()
    assert first == again != other


@pytest.mark.parametrize(
    ("samples", "batch_size", "expected"), [(5, 2, [2, 2]), (5, 3, [3, 2]), (3, 1, [1, 1, 1]), (1, 2, [1])]
)
def test_a_last_training_batch_of_one_is_dropped(
    generated: Path, samples: int, batch_size: int, expected: list[int]
) -> None:
    config = dataclasses.replace(CONFIG, max_samples=samples, batch_size=batch_size)
    loader = make_loader(config, sources(generated, "rid", config=config), epoch=0, train=True)
    assert [len(batch.ids) for batch in loader] == expected
    assert len(loader) == len(expected)


def test_loading_leaves_the_global_random_state_alone(generated: Path) -> None:
    before = torch.get_rng_state()
    list(make_loader(dataclasses.replace(CONFIG, num_workers=2), sources(generated, "rid"), epoch=0, train=True))
    assert torch.equal(before, torch.get_rng_state())


@dataclass
class Recording:
    """A source that notes what was read."""

    inner: Source
    reads: list[int]
    name: str = "rid"
    labelled: tuple[bool, ...] = (True, False, False, False)
    roof_share_N: None = None

    def __len__(self) -> int:
        return len(self.inner)

    def read(self, index: int) -> Sample:
        self.reads.append(index)
        return self.inner.read(index)

    def path(self, index: int) -> Path:
        return self.inner.path(index)


def test_skipped_batches_are_not_read(generated: Path) -> None:
    config = dataclasses.replace(CONFIG, max_samples=8)
    source = Recording(sources(generated, "rid", config=config)[0], [])
    list(make_loader(config, [source], epoch=0, train=True, skip_batches=3))
    assert source.reads == epoch_order([source], config.seed, 0)[6:, 1].tolist()


def broken_root(copy_of: Callable[[str], Path], count: int) -> tuple[Path, list[Path], RunConfig]:
    """Breaks the first ``count`` training images in the order of epoch 0."""
    root = copy_of("rid")
    config = dataclasses.replace(CONFIG, max_samples=8)
    (source,) = sources(root, "rid", config=config)
    files = [source.path(index) for index in epoch_order([source], config.seed, 0)[:count, 1].tolist()]
    for file in files:
        file.write_bytes(file.read_bytes()[:2000])
    return root, files, config


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_file_reaches_the_training_process_by_name(copy_of: Callable[[str], Path], workers: int) -> None:
    root, (file,), config = broken_root(copy_of, 1)
    config = dataclasses.replace(config, num_workers=workers)
    with pytest.raises(DataError) as caught:
        list(make_loader(config, sources(root, "rid", config=config), epoch=0, train=True))
    assert str(caught.value).startswith(f"{file}: broken file")
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_samples_are_counted_and_logged(
    copy_of: Callable[[str], Path], workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    root, files, config = broken_root(copy_of, 3)  # the first batch whole, and half of the second
    config = dataclasses.replace(config, on_bad_sample="skip", num_workers=workers)
    loader = make_loader(config, sources(root, "rid", config=config), epoch=0, train=True)
    with caplog.at_level(logging.WARNING):
        batches = list(loader)
    assert [len(batch.ids) for batch in batches] == [1, 2, 2]
    assert loader.position == 4
    assert len(loader.skipped) == 3
    for file, complaint, record in zip(files, loader.skipped, caplog.records, strict=True):
        assert str(file) in complaint
        assert str(file) in record.getMessage()


def test_nothing_but_broken_samples_yields_no_batch(copy_of: Callable[[str], Path]) -> None:
    root, _, config = broken_root(copy_of, 8)
    config = dataclasses.replace(config, on_bad_sample="skip")
    loader = make_loader(config, sources(root, "rid", config=config), epoch=0, train=True)
    assert list(loader) == []
    assert len(loader.skipped) == 8


def test_sources_and_problems_survive_pickling(generated: Path) -> None:
    for source in sources(generated, "rid", "roofline", "airs"):
        first = source.read(0)  # opens what is opened lazily
        again = pickle.loads(pickle.dumps(source))
        assert np.array_equal(again.read(0).image_HWC, first.image_HWC)
    problem = FileError(FileErrorKind.BROKEN, rid.split_file(Path("x"), "val", 1), "broken")
    assert str(pickle.loads(pickle.dumps(problem))) == str(problem)


def of_ranks(config: RunConfig, mixed: list[Source], count: int, *, train: bool) -> list[list[Batch]]:
    together = dataclasses.replace(config, processes=count)
    return [list(make_loader(together, mixed, epoch=1, train=train, rank=rank)) for rank in range(count)]


@pytest.mark.parametrize("count", [2, 3])
def test_processes_that_train_together_share_out_the_batches_of_one(generated: Path, count: int) -> None:
    mixed = sources(generated, "rid", "roofline")
    alone = list(make_loader(dataclasses.replace(CONFIG, batch_size=2 * count), mixed, epoch=1, train=True))
    ranks = of_ranks(CONFIG, mixed, count, train=True)
    assert {len(batches) for batches in ranks} == {len(alone)}, "as many steps in each"
    for whole, *parts in zip(alone, *ranks, strict=True):
        for rank, part in enumerate(parts):
            assert part.ids == whole.ids[rank::count]
            assert torch.equal(part.image_NCHW, whole.image_NCHW[rank::count])
            assert torch.equal(part.labelled_NK, whole.labelled_NK[rank::count])


def test_a_process_without_a_sample_in_a_batch_gets_an_empty_one(generated: Path) -> None:
    two = sources(generated, "rid", config=dataclasses.replace(CONFIG, max_samples=2))
    ranks = of_ranks(dataclasses.replace(CONFIG, batch_size=1), two, 3, train=True)
    assert [[len(batch.ids) for batch in batches] for batches in ranks] == [[1], [1], [0]]
    assert ranks[2][0].image_NCHW.shape == (0, 3, 64, 64)
    assert ranks[2][0].labelled_NK.shape == (0, 4)
    assert ranks[2][0].labelled_NK.dtype is torch.bool


def test_processes_validate_one_stretch_each(generated: Path) -> None:
    mixed = sources(generated, "rid", part="val")
    alone = [name for batch in make_loader(CONFIG, mixed, epoch=0, train=False) for name in batch.ids]
    ranks = of_ranks(CONFIG, mixed, 2, train=False)
    assert [name for batches in ranks for batch in batches for name in batch.ids] == alone
