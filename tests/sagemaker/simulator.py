"""The simulator of SageMaker with the project's image, as long as somebody needs it."""

import contextlib
import os
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3

TOP = Path(__file__).resolve().parents[2]
SIMULATOR = TOP.parent / "shared/sagemaker-sim"
IMAGE = "roofscale-test"
SETTINGS = f"role: arn:aws:iam::123456789012:role/RoofscaleJob\nbucket: sim-bucket\nimage: {IMAGE}:latest\n"


@contextmanager
def running(folder: Path) -> Iterator[dict[str, str]]:
    """Start it, and write settings for it into a folder, where launchers are to run.

    Yields:
        The environment of a launcher.
    """
    try:
        for _ in range(3):  # on a busy machine it may ask for what does not listen yet
            if subprocess.run([SIMULATOR / "start.sh"], check=False).returncode == 0:
                break
            subprocess.run([SIMULATOR / "stop.sh"], check=False)
        environment = _sourced(SIMULATOR / "env.sh", {**os.environ, "OMP_NUM_THREADS": "1"})
        environment |= {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
        subprocess.run([Path(__file__).with_name("image.sh"), IMAGE], env=environment, check=True)
        _make_role(environment)
        (folder / "sagemaker.yaml").write_text(SETTINGS)
        yield environment
    finally:
        subprocess.run([SIMULATOR / "stop.sh"], check=False)


def _make_role(environment: dict[str, str]) -> None:
    """Make the role of jobs, as deploy/README.md says; what the simulator lets a role do does not follow from it."""
    keys = environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"]
    iam = boto3.Session(*keys, region_name="eu-west-1").client("iam", endpoint_url=environment["AWS_ENDPOINT_URL"])
    trust = (TOP / "deploy/iam/trust.json").read_text(encoding="utf-8").replace("${ACCOUNT}", "123456789012")
    with contextlib.suppress(iam.exceptions.EntityAlreadyExistsException):
        iam.create_role(RoleName="RoofscaleJob", AssumeRolePolicyDocument=trust)


def _sourced(script: Path, environment: dict[str, str]) -> dict[str, str]:
    done = subprocess.run(
        ["bash", "-c", f"set -a; . {shlex.quote(str(script))}; env -0"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(line.partition("=")[::2] for line in done.stdout.split("\0") if line)
