"""Which runner: the one place that knows them all."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from roofscale.runners import Runner
from roofscale.runners.local import LocalRunner
from roofscale.runners.supervise import Listener

MakeRunner = Callable[[Path, Listener], Runner]

LOCAL, SAGEMAKER = "local", "sagemaker"
NAMES = (LOCAL, SAGEMAKER)  # cli has them too, as --help loads nothing of this


def chosen(name: str) -> MakeRunner:
    """How a runner of this name is made for a run folder and a listener.

    Raises:
        ConfigError: SageMaker's settings are lacking or wrong.
    """
    if name == LOCAL:
        return LocalRunner
    from roofscale.runners.sagemaker import settings
    from roofscale.runners.sagemaker.runner import SageMakerRunner

    return partial(SageMakerRunner, settings=settings.load())
