"""Training jobs end to end, through the real command line: ``make test-sagemaker``.

The simulator in ../shared/sagemaker-sim really runs the jobs, in containers of the image that the Dockerfile makes,
behind the API of SageMaker as boto3 speaks it; S3 is moto's. Losses are held against the same run on this machine.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from roofscale import config
from roofscale.measurement import Measurement, Outcome

TOP = Path(__file__).resolve().parents[2]
SIMULATOR = TOP.parent / "shared/sagemaker-sim"
SMALL = ("encoder=resnet18", "image_size=64", "val_samples=6", "threads=1", "num_workers=0", "max_samples=10",
         "precision=fp32", "compute=ml.m5.xlarge")  # fmt: skip
# Long enough to be interrupted; of a small net, as the simulator cannot copy a large file that is renamed meanwhile.
LONG = (*SMALL, "encoder=mobilenetv3_small_050", "epochs=25", "seed=7")

pytestmark = pytest.mark.alone


@dataclass(frozen=True)
class Place:
    """Where the launcher runs, as a user would run it."""

    folder: Path
    environment: dict[str, str]

    def start(self, *words: str, **settings: str) -> "subprocess.Popen[str]":
        """A command of Roofscale under way; settings win over those of the file."""
        named = {f"ROOFSCALE_SAGEMAKER_{name.upper()}": value for name, value in settings.items()}
        return subprocess.Popen(
            [sys.executable, "-m", "roofscale", *words],
            cwd=self.folder,
            env={**self.environment, **named},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def train(self, *words: str, runner: str = "sagemaker", **settings: str) -> tuple[Measurement, int]:
        """One training, to its end."""
        command = self.start("train", "--json", "--runner", runner, *words, **settings)
        out, err = command.communicate(timeout=300)
        assert out, err
        return Measurement.load(self.folder / json.loads(out)["folder"] / "measurement.json"), command.returncode

    def to_its_end(self, *words: str) -> Measurement:
        """The same command until it does not end for a fault of the simulator, as a user would do it."""
        for _ in range(4):
            found, _code = self.train(*words)
            if "a fault of the service" not in found.detail:
                break
        return found

    def job(self, *words: str) -> str:
        """The name of the job that a training is waiting for; returns once it has made a step."""
        pattern = f"runs/roofscale-train/{config.load(None, words).fingerprint}-*/job.json"
        until = time.monotonic() + 120
        while time.monotonic() < until:
            for file in self.folder.glob(pattern):
                known, events = json.loads(file.read_text(encoding="utf-8")), file.with_name("events.jsonl")
                if not known["over"] and events.exists() and '"step"' in events.read_text(encoding="utf-8"):
                    return f"{known['key']}-{known['number']}"
            time.sleep(0.2)
        raise AssertionError("no job has made a step")


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A running simulator with the project's image; nothing of it is left afterwards."""
    if not os.environ.get("ROOFSCALE_TEST_SAGEMAKER"):
        pytest.skip("starts Docker and a simulator of SageMaker; run `make test-sagemaker`")
    if not SIMULATOR.is_dir():
        pytest.skip("the simulator is not on this machine (../shared/sagemaker-sim)")
    folder = tmp_path_factory.mktemp("launcher")
    try:
        subprocess.run([SIMULATOR / "start.sh"], check=True)
        environment = _sourced(SIMULATOR / "env.sh", {**os.environ, "OMP_NUM_THREADS": "1"})
        environment |= {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
        subprocess.run([Path(__file__).with_name("image.sh"), "roofscale-test"], env=environment, check=True)
        (folder / "sagemaker.yaml").write_text(
            "role: arn:aws:iam::123456789012:role/RoofscaleJob\nbucket: sim-bucket\nimage: roofscale-test:latest\n"
        )
        yield Place(folder, environment)
    finally:
        subprocess.run([SIMULATOR / "stop.sh"], check=False)


def _sourced(script: Path, environment: dict[str, str]) -> dict[str, str]:
    done = subprocess.run(
        ["bash", "-c", f"set -a; . {shlex.quote(str(script))}; env -0"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(line.partition("=")[::2] for line in done.stdout.split("\0") if line)


@pytest.fixture(scope="session")
def uninterrupted(place: Place) -> list[float]:
    """The losses of the long run, on this machine and in one go."""
    return losses(place.train(*LONG, runner="local")[0])


def losses(measurement: Measurement) -> list[float]:
    return [step.loss for step in measurement.steps]


def ended(command: "subprocess.Popen[str]") -> tuple[int, str]:
    out, err = command.communicate(timeout=300)
    return command.returncode, out + err


def test_a_job_yields_what_a_local_run_does(place: Place) -> None:
    there, code = place.train(*SMALL)
    here, _ = place.train("--fresh", *SMALL, runner="local")
    assert (there.outcome, code) == (Outcome.OK, 0)
    assert losses(there) == losses(here)
    assert [v.metrics for v in there.validations] == [v.metrics for v in here.validations]
    assert there.metrics.keys() - here.metrics.keys() == {"cost/billable_seconds", "cost/usd", "cost/start_seconds"}
    assert here.metrics.keys() - there.metrics.keys() <= {"memory/kernel_peak_mib"}  # a job can make no cgroup
    assert there.metric("memory/peak_mib") > 100
    assert there.resources


def test_phase_1_as_jobs(place: Place) -> None:
    smoke = str(TOP / "experiments/smoke.yaml")
    file = str(TOP / "experiments/phase1.yaml")
    command = place.start("phase", "1", "--file", file, "--overlay", smoke, "--compute", "ml.m5.xlarge",
                          "--runner", "sagemaker", "--json")  # fmt: skip
    out, err = command.communicate(timeout=500)
    assert command.returncode == 0, err
    steps = json.loads(out)["steps"]
    assert [step["outcome"] for step in steps] == ["ok"] * len(steps)
    assert len(steps) >= 3
    assert all(step["metrics"]["cost/usd"] > 0 for step in steps)
    folders = sorted(place.folder.glob("runs/roofscale-phase1/001/*/job.json"))
    assert len({json.loads(file.read_text())["key"] for file in folders}) == len(steps)


def test_out_of_memory_at_8_gib(place: Place) -> None:
    words = ("compute=ml.m5.large", "batch_size=24", "max_samples=48", "val_samples=1", "num_workers=0", "threads=2",
             "precision=fp32", "channels_last=false")  # fmt: skip
    found, code = place.train(*words)
    assert (found.outcome, code) == (Outcome.HOST_OOM, 1)
    assert "lower batch_size" in found.detail
    assert found.metric("cost/billable_seconds") > 0


def test_a_stopped_job_is_gone_on_with_to_the_last_bit(place: Place, uninterrupted: list[float]) -> None:
    command = place.start("train", "--json", "--runner", "sagemaker", *LONG, on_interrupt="stop")
    place.job(*LONG)
    command.send_signal(signal.SIGINT)
    code, said = ended(command)
    assert code == 130, said
    found = place.to_its_end(*LONG)
    assert found.outcome is Outcome.OK, found.detail
    assert 0 < int(found.facts["resumed_at_step"]) < len(uninterrupted)
    assert not found.facts["job"].endswith("-1")
    assert losses(found) == uninterrupted


def test_a_spot_job_survives_the_loss_of_its_instance(place: Place, uninterrupted: list[float]) -> None:
    command = place.start("train", "--json", "--fresh", "--runner", "sagemaker", *LONG, spot="true")
    interrupt(place, place.job(*LONG))
    out, err = command.communicate(timeout=300)
    assert command.returncode == 0, err
    found = Measurement.load(place.folder / json.loads(out)["folder"] / "measurement.json")
    assert losses(found) == uninterrupted
    assert found.facts["job"].endswith("-1"), "the service itself has started the same job again"
    assert int(found.facts["resumed_at_step"]) > 0
    assert 0 <= found.metric("cost/spot_saving") < 1


def interrupt(place: Place, job: str) -> None:
    """Take a spot job's instance away."""
    address = f"http://127.0.0.1:{int(place.environment['SIM_PORT']) + 1}/interrupt/{job}"
    urllib.request.urlopen(urllib.request.Request(address, method="POST"), timeout=30).read()


def test_who_lets_go_of_a_job_waits_for_the_same_one_later(place: Place) -> None:
    words = (*LONG, "seed=8")
    command = place.start("train", "--json", "--runner", "sagemaker", *words, on_interrupt="detach")
    name = place.job(*words)
    command.send_signal(signal.SIGINT)
    code, said = ended(command)
    assert code == 130, said
    assert "runs on" in said
    found, _ = place.train(*words)
    assert found.outcome is Outcome.OK, found.detail
    assert found.facts["job"] == name


def test_a_job_that_the_service_ends_for_its_time(place: Place) -> None:
    found, code = place.train(*LONG, "seed=9", max_runtime_seconds="8")
    assert (found.outcome, code) == (Outcome.TIMEOUT, 1)
    assert "8 s" in found.detail


def test_values_that_a_shell_would_break(place: Place, tmp_path: Path) -> None:
    """The name of no encoder: the job tells it back as it was, and its fingerprint is that of the whole config."""
    name = 'it\'s "a" $HOME `x`;\nü 屋根'
    found, code = place.train(*SMALL, f"encoder={name}")
    assert (found.outcome, code) == (Outcome.CRASHED, 1)
    assert name in found.detail or repr(name) in found.detail
    assert found.fingerprint == config.load(None, [*SMALL, f"encoder={name}"]).fingerprint


def test_data_from_s3_whatever_its_folder_is_called(place: Place) -> None:
    local = next(place.folder.glob("data/generated/*"))
    upload = (
        "import boto3, pathlib, sys; top, key = pathlib.Path(sys.argv[1]), sys.argv[2]; s3 = boto3.client('s3'); "
        "[s3.upload_file(str(f), 'sim-bucket', f'{key}/{f.relative_to(top)}') for f in top.rglob('*') if f.is_file()]"
    )
    key = 'it\'s a "place" ü'
    subprocess.run([sys.executable, "-c", upload, str(local), key], env=place.environment, check=True)
    there, _ = place.train(*SMALL, f"data_root=s3://sim-bucket/{key}", "seed=3")
    here, _ = place.train(*SMALL, "seed=3", runner="local")
    assert there.outcome is Outcome.OK, there.detail
    assert losses(there) == losses(here)
    assert there.facts["data_fingerprint"] == here.facts["data_fingerprint"]


@pytest.mark.parametrize(
    ("settings", "words", "said"),
    [
        ({"bucket": "no-such-bucket"}, (), "there is no such bucket"),
        ({"role": "RoofscaleJob"}, (), "RoleArn: 'RoofscaleJob' does not have the form"),
        ({}, ("compute=local",), "expected an instance of SageMaker"),
        ({}, ("compute=ml.c5.xlarge",), "refused to create the job"),  # whose size the simulator does not know
        ({"budget_usd": "0.0001"}, (), "budget_usd=0.0001"),
    ],
)
def test_what_cannot_be_is_one_clear_message(
    settings: dict[str, str], words: tuple[str, ...], said: str, place: Place
) -> None:
    command = place.start("train", "--runner", "sagemaker", *SMALL, "seed=11", *words, **settings)
    code, told = ended(command)
    told = " ".join(told.split())
    assert said in told, told
    assert "Traceback" not in told
    assert code != 0
