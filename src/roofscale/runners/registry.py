"""Which runner: the one place that knows them all."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from roofscale.runners import Runner
from roofscale.runners.local import LocalRunner
from roofscale.runners.supervise import Listener, StopRequest

MakeRunner = Callable[[Path, Listener], Runner]

LOCAL, SAGEMAKER = "local", "sagemaker"
NAMES = (LOCAL, SAGEMAKER)  # cli.py has them too, as --help loads nothing of this


@dataclass(frozen=True)
class RunnerFactory:
    """Where runs execute: how a runner is made for a run folder and a listener, and how many may run at a time."""

    make: MakeRunner
    most: int = 1
    interrupt: StopRequest = field(default_factory=StopRequest)  # of all that run at the same time


def runs_on_this_machine(name: str) -> bool:
    """Whether its runs execute on this machine, be it in containers.

    Raises:
        ConfigError: SageMaker's settings are lacking or wrong.
    """
    if name == LOCAL:
        return True
    from roofscale.runners.sagemaker import settings

    return settings.load().local_mode


def get_runner(name: str) -> RunnerFactory:
    """The runner of this name.

    Raises:
        ConfigError: SageMaker's settings are lacking or wrong.
    """
    if name == LOCAL:
        return RunnerFactory(LocalRunner)
    from roofscale.runners.sagemaker import settings
    from roofscale.runners.sagemaker.runner import SageMakerRunner
    from roofscale.runners.sagemaker.session import Session

    session = Session(settings.load())
    return RunnerFactory(
        partial(SageMakerRunner, session=session), session.settings.max_parallel_jobs, session.interrupt
    )
