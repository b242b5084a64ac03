"""Local mode end to end: the image as a container of Docker's, with no account, no S3 and no network."""

import dataclasses
import signal

import pytest
from tests.sagemaker.place import LONG, SMALL, Place, ended, losses

from roofscale.measurement import Outcome

pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def here(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A folder without settings, in a shell that knows nothing of AWS; of the simulator it has Docker and the image."""
    if place.real:
        pytest.skip("costs nothing, and make test-sagemaker has it")
    bare = {name: value for name, value in place.environment.items() if not name.startswith("AWS_")}
    named = {
        "ROOFSCALE_SAGEMAKER_LOCAL_MODE": "true",
        "ROOFSCALE_SAGEMAKER_IMAGE": "roofscale-test:latest",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path_factory.mktemp('tracked')}/mlflow.db",
    }
    return dataclasses.replace(place, folder=tmp_path_factory.mktemp("here"), environment={**bare, **named})


def test_a_container_yields_what_a_local_run_does(here: Place) -> None:
    there, code = here.train(*SMALL)
    local, _ = here.train("--fresh", *SMALL, runner="local")
    assert (there.outcome, code) == (Outcome.OK, 0), there.detail
    assert losses(there) == losses(local)
    assert there.facts["image"] == "roofscale-test:latest"
    assert "cost/usd" not in there.metrics


def test_data_on_this_machine(here: Place) -> None:
    data = next(here.folder.glob("data/generated/*"))
    there, _ = here.train(*SMALL, f"data_root=s3://local{data}", "seed=3")
    local, _ = here.train(*SMALL, "seed=3", runner="local")
    assert there.outcome is Outcome.OK, there.detail
    assert losses(there) == losses(local)


def test_a_stopped_container_is_gone_on_with_to_the_last_bit(here: Place, uninterrupted: list[float]) -> None:
    command = here.start("train", "--json", "--runner", "sagemaker", *LONG, on_interrupt="stop")
    here.job(*LONG)
    command.send_signal(signal.SIGINT)
    code, said = ended(command)
    assert code == 130, said
    found, _ = here.train(*LONG)
    assert found.outcome is Outcome.OK, found.detail
    assert int(found.facts["resumed_at_step"]) > 0
    assert losses(found) == uninterrupted


def test_memory_and_time_are_held(here: Place) -> None:
    large = ("compute=ml.m5.large", "batch_size=24", "max_samples=48", "val_samples=1", "num_workers=0", "threads=2",
             "precision=fp32", "channels_last=false")  # fmt: skip
    assert here.train(*large)[0].outcome is Outcome.HOST_OOM
    found, _ = here.train(*LONG, "seed=9", max_runtime_seconds="8")
    assert found.outcome is Outcome.TIMEOUT, found.detail


def test_an_image_that_is_not_there_is_one_clear_message(here: Place) -> None:
    code, told = ended(here.start("train", "--runner", "sagemaker", *SMALL, "seed=11", image="no-such-image:1"))
    assert code != 0
    assert "docker build -t IMAGE" in " ".join(told.split())
    assert "Traceback" not in told
