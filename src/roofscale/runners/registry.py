"""Which runner: the one place that knows them all."""

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
    return Chosen(partial(SageMakerRunner, session=session), session.settings.max_parallel_jobs, session.interrupt)
