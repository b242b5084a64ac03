"""What the tests of ``runners.beside`` have done by the process beside this one."""

import os
import signal
from pathlib import Path

from roofscale.errors import ConfigError


def whoami(more: int = 0) -> int:
    print("a script reads what the launcher prints, and not this")
    return os.getpid() + more


def refuse() -> None:
    raise ConfigError("batch_size=0: expected at least 1.")


def die_once(file: Path) -> int:
    """Dies the first time."""
    if not file.exists():
        file.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
