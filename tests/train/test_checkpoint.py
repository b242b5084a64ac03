"""A checkpoint appears whole or not at all, also to whoever copies its folder at any moment."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from roofscale.train import checkpoint

CONTENT = {"fingerprint": "of this run", "step": 3}


@pytest.fixture(params=["without a name", "with another name"])
def unnamed(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the file system knows files without a name."""
    if request.param == "with another name":
        monkeypatch.setattr(checkpoint, "_unnamed", lambda folder: None)
        return False
    descriptor = checkpoint._unnamed(tmp_path)
    if descriptor is None:
        pytest.skip("the file system of the temporary folder knows no files without a name")
    os.close(descriptor)
    return True


def test_it_replaces_the_one_before(unnamed: bool, tmp_path: Path) -> None:
    file = tmp_path / checkpoint.CHECKPOINT
    for step in (1, 2):
        checkpoint.save({**CONTENT, "step": step}, file)
        assert checkpoint.load(file, "of this run")["step"] == step
        assert os.listdir(tmp_path) == [file.name]
    assert file.stat().st_mode & 0o777 == 0o666 & ~_umask()


def test_nothing_of_it_is_seen_while_it_is_written(
    unnamed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / checkpoint.CHECKPOINT
    checkpoint.save(CONTENT, file)
    seen: list[list[str]] = []
    save = torch.save

    def look_and_save(content: Any, stream: Any) -> None:
        save(content, stream)
        seen.append(sorted(os.listdir(tmp_path)))

    monkeypatch.setattr(torch, "save", look_and_save)
    checkpoint.save(CONTENT, file)
    assert seen == [[file.name] if unnamed else [".checkpoint.pt.partial", file.name]]


def test_a_write_that_fails_leaves_the_one_before(
    unnamed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_what_a_kill_left_of_an_earlier_version_is_no_hindrance(unnamed: bool, tmp_path: Path) -> None:
    (tmp_path / ".checkpoint.pt.partial").write_bytes(b"half of it")
    checkpoint.save(CONTENT, tmp_path / checkpoint.CHECKPOINT)
    assert os.listdir(tmp_path) == [checkpoint.CHECKPOINT]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
