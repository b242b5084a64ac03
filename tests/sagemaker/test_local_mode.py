"""Local mode end to end: the image as containers of Docker's, with no account, no S3 and no way out of this machine."""

import dataclasses
import signal
import subprocess
import time

import pytest
from tests.sagemaker.environment import LONG, SMALL, Place, ended, losses

from roofscale.measurement import Outcome

pytestmark = pytest.mark.alone

# Two machines, each with half of every batch of 4; the last of an epoch has 2.
TWO = ("instance_count=2", "batch_size=2", "lr_schedule=constant")
LONG_ON_TWO = (*LONG, *TWO, "epochs=12", "checkpoint_seconds=1")


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


def test_two_machines_have_the_losses_of_one_process_with_the_same_batches(here: Place) -> None:
    """At a rate at which rounding does not grow; tests/train/test_distributed.py says how far it is to agree."""
    words = (*SMALL, *TWO, "lr=1e-5", "seed=4")
    there, code = here.train(*words)
    local, _ = here.train(*words, "instance_count=1", "batch_size=4", runner="local")
    assert (there.outcome, code) == (Outcome.OK, 0), there.detail
    assert losses(there)[0] == pytest.approx(losses(local)[0], rel=1e-5)
    assert losses(there) == pytest.approx(losses(local), rel=1e-4)
    assert [step.samples for step in there.steps] == [step.samples for step in local.steps]
    assert there.metric("node1/memory/peak_mib") > 100, "the second machine tells what it used"
    assert left_behind(here) == []


@pytest.fixture(scope="module")
def uninterrupted_on_two(here: Place) -> list[float]:
    found, _ = here.train(*LONG_ON_TWO)
    assert found.outcome is Outcome.OK, found.detail
    return losses(found)


@pytest.mark.parametrize("how", ["one is killed", "all are stopped"])
def test_two_machines_go_on_to_the_last_bit(how: str, here: Place, uninterrupted_on_two: list[float]) -> None:
    command = here.start("train", "--json", "--fresh", "--runner", "sagemaker", *LONG_ON_TWO, on_interrupt="stop")
    job = here.job(*LONG_ON_TWO)
    checkpoint = here.folder / f"runs/containers/{job.rpartition('-')[0]}/folder/checkpoint.pt"
    until = time.monotonic() + 60
    while not checkpoint.exists() and time.monotonic() < until:
        time.sleep(0.1)
    if how == "one is killed":
        docker(here, "kill", f"{job}.algo-2")
    else:
        command.send_signal(signal.SIGINT)
    code, said = ended(command)
    assert (code, '"interrupted"' in said) == (130, True), said
    assert ("killed from outside" in said) == (how == "one is killed"), said
    assert left_behind(here) == [], "neither containers nor a network"
    found, _ = here.train(*LONG_ON_TWO)
    assert found.outcome is Outcome.OK, found.detail
    assert 0 < int(found.facts["resumed_at_step"]) < len(uninterrupted_on_two)
    assert losses(found) == uninterrupted_on_two
    assert left_behind(here) == []


def docker(place: Place, *words: str) -> str:
    done = subprocess.run(["docker", *words], env=place.environment, capture_output=True, text=True, check=True)
    return done.stdout


def left_behind(place: Place) -> list[str]:
    """What jobs have left in Docker."""
    ours = ("--filter", "label=roofscale:job", "--format")
    return [
        *docker(place, "ps", "--all", *ours, "{{.Names}}").split(),
        *docker(place, "network", "ls", *ours, "{{.Name}}").split(),
    ]


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
