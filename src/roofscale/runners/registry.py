"""Registry of the runners, by name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from roofscale.compute import GIB, MIB, Compute, resource_limits
from roofscale.runners import Runner
from roofscale.runners.local import LocalRunner
from roofscale.runners.sagemaker import settings
from roofscale.runners.supervise import Listener, StopRequest

MakeRunner = Callable[[Path, Listener], Runner]

LOCAL, SAGEMAKER = "local", "sagemaker"
NAMES = (LOCAL, SAGEMAKER)  # repeated in the CLI, which does not import this module for --help


@dataclass(frozen=True)
class RunnerFactory:
    """Factory of the runners for run folders and listeners, with the number of runs that may execute at a time."""

    make: MakeRunner
    max_jobs: int = 1
    stop_request: StopRequest = field(default_factory=StopRequest)  # shared by all runs at the same time


def runs_on_this_machine(name: str) -> bool:
    """Whether the runs of this runner execute on this machine, directly or in containers.

    Raises:
        ConfigError: SageMaker's settings are missing or wrong.
    """
    return name == LOCAL or settings.load().local_mode


def host_memory_mib(name: str, size: Compute) -> float:
    """Return the host memory, MiB, that a run of this runner has: the compute's, or this machine's if it is smaller.

    Raises:
        ConfigError: SageMaker's settings are missing or wrong.
    """
    return resource_limits(size).memory_bytes / MIB if runs_on_this_machine(name) else size.memory_gib * GIB / MIB


def get_runner(name: str, needed_after: Sequence[str] = ()) -> RunnerFactory:
    """Return the factory of the runner with this name.

    Args:
        name: of NAMES.
        needed_after: modules that the caller needs after a run; the local runner imports them while the training
            process starts. After a job, which takes minutes, the caller imports them itself.

    Raises:
        ConfigError: SageMaker's settings are missing or wrong.
    """
    if name == LOCAL:
        return RunnerFactory(partial(LocalRunner, needed_after=needed_after))
    from roofscale.runners.sagemaker.runner import SageMakerRunner
    from roofscale.runners.sagemaker.session import Session

    session = Session(settings.load())
    return RunnerFactory(
        partial(SageMakerRunner, session=session), session.settings.max_parallel_jobs, session.stop_request
    )
