"""A GPU that runs out of memory: known by its type, told, and the end of the process."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from roofscale.train import __main__ as process

SAID = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB free.\nSee the documentation."


@pytest.fixture(autouse=True)
def _signals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process.signal, "signal", lambda *_: None)


def events_of(folder: Path, fit: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[int, list[dict[str, Any]]]:
    monkeypatch.setattr(process, "train", lambda *_: fit())
    code = process.main(folder)
    return code, [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines() if line]


def test_it_ends_the_run_once_and_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def fit() -> str:
        tried.append(True)
        raise torch.OutOfMemoryError(SAID)

    code, events = events_of(tmp_path, fit, monkeypatch)
    assert (code, len(tried)) == (1, 1), "not retried in place"
    assert events[-1]["outcome"] == "cuda_oom"
    assert events[-1]["detail"] == SAID.splitlines()[0]


def test_what_the_allocator_held_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 3 * 2**20)
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda: {"num_alloc_retries": 4})

    def fit() -> str:
        raise torch.OutOfMemoryError(SAID)

    _, events = events_of(tmp_path, fit, monkeypatch)
    assert events[-2]["metrics"] == {"gpu/memory_peak_mib": 3, "gpu/alloc_retries": 4}


def test_another_runtime_error_is_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit() -> str:
        raise RuntimeError("CUDA out of memory, says somebody else")

    with pytest.raises(RuntimeError, match="somebody else"):
        events_of(tmp_path, fit, monkeypatch)
