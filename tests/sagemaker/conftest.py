"""A place to run jobs in: the simulator on this machine, or an account of AWS's.

All that is run on the simulator is tracked in an MLflow that is named by an ARN.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.flaky_mlflow_server import serving
from tests.sagemaker import real_account, simulator
from tests.sagemaker.environment import LONG, Place, losses

ARN = "arn:aws:sagemaker:eu-west-1:123456789012:mlflow-app/app-ROOFS1"


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """What ``ROOFSCALE_TEST_SAGEMAKER`` names; nothing of a simulator is left afterwards."""
    where = os.environ.get("ROOFSCALE_TEST_SAGEMAKER")
    if not where:
        pytest.skip("starts Docker and a simulator of SageMaker; run `make test-sagemaker`")
    folder = tmp_path_factory.mktemp("launcher")
    if where == "real":
        yield real_account.prepared(folder)
        return
    if not simulator.SIMULATOR.is_dir():
        pytest.skip("the simulator is not on this machine (../shared/sagemaker-sim)")
    with (
        simulator.running(folder) as environment,
        mlflow_app(tmp_path_factory.mktemp("mlflow"), environment) as address,
    ):
        tracked = {"MLFLOW_TRACKING_URI": ARN, "SAGEMAKER_MLFLOW_CUSTOM_ENDPOINT": address}
        yield Place(folder, {**environment, **tracked}, mlflow=address)


@contextmanager
def mlflow_app(folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """The address of a server like an MLflow App: it keeps artifacts in S3, and they pass it by."""
    words = ("--no-serve-artifacts", "--default-artifact-root", f"s3://{Place.bucket}/mlflow")
    with serving(folder, *words, **environment) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def simulated(place: Place) -> Place:
    """The place, where only the simulator will do."""
    if place.real:
        pytest.skip("nobody can ask AWS for this")
    return place


@pytest.fixture(scope="session")
def uninterrupted(place: Place) -> list[float]:
    """The losses of the long run, on this machine and in one go."""
    return losses(place.train(*LONG, runner="local")[0])
