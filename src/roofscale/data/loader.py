"""From sources to batches: order, seeds and broken files are settled here, the same whatever the worker count.

Shape suffixes as in ``sample``. Every random choice is a function of the run's seed, the epoch, the data set and the
sample's index, never of a process or of what was read before: so 0 and 4 workers give the same batches, and a resumed
epoch the rest of the interrupted one.
"""

import ctypes
import logging
import math
import multiprocessing
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from roofscale.config import RunConfig
from roofscale.data import augment
from roofscale.data.sample import CHANNELS, Batch, Pixels, Sample, Source
from roofscale.data.sampling import Keys, SampleKey, epoch_order, file_order
from roofscale.errors import DataError

_log = logging.getLogger(__name__)


class _WorkerResult(NamedTuple):
    """What a loader process hands over: errors travel as text, because DataLoader would wrap the exception."""

    batch: Batch | None  # None: every sample was broken
    skipped: list[str]  # what is wrong with each sample left out
    error: str  # ends the run; empty: none


class BatchLoader(DataLoader[Any]):
    """Yields ``Batch``; raises DataError with the reader's own words in the process that trains.

    ``skipped`` lists the complaints about samples left out so far (``on_bad_sample=skip``), ``position`` is the
    ``skip_batches`` with which a new loader goes on after the last batch that this one yielded. A batch whose samples
    are all broken is not yielded, but counts in ``position``.
    """

    dataset: "_Batches"

    def __init__(self, dataset: "_Batches", first: int, **options: Any) -> None:
        super().__init__(
            dataset, sampler=range(first, len(dataset)), batch_size=None, collate_fn=_identity_collate, **options
        )
        self.skipped: list[str] = []
        self.position = first

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # torch names its private iterator class here
        if self.num_workers:
            self.dataset.get_ready()
            _give_back_free_memory()
        for loaded in super().__iter__():
            if loaded.error:
                raise DataError(loaded.error)
            self.position += 1
            self.skipped += loaded.skipped
            for complaint in loaded.skipped:
                _log.warning("sample left out: %s", complaint)
            if loaded.batch is not None:
                yield loaded.batch


def make_loader(
    config: RunConfig, sources: Sequence[Source], *, epoch: int, train: bool, skip_batches: int = 0, rank: int = 0
) -> BatchLoader:
    """Make the loader of one pass over one source, or over several shuffled together (the mixed schedule).

    Training batches are shuffled, augmented and randomly cropped; a last training batch of one sample is dropped where
    others came before and it is smaller than these, as BatchNorm cannot take it. Validation keeps every sample, in
    order. Batches before ``skip_batches`` are not even read.

    Of several processes that train together, each (``rank``) reads its part alone: of training its samples of each
    batch, which may be none, so that all take as many steps; of validation one stretch of the order.
    """
    order = epoch_order(sources, config.seed, epoch, config.roof_sampling) if train else file_order(sources)
    if not train:
        order = np.array_split(order, config.world_size)[rank]
    elif config.global_batch_size > 1 and len(order) > 1 and len(order) % config.global_batch_size == 1:
        order = order[:-1]
    dataset = _Batches(config, tuple(sources), order, epoch, train, rank)
    options: dict[str, Any] = {
        "pin_memory": torch.cuda.is_available(),
        "generator": torch.Generator().manual_seed(config.seed),
    }  # leaves the global one alone
    if config.num_workers:
        method = "fork" if uses_fork(config) else None
        options |= {
            "num_workers": config.num_workers,
            "prefetch_factor": config.prefetch_factor,
            "multiprocessing_context": multiprocessing.get_context(method),
            "worker_init_fn": _one_thread,
        }
    return BatchLoader(dataset, min(skip_batches, len(dataset)), **options)


def uses_fork(config: RunConfig) -> bool:
    """Whether batches are read in forked processes: fork starts in 0.2 s where spawn takes 8.

    No source keeps a handle open over it.
    """
    return config.num_workers > 0 and sys.platform == "linux"


def _give_back_free_memory() -> None:
    """Hand back to the system what malloc holds but nobody uses, before processes are forked: a few hundredths of a
    second.

    Forked processes keep what was there when they began for as long as they live, used or not, while training writes it
    anew: at batch 4, 512 px and 2 workers the second pass took 2.6 GiB, and 2.0 after this.
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):  # glibc alone has it
        trim(0)


@dataclass(frozen=True)
class _Batches(Dataset[_WorkerResult]):
    """Maps the number of a batch to the batch: reading, fit, augmentation and collation, in a loader process."""

    config: RunConfig
    sources: tuple[Source, ...]
    order: Keys
    epoch: int
    train: bool
    rank: int

    def __len__(self) -> int:
        return math.ceil(len(self.order) / self._size)

    def get_ready(self) -> None:
        """Do what each loader process would else do for itself, in every epoch."""
        if self.train:
            augment.get_ready(self.config.augment)

    @property
    def _size(self) -> int:
        """Samples of a batch, of all processes in training."""
        return self.config.global_batch_size if self.train else self.config.batch_size

    def _keys(self, number: int) -> list[SampleKey]:
        """This process's samples of a batch."""
        keys_N3 = self.order[number * self._size : (number + 1) * self._size]
        own_N3 = keys_N3[self.rank :: self.config.world_size] if self.train else keys_N3
        return [SampleKey(*row) for row in own_N3.tolist()]

    def __getitem__(self, number: int) -> _WorkerResult:
        samples: list[Sample] = []
        keys: list[SampleKey] = []
        skipped: list[str] = []
        for key in self._keys(number):
            try:
                samples.append(self._prepared(key))
                keys.append(key)
            except DataError as error:
                if self.config.on_bad_sample == "error":
                    return _WorkerResult(None, [], str(error))
                skipped.append(str(error))
        together = self.train and self.config.world_size > 1  # then a step is taken with nothing to learn from, too
        return _WorkerResult(self._collated(samples, keys) if samples or together else None, skipped, "")

    def _prepared(self, key: SampleKey) -> Sample:
        """Read, fit and augment one sample; only the labelled channels take part, the others stay 0."""
        source = self.sources[key.source]
        sample = source.read(key.index)
        seed = sample_seed(self.config.seed, self.epoch, source.name, key)
        rng = np.random.default_rng(seed) if self.train else None
        target = _channels(sample.target_HWK, source.labelled)
        image, target = augment.fit(sample.image_HWC, target, self.config.image_size, self.config.fit, rng)
        if self.train:
            image, target = augment.augment(image, target, self.config.augment, seed)
        return Sample(f"{source.name}/{sample.id}", image, target)

    def _collated(self, samples: Sequence[Sample], keys: Sequence[SampleKey]) -> Batch:
        count, side = len(samples), self.config.image_size
        layout = torch.channels_last if self.config.channels_last else torch.contiguous_format
        image_NCHW = torch.empty((count, 3, side, side), dtype=torch.uint8, memory_format=layout)
        target_NKHW = torch.zeros((count, len(CHANNELS), side, side), dtype=torch.uint8)
        labelled_NK = torch.tensor([self.sources[key.source].labelled for key in keys], dtype=torch.bool)
        labelled_NK = labelled_NK.view(count, len(CHANNELS))
        for i, sample in enumerate(samples):
            image_NCHW[i] = torch.from_numpy(np.ascontiguousarray(sample.image_HWC)).permute(2, 0, 1)
            for j, channel in enumerate(labelled_NK[i].nonzero().flatten().tolist()):
                target_NKHW[i, channel] = torch.from_numpy(np.ascontiguousarray(sample.target_HWK[..., j]))
        return Batch(image_NCHW, target_NKHW, labelled_NK, [sample.id for sample in samples])


def _channels(target_HWK: Pixels, labelled: tuple[bool, ...]) -> Pixels:
    """The labelled channels alone, (H,W,k); OpenCV takes them apart several times faster than NumPy's indexing."""
    kept = [cv2.extractChannel(target_HWK, channel) for channel, has in enumerate(labelled) if has]
    return np.asarray(cv2.merge(kept), np.uint8).reshape(*target_HWK.shape[:2], len(kept))


def sample_seed(seed: int, epoch: int, dataset: str, key: SampleKey) -> int:
    """The seed of one sample's crop and augmentation in one epoch, 32 bits; drawn again, it is varied anew."""
    words = [seed, epoch, zlib.crc32(dataset.encode()), key.index, *([key.draw] if key.draw else [])]
    return int(np.random.SeedSequence(words).generate_state(1)[0])


def _identity_collate(loaded: Any) -> Any:
    """A named function in place of torch's conversion of samples, which would copy."""
    return loaded


def _one_thread(worker: int) -> None:
    """Loader processes share the cores by being several; OpenCV's thread pool does not survive a fork either."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
