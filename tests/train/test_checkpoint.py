"""A checkpoint is there as soon as it says so, and one that cannot be written costs the one before nothing."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from roofscale.errors import ConfigError, RecordError
from roofscale.train import checkpoint

CONTENT = {"fingerprint": "of this run", "step": 3}


def test_it_replaces_the_one_before(tmp_path: Path) -> None:
    file = tmp_path / checkpoint.CHECKPOINT
    for step in (1, 2):
        checkpoint.save({**CONTENT, "step": step}, file)
        assert checkpoint.load(file, "of this run")["step"] == step
        assert os.listdir(tmp_path) == [file.name]


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[tuple[int, list[str]]] = []
    monkeypatch.setattr(os, "fsync", lambda of: flushed.append((os.fstat(of).st_size, os.listdir(tmp_path))))
    file = tmp_path / checkpoint.CHECKPOINT
    checkpoint.save(CONTENT, file)
    (size, names), *others = flushed
    assert not others
    assert size == file.stat().st_size
    assert file.name not in names


def test_a_write_that_fails_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / checkpoint.CHECKPOINT
    checkpoint.save(CONTENT, file)

    def full(content: Any, stream: Any) -> None:
        stream.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left on device"):
        checkpoint.save(CONTENT, file)
    assert os.listdir(tmp_path) == [file.name]
    assert checkpoint.load(file, "of this run") == CONTENT


def test_one_of_another_config_is_refused(tmp_path: Path) -> None:
    checkpoint.save(CONTENT, tmp_path / checkpoint.CHECKPOINT)
    with pytest.raises(ConfigError, match="only be resumed unchanged"):
        checkpoint.load(tmp_path / checkpoint.CHECKPOINT, "another")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_one_that_was_cut_short_is_said_to_be_damaged(share: float, tmp_path: Path) -> None:
    file = tmp_path / checkpoint.CHECKPOINT
    checkpoint.save({**CONTENT, "model": {"weight": torch.ones(1000)}}, file)
    os.truncate(file, int(file.stat().st_size * share))
    with pytest.raises(RecordError, match=r"checkpoint\.pt: damaged"):
        checkpoint.load(file, "of this run")
