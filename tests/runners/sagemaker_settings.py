"""Settings, run configs and a stand-in for AWS that the tests of the SageMaker runner share."""

import datetime
import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from roofscale.config import RunConfig
from roofscale.runners.sagemaker.settings import SageMakerSettings

ROLE = "arn:aws:iam::123456789012:role/RoofscaleJob"
SETTINGS = SageMakerSettings(
    role=ROLE, bucket="roofs", image="123456789012.dkr.ecr.eu-west-1.amazonaws.com/roofscale:1"
)
CONFIG = RunConfig(compute="ml.m5.xlarge", data_root="s3://roofs/data", datasets=("rid", "airs"))
BEGUN = datetime.datetime(2026, 11, 24, 12, tzinfo=datetime.UTC)


ARN = "arn:aws:sagemaker:eu-west-1:123456789012:training-job/"


def full_description(name: str, status: str = "InProgress") -> dict[str, Any]:
    """An answer of DescribeTrainingJob with all that the service always tells."""
    return {
        "TrainingJobName": name,
        "TrainingJobArn": ARN + name,
        "CreationTime": BEGUN,
        "TrainingJobStatus": status,
        "SecondaryStatus": status,
        "ModelArtifacts": {"S3ModelArtifacts": "s3://x/y"},
        "AlgorithmSpecification": {"TrainingInputMode": "File"},
        "ResourceConfig": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 1},
        "StoppingCondition": {"MaxRuntimeInSeconds": 9},
    }


def described(status: str = "Completed", secondary: str = "", **more: Any) -> dict[str, Any]:
    """An answer of DescribeTrainingJob; a job that is over ran for 60 s and began after 30."""
    found: dict[str, Any] = {
        "TrainingJobStatus": status,
        "SecondaryStatus": secondary or status,
        "StoppingCondition": {"MaxRuntimeInSeconds": 900},
        "CreationTime": BEGUN,
    }
    if status not in ("InProgress", "Stopping"):
        started = BEGUN + datetime.timedelta(seconds=30)
        found |= {
            "TrainingStartTime": started,
            "TrainingEndTime": started + datetime.timedelta(seconds=60),
            "TrainingTimeInSeconds": 60,
            "BillableTimeInSeconds": 60,
        }
    return found | more


def packed(name: str, content: bytes) -> bytes:
    """A .tar.gz with one file, as the service packs a job's output."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


class FakeCloud:
    """S3 as a dictionary, and a SageMaker that answers what a test has prepared.

    Args:
        answers: of DescribeTrainingJob once there is a job, one a call; the last one stays. A function is called first.
        before: answers for a job that is there from the beginning.
    """

    def __init__(self, *answers: Mapping[str, Any] | Callable[[], Mapping[str, Any]], known: bool = False) -> None:
        self.objects: dict[str, bytes] = {}
        self.requests: list[dict[str, Any]] = []
        self.stopped: list[str] = []
        self.log: list[str] = []
        self.under_way: dict[str, dict[str, str]] = {}  # by name, the tags
        self._answers, self._known = list(answers), known

    def check(self, request: dict[str, Any]) -> None: ...

    def log_reader(self, name: str, hosts: int = 1) -> Callable[[], list[str]]:
        return lambda: [self.log.pop(0) for _ in range(len(self.log))]

    def submit(self, request: dict[str, Any]) -> None:
        self.requests.append(request)
        self._known = True

    def describe(self, name: str) -> dict[str, Any] | None:
        if not self._known:
            return None
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return dict(answer() if callable(answer) else answer)

    def running(self, begins: str) -> dict[str, dict[str, str]]:
        return {name: tags for name, tags in self.under_way.items() if name.startswith(begins)}

    def stop(self, name: str) -> None:
        self.stopped.append(name)

    def write(self, uri: str, content: bytes) -> None:
        self.objects[uri] = content

    def read_from(self, uri: str, offset: int) -> bytes:
        return self.objects.get(uri, b"")[offset:]

    def read_packed(self, uri: str, name: str) -> bytes | None:
        archive = self.objects.get(uri)
        if archive is None:
            return None
        with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
            file = opened.extractfile(name)
            return file.read() if file else None

    def fetch(self, uri: str, folder: Path, leave_out: tuple[str, ...] = ()) -> None:
        for key, content in self.objects.items():
            name = key.removeprefix(f"{uri}/")
            if key.startswith(f"{uri}/") and name not in leave_out:
                (folder / name).write_bytes(content)

    def size(self, uri: str) -> int:
        return sum(len(content) for key, content in self.objects.items() if key.startswith(uri))
