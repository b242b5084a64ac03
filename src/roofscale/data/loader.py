"""The batch loader: sample order, seeds, augmentation and handling of broken files, independent of the worker count.

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
    """A loader process's result for one batch; an error is passed as text, because DataLoader wraps exceptions."""

    batch: Batch | None  # None: every sample was broken
    skipped: list[str]  # the error message of each sample left out
    error: str  # of a sample that ends the run; empty: none


class BatchLoader(DataLoader[Any]):
    """A DataLoader that yields ``Batch``, and raises the source's DataError in the training process.

    Attributes:
        skipped: error messages of the samples left out so far (``on_bad_sample=skip``).
        position: the ``skip_batches`` with which a new loader continues after the last batch that this one yielded. A
            batch whose samples are all broken is not yielded, but counts in it.
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
            self.dataset.get_ready()  # before the fork, so that the loader processes share the result
            _trim_heap()
        for loaded in super().__iter__():
            if loaded.error:
                raise DataError(loaded.error)
            self.position += 1
            self.skipped += loaded.skipped
            for message in loaded.skipped:
                _log.warning("sample left out: %s", message)
            if loaded.batch is not None:
                yield loaded.batch


def make_loader(
    config: RunConfig, sources: Sequence[Source], *, epoch: int, train: bool, skip_batches: int = 0, rank: int = 0
) -> BatchLoader:
    """Return the loader of one pass over one source, or over several shuffled together (the mixed schedule).

    Training batches are shuffled, augmented and randomly cropped; a last training batch of a single sample is dropped
    if it is smaller than the batches before it, as BatchNorm cannot normalise one sample. Validation keeps every
    sample, in order.

    Args:
        config: batch size, workers, seed, augmentation and world size are taken from it.
        sources: of one data set each.
        epoch: from 0; determines order, crops and augmentation of a training pass.
        train: whether to shuffle, augment and crop at random.
        skip_batches: number of first batches to leave out unread, after a resume.
        rank: of this process in distributed training. A rank reads only its own samples: in training its share of each
            global batch, which may be empty, so that all ranks take equally many steps; in validation one contiguous
            part of the order.
    """
    order = epoch_order(sources, config.seed, epoch, config.roof_sampling) if train else file_order(sources)
    if not train:
        order = np.array_split(order, config.world_size)[rank]
    elif config.global_batch_size > 1 and len(order) > 1 and len(order) % config.global_batch_size == 1:
        order = order[:-1]  # BatchNorm cannot take a batch of one sample
    dataset = _Batches(config, tuple(sources), order, epoch, train, rank)
    options: dict[str, Any] = {
        "pin_memory": torch.cuda.is_available(),
        "generator": torch.Generator().manual_seed(config.seed),  # else DataLoader draws from the global generator
    }
    if config.num_workers:
        method = "fork" if uses_fork(config) else None
        options |= {
            "num_workers": config.num_workers,
            "prefetch_factor": config.prefetch_factor,
            "multiprocessing_context": multiprocessing.get_context(method),
            "worker_init_fn": _use_one_thread,
        }
    return BatchLoader(dataset, min(skip_batches, len(dataset)), **options)


def uses_fork(config: RunConfig) -> bool:
    """Return whether loader processes are forked: fork takes 0.2 s, spawn 8 s.

    It is safe for the sources: none uses a file handle that another process opened.
    """
    return config.num_workers > 0 and sys.platform == "linux"


def _trim_heap() -> None:
    """Return malloc's free memory to the system before loader processes are forked; takes a few hundredths of a second.

    Forked processes hold the pages of the parent for as long as they live, free ones too, while the training process
    writes copies of them: at batch 4, 512 px and 2 workers the second epoch took 2.6 GiB without this and 2.0 with it.
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):  # glibc alone has it
        trim(0)


@dataclass(frozen=True)
class _Batches(Dataset[_WorkerResult]):
    """Map-style dataset of whole batches: a loader process reads, fits, augments and collates the samples of one."""

    config: RunConfig
    sources: tuple[Source, ...]
    order: Keys
    epoch: int
    train: bool
    rank: int

    def __len__(self) -> int:
        return math.ceil(len(self.order) / self._size)

    def get_ready(self) -> None:
        """Build the augmentation, which every loader process would otherwise build for itself in every epoch."""
        if self.train:
            augment.get_ready(self.config.augment)

    @property
    def _size(self) -> int:
        """Samples of a batch; in training those of all ranks together."""
        return self.config.global_batch_size if self.train else self.config.batch_size

    def _keys(self, number: int) -> list[SampleKey]:
        """Return this rank's samples of batch ``number``."""
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
        # In distributed training a rank without samples yields an empty batch, so that all ranks take the same steps.
        distributed = self.train and self.config.world_size > 1
        return _WorkerResult(self._collated(samples, keys) if samples or distributed else None, skipped, "")

    def _prepared(self, key: SampleKey) -> Sample:
        """Read, fit and augment one sample; its target holds the labelled channels alone."""
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
        """Stack the samples into one batch; channels that a sample does not label stay 0."""
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
    """Return the labelled channels alone, (H,W,k); OpenCV is several times as fast here as NumPy's indexing."""
    kept = [cv2.extractChannel(target_HWK, channel) for channel, has in enumerate(labelled) if has]
    return np.asarray(cv2.merge(kept), np.uint8).reshape(*target_HWK.shape[:2], len(kept))


def sample_seed(seed: int, epoch: int, dataset: str, key: SampleKey) -> int:
    """Return the 32-bit seed of one sample's crop and augmentation in one epoch; each draw of it has another seed."""
    words = [seed, epoch, zlib.crc32(dataset.encode()), key.index, *([key.draw] if key.draw else [])]
    return int(np.random.SeedSequence(words).generate_state(1)[0])


def _identity_collate(loaded: Any) -> Any:
    """Return the worker's result unchanged, where torch's default would copy it; a named function can be pickled."""
    return loaded


def _use_one_thread(worker: int) -> None:
    """Limit a loader process to one thread: the processes share the cores, and OpenCV's pool survives no fork."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
