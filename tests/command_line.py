"""The command line for tests: called in this process, or as ``python -m tests.command_line`` with the fake trainer.

A start of Python with PyTorch and MLflow takes six seconds, so only tests whose subject is a signal to the launcher, or
what it imports, start one.
"""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests import fake_trainer

from roofscale.cli import main
from roofscale.runners import registry
from roofscale.runners.local import LocalRunner

WITH_FAKE_TRAINER = (sys.executable, "-m", "tests.command_line")


def use_fake_trainer(patch: pytest.MonkeyPatch) -> None:
    """Let the runs that this process starts train nothing."""
    patch.setattr(registry, "LocalRunner", partial(LocalRunner, command=fake_trainer.COMMAND))


def roofscale(folder: Path, *words: str, fake: bool = False, uri: str = "") -> "subprocess.CompletedProcess[str]":
    """Call the command line in this process, in ``folder``; the MLflow store is the one there, or ``uri``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", uri or f"sqlite:///{folder}/mlflow.db")
        if fake:
            use_fake_trainer(patch)
        done = CliRunner().invoke(main, words)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return subprocess.CompletedProcess(words, done.exit_code, done.stdout, done.stderr)


if __name__ == "__main__":
    use_fake_trainer(pytest.MonkeyPatch())
    main()
