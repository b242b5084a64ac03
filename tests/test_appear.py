"""A file appears whole or not at all, also to whoever copies its folder at any moment."""

import os
from pathlib import Path

import pytest

from roofscale import appear
from roofscale.appear import appearing


@pytest.fixture(params=["without a name", "with another name"])
def unnamed(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the file system knows files without a name."""
    if request.param == "with another name":
        monkeypatch.setattr(appear, "_unnamed", lambda folder: None)
        return False
    descriptor = appear._unnamed(tmp_path)
    if descriptor is None:
        pytest.skip("the file system of the temporary folder knows no files without a name")
    os.close(descriptor)
    return True


def write(file: Path, content: bytes) -> None:
    with appearing(file) as stream:
        stream.write(content)


def test_it_replaces_the_one_before(unnamed: bool, tmp_path: Path) -> None:
    file = tmp_path / "file"
    for content in (b"first", b"second"):
        write(file, content)
        assert file.read_bytes() == content
        assert os.listdir(tmp_path) == [file.name]
    assert file.stat().st_mode & 0o777 == 0o666 & ~_umask()


def test_nothing_of_it_is_seen_while_it_is_written(unnamed: bool, tmp_path: Path) -> None:
    for before in ([], ["file"]):
        with appearing(tmp_path / "file") as stream:
            stream.write(b"half of it")
            stream.flush()
            assert sorted(os.listdir(tmp_path)) == [*([] if unnamed else [".file.partial"]), *before]


def test_a_first_one_never_has_another_name(unnamed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not unnamed:
        pytest.skip("it has one while it is written")
    monkeypatch.setattr(Path, "replace", lambda *names: pytest.fail(f"renamed: {names}"))
    write(tmp_path / "file", b"whole")
    assert (tmp_path / "file").read_bytes() == b"whole"


def test_a_write_that_fails_leaves_the_one_before(unnamed: bool, tmp_path: Path) -> None:
    file = tmp_path / "file"
    write(file, b"whole")

    def fill_the_disk() -> None:
        with appearing(file) as stream:
            stream.write(b"half of it")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        fill_the_disk()
    assert os.listdir(tmp_path) == [file.name]
    assert file.read_bytes() == b"whole"


def test_what_a_kill_left_is_no_hindrance(unnamed: bool, tmp_path: Path) -> None:
    (tmp_path / ".file.partial").write_bytes(b"half of it")
    for content in (b"first", b"second"):
        write(tmp_path / "file", content)
        assert os.listdir(tmp_path) == ["file"]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
