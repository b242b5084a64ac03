"""What users do ends in words and an exit code of its own kind; only a fault of ours keeps a traceback, in a file."""

import errno
import os
from pathlib import Path

import click
import pytest
import requests
import sqlalchemy.exc
import yaml
from click.testing import CliRunner
from mlflow.exceptions import MlflowException
from PIL import Image
from rasterio.errors import RasterioIOError

from roofscale.cli import main
from roofscale.cli.group import ErrorGroup
from roofscale.errors import ConfigError, DataError, ExitCode, RecordError, to_user_error
from roofscale.tracking import TrackingError


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (ConfigError("batch_size=0"), ExitCode.USER_ERROR, "batch_size=0"),
        (DataError("a.tif"), ExitCode.USER_ERROR, "a.tif"),
        (RecordError("attempt.json"), ExitCode.USER_ERROR, "attempt.json"),
        (TrackingError("does not answer"), ExitCode.ENVIRONMENT, "does not answer"),
        (OSError(errno.ENOSPC, "No space left on device", "/d/a"), ExitCode.ENVIRONMENT, "/d/a: the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/d/a"), ExitCode.ENVIRONMENT, "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/d/a"), ExitCode.ENVIRONMENT, "/d/a: this user may not"),
        (OSError(errno.EROFS, "Read-only file system", "runs"), ExitCode.ENVIRONMENT, "Read-only file system"),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "x.yaml"),
            ExitCode.USER_ERROR,
            "x.yaml: No such",
        ),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "x"), ExitCode.USER_ERROR, "x: Is a directory"),
        (OSError(errno.EMFILE, "Too many open files", "x"), ExitCode.ENVIRONMENT, "Too many open files"),
        (MemoryError(), ExitCode.ENVIRONMENT, "memory is used up"),
        (requests.ConnectionError("refused"), ExitCode.ENVIRONMENT, "refused"),
        (MlflowException("INTERNAL_ERROR"), ExitCode.ENVIRONMENT, "INTERNAL_ERROR"),
        (sqlalchemy.exc.OperationalError("SELECT", {}, Exception("locked")), ExitCode.ENVIRONMENT, "locked"),
        (RasterioIOError("a.tif: cut"), ExitCode.USER_ERROR, "a.tif: cut"),
        (Image.DecompressionBombError("exceeds limit"), ExitCode.USER_ERROR, "exceeds limit"),
        (yaml.YAMLError("line 3"), ExitCode.USER_ERROR, "line 3"),
        (
            UnicodeEncodeError("utf-8", "stra\udcdfe", 4, 5, "surrogates not allowed"),
            ExitCode.USER_ERROR,
            r"stra\udcdfe",
        ),
    ],
)
def test_each_kind_has_its_words_and_its_exit_code(error: Exception, code: ExitCode, says: str) -> None:
    known = to_user_error(error)
    assert known is not None
    assert known.exit_code == code
    assert says in str(known)


@pytest.mark.parametrize("error", [KeyError("a"), TypeError("b"), ValueError("c"), AttributeError("d")])
def test_a_mistake_of_ours_is_not_explained_away(error: Exception) -> None:
    assert to_user_error(error) is None


def _called(error: BaseException) -> click.Group:
    @click.group(cls=ErrorGroup)
    def group() -> None:
        """For a test."""

    @group.command()
    def fail() -> None:
        """Raise it."""
        raise error

    return group


def test_a_crash_keeps_its_traceback_in_a_file_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    done = CliRunner().invoke(_called(KeyError("hunter2")), ["fail"])
    assert done.exit_code == ExitCode.CRASHED
    assert "Traceback" not in done.output
    (kept,) = Path("runs").glob("roofscale-crash-*.txt")
    assert str(kept) in done.output.replace("\n", "")
    assert "Traceback (most recent call last)" in kept.read_text()
    assert "KeyError" in kept.read_text()
    assert "hunter2" not in kept.read_text() + done.output


def test_ctrl_c_is_told_from_a_failure() -> None:
    assert CliRunner().invoke(_called(KeyboardInterrupt()), ["fail"]).exit_code == ExitCode.INTERRUPTED


def test_a_secret_of_the_environment_is_in_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOFSCALE_STORAGE", "postgresql://anna:Tr4ck%2FIng@host/d")
    said = CliRunner().invoke(_called(ConfigError("anna:Tr4ck/Ing and Tr4ck%2FIng and Tr4ck")), ["fail"]).output
    assert "Tr4ck" not in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("train", "--set", "data_root=l'aquila", "--dry-run"), "a quotation mark is not closed"),
        (("train", "--config", "no.yaml", "--dry-run"), "no.yaml"),
        (("train", "batch_size=1", "decoder=deeplabv3plus", "--dry-run"), "expected batch_size=2 or more"),
        (("train", "batch_size=2", "micro_batches=2", "decoder=pan", "--dry-run"), "expected batch_size=4 or more"),
        (("train", b"data_root=stra\xdfe".decode(errors="surrogateescape"), "--dry-run"), "no UTF-8"),
        (("search", "--storage", "nosuchdialect://host/d", "--dry-run"), "nosuchdialect"),
        (("search", "--storage", "mysql://u:Tr4ck/Ing@host/d", "--dry-run"), "%2F"),
        (("data", "check", "."), "no data set found"),
    ],
)
def test_a_users_mistake_is_exit_2_before_anything_runs(
    words: tuple[str, ...], says: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.symlink(root / "experiments", "experiments")
    done = CliRunner().invoke(main, words)
    assert done.exit_code == ExitCode.USER_ERROR, done.output
    assert says in " ".join(done.output.split())
    assert "Tr4ck" not in done.output
    assert not Path("runs").exists()


def test_a_user_whom_the_system_has_no_name_for(tracking_store: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import getpass

    from roofscale.tracking import Tracker

    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr(getpass, "getuser", nameless)
    tracker = Tracker("of-nobody")
    run = tracker.start("run", {})
    assert tracker.client.get_run(run.run_id).data.tags["mlflow.user"] == f"uid {os.getuid()}"
