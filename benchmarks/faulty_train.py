"""The training process with a fault planted in it: ``python -m benchmarks.faulty_train FAULT RUN_FOLDER``.

The faults are planted from outside, by replacing one function each, so that none of them exists in the product.
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from roofscale.config import RunConfig
from roofscale.data.sample import Sample
from roofscale.data.sources import DataSplit
from roofscale.train import __main__ as train_process
from roofscale.train.trainer import Trainer

LEAK_BYTES = 20 * 2**20  # a step
_open_sources = train_process.open_sources


class _Changed:
    """A source with a replaced ``read``."""

    def __init__(self, source: Any, read: Callable[[Any, int], Sample]) -> None:
        self._source, self._read = source, read

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # pickle and copy look these up before the source is set
            raise AttributeError(name)
        return getattr(self._source, name)

    def __len__(self) -> int:
        return len(self._source)

    def read(self, index: int) -> Sample:
        """Read a sample by the replacement."""
        return self._read(self._source, index)


def _change_training(read: Callable[[Any, int], Sample]) -> None:
    def opened(config: RunConfig, root: Path) -> Mapping[str, DataSplit]:
        splits = _open_sources(config, root)
        return {name: DataSplit(_Changed(split.train, read), split.val) for name, split in splits.items()}  # type: ignore[arg-type]

    train_process.open_sources = opened  # type: ignore[assignment]


def masks() -> None:
    """Give each training image the mask of the image half a data set away."""

    def read(source: Any, index: int) -> Sample:
        other = source.read((index + len(source) // 2) % len(source))
        return dataclasses.replace(source.read(index), target_HWK=other.target_HWK)

    _change_training(read)


def loader(seconds: float) -> None:
    """Delay the reading of each training sample by ``seconds``."""

    def read(source: Any, index: int) -> Sample:
        time.sleep(seconds)
        return source.read(index)  # type: ignore[no-any-return]

    _change_training(read)


def leak() -> None:
    """Leak 20 MiB in every step."""
    step, kept = Trainer.step, []

    def leaking(self: Trainer, batch: Any) -> tuple[float, float]:
        kept.append(torch.ones(LEAK_BYTES // 4))
        return step(self, batch)

    Trainer.step = leaking  # type: ignore[method-assign]


def main(fault: str, folder: Path) -> int:
    """Plant the fault, then train as always."""
    name, _, amount = fault.partition("=")
    {"masks": masks, "leak": leak, "loader": lambda: loader(float(amount)), "none": lambda: None}[name]()
    return train_process.main(folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
