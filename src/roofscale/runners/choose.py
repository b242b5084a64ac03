"""Which runner: the one place that knows them all."""

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from roofscale.runners import Runner
from roofscale.runners.local import LocalRunner
from roofscale.runners.supervise import Interrupt, Listener

MakeRunner = Callable[[Path, Listener], Runner]

LOCAL, SAGEMAKER = "local", "sagemaker"
NAMES = (LOCAL, SAGEMAKER)  # cli.py has them too, as --help loads nothing of this
_M_ARENA_MAX, _ARENAS = -8, 2  # as malloc.h calls it; so many do for threads that mostly wait


@dataclass(frozen=True)
class Chosen:
    """Where runs execute: how a runner is made for a run folder and a listener, and how many may run at a time."""

    make: MakeRunner
    most: int = 1
    interrupt: Interrupt = field(default_factory=Interrupt)  # of all that run at the same time


def runs_here(name: str) -> bool:
    """Whether its runs execute on this machine, be it in containers.

    Raises:
        ConfigError: SageMaker's settings are lacking or wrong.
    """
    if name == LOCAL:
        return True
    from roofscale.runners.sagemaker import settings

    return settings.load().local_mode


def chosen(name: str) -> Chosen:
    """The runner of this name.

    Raises:
        ConfigError: SageMaker's settings are lacking or wrong.
    """
    if name == LOCAL:
        return Chosen(LocalRunner)
    from roofscale.runners.sagemaker import settings
    from roofscale.runners.sagemaker.runner import SageMakerRunner
    from roofscale.runners.sagemaker.session import Session

    session = Session(settings.load())
    _share_arenas()
    return Chosen(partial(SageMakerRunner, session=session), session.settings.max_parallel_jobs, session.interrupt)


def _share_arenas() -> None:
    """Have this process's threads share arenas of malloc: each keeps what was once freed in it (32 of 439 MiB seen)."""
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):  # glibc alone has it
        mallopt(_M_ARENA_MAX, _ARENAS)
