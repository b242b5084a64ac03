"""SageMaker's local mode: jobs as containers on this machine, with no account and no S3.

Stands in for ``cloud.Cloud``: the same image under the same contract (/opt/ml, an exec-form entrypoint, the memory of
the instance as a hard limit, SIGTERM and 120 seconds at a stop), started by the command ``docker``; a job of several
machines is as many containers on a network of their own. What lies in S3 elsewhere lies in folders here:
``s3://local/home/me`` is ``/home/me``, so that checkpoints outlive a container.

The SageMaker SDK has a local mode too. It mounts no checkpoints, and holds a job neither to its memory nor to its time.
"""

import datetime
import json
import shutil
import signal
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from roofscale import compute
from roofscale.errors import ConfigError
from roofscale.files import write_json
from roofscale.runners.outcome import PEER_FAILED
from roofscale.runners.sagemaker import docker, multi_node
from roofscale.runners.sagemaker.docker import folder_of
from roofscale.runners.sagemaker.settings import SageMakerSettings

# What each job's folder remembers: as what it was stopped, and how it ended.
_STOPPED, _ENDED = "stopped", "ended.json"
_FAILED = "Failed"  # one of its hosts, and the others were stopped for that
_OOM = "ClientError: Please use an instance type with more memory"
_TRAINING = {"TrainingJobStatus": "InProgress", "SecondaryStatus": "Training"}
_STOPPING = {"TrainingJobStatus": "Stopping", "SecondaryStatus": "Stopping"}
_KILLED = "InternalServerError: the container was killed from outside, by somebody or by a machine short of memory"
_GONE = {
    "TrainingJobStatus": "Failed",
    "SecondaryStatus": "Failed",
    "FailureReason": "InternalServerError: somebody has removed the container",
}
# What ``docker inspect`` says of a container.
Inspected = Mapping[str, Any]


class LocalModeClient:
    """Docker and the file system, asked in the words of S3 and SageMaker."""

    def __init__(self, settings: SageMakerSettings) -> None:
        self._output = folder_of(f"s3://{settings.bucket}/{settings.prefix.strip('/')}/output")

    def submit(self, request: Mapping[str, Any]) -> None:
        """Start a job's containers.

        Raises:
            ConfigError: Docker is not there, or refuses.
        """
        name, wanted = request["TrainingJobName"], request["ResourceConfig"]
        job, machines = self._output / name, multi_node.host_names(wanted["InstanceCount"])
        folder_of(request["CheckpointConfig"]["S3Uri"]).mkdir(parents=True, exist_ok=True)
        for host in machines:
            for folder in ("output/data", "model", docker.CONFIG):
                (job / host / folder).mkdir(parents=True, exist_ok=True)
            told = multi_node.resource_config(machines, host, wanted["InstanceType"])
            write_json(job / host / docker.CONFIG / Path(multi_node.RESOURCE_CONFIG).name, told)
        try:
            docker.start(request, compute.get(wanted["InstanceType"]), job)
        except ConfigError:  # of a job that could not start, nothing is to be found again
            self._forget(name)
            raise

    def _forget(self, name: str) -> None:
        shutil.rmtree(self._output / name)
        docker.remove(name)

    def describe(self, name: str) -> dict[str, Any] | None:
        """What DescribeTrainingJob would say; a job that runs for longer than it may, or without all of its hosts, is
        stopped."""
        job = self._output / name
        if (job / _ENDED).exists():
            return _with_times(json.loads((job / _ENDED).read_text(encoding="utf-8")))
        found = docker.job_containers(name)
        if not job.exists():
            return None
        if any(one["State"]["Status"] == "created" for one in found):  # the launcher was killed while it submitted it
            self._forget(name)
            return None
        if len(found) < len(_hosts(job)):
            docker.remove(name)
            return _GONE
        why = (job / _STOPPED).read_text(encoding="utf-8") if (job / _STOPPED).exists() else ""
        if not all(map(_is_over, found)):
            if not why:
                self._hold(name, found)
            return _STOPPING if why and why != _FAILED else _TRAINING
        write_json(job / _ENDED, describe_ended(found, why, [_said(job, one) for one in found]))
        docker.remove(name)
        return self.describe(name)

    def _hold(self, name: str, found: Sequence[Inspected]) -> None:
        """Stop a job where its time is over, or one of its hosts has failed."""
        if any(map(_overdue, found)):
            self._stop(name, "MaxRuntimeExceeded")
        elif any(_is_over(one) and one["State"]["ExitCode"] for one in found):
            self._stop(name, _FAILED)

    def stop(self, name: str) -> None:
        """Ask a job to stop; one that is over already is left alone."""
        if any(one["State"]["Status"] == "running" for one in docker.job_containers(name)):
            self._stop(name, "Stopped")

    def _stop(self, name: str, why: str) -> None:
        job = self._output / name
        if not (job / _STOPPED).exists():
            (job / _STOPPED).write_text(why, encoding="utf-8")
        docker.stop([docker.container(name, host) for host in _hosts(job)])

    def running(self, begins: str) -> dict[str, dict[str, str]]:
        """The tags of each job under way whose name begins so."""
        found = docker.list_containers(f"name=^/?{begins}", f"label={docker.JOB}", over=False)
        return {one["Config"]["Labels"][docker.JOB]: one["Config"]["Labels"] for one in found}

    def write(self, uri: str, content: bytes) -> None:
        """Write a file."""
        file = folder_of(uri)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)

    def read_from(self, uri: str, offset: int) -> bytes:
        """What a file holds from a place on; nothing where it is not there, or not that long."""
        if not folder_of(uri).exists():
            return b""
        with folder_of(uri).open("rb") as stream:
            stream.seek(offset)
            return stream.read()

    def read_packed(self, uri: str, name: str) -> bytes | None:
        """One file of what a job's hosts have left, which nobody packs here; None where it is not there."""
        job = folder_of(uri).parents[1]
        left = (file for host in _hosts(job) if (file := job / host / "output/data" / name).exists())
        return next((file.read_bytes() for file in left), None)

    def fetch(self, uri: str, folder: Path, leave_out: Collection[str] = ()) -> None:
        """Copy all that lies in one folder into another, but the files of these names."""
        top = folder_of(uri)
        for file in top.rglob("*"):
            if file.is_file() and not file.name.startswith(".") and file.name not in leave_out:
                copy = folder / file.relative_to(top)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)

    def size(self, uri: str) -> int:
        """Bytes in a folder."""
        return sum(file.stat().st_size for file in folder_of(uri).rglob("*") if file.is_file())


def describe_ended(found: Sequence[Inspected], why: str, said: Sequence[str]) -> dict[str, Any]:
    """What DescribeTrainingJob would say of a job whose containers are over.

    Args:
        found: of each host.
        why: as what it was stopped; empty where it was not.
        said: what each left as the cause of a failure.
    """
    if why and why != _FAILED:
        status, secondary, reason = "Stopped", why, ""
    elif reason := _reason(found, said):
        status, secondary = "Failed", "Failed"
    else:
        status, secondary = "Completed", "Completed"
    return {
        "TrainingJobStatus": status,
        "SecondaryStatus": secondary,
        "FailureReason": reason,
        "StoppingCondition": {"MaxRuntimeInSeconds": _longest(found[0])},
        "TrainingStartTime": min((one["State"]["StartedAt"] for one in found), key=_time),
        "TrainingEndTime": max((one["State"]["FinishedAt"] for one in found), key=_time),
    }


def _reason(found: Sequence[Inspected], said: Sequence[str]) -> str:
    """Why a job has failed, by the host that failed first and did not only follow another; empty if none failed."""
    failed = [(one["State"], text) for one, text in zip(found, said, strict=True) if one["State"]["ExitCode"]]
    if not failed:
        return ""
    state, text = min(
        failed, key=lambda one: (not one[0]["OOMKilled"], PEER_FAILED in one[1], _time(one[0]["FinishedAt"]))
    )
    if state["ExitCode"] == 128 + signal.SIGKILL and not state["OOMKilled"]:
        return _KILLED  # Docker tells of its own memory limit, where the service's 137 may mean that as well
    return f"{_OOM if state['OOMKilled'] else f'AlgorithmError: {text}'}, exit code: {state['ExitCode']}"


def _hosts(job: Path) -> list[str]:
    """The hosts of a job, by the folders that they have."""
    return sorted(folder.name for folder in job.glob("algo-*"))


def _said(job: Path, one: Inspected) -> str:
    """The cause that a host left, or else the last line of its log, which is kept."""
    log = docker.run_docker("logs", one["Name"].removeprefix("/"))
    own = job / str(one["Config"]["Hostname"])
    (own / "log").write_text(log, encoding="utf-8")
    if (own / "output/failure").exists():
        return (own / "output/failure").read_text(encoding="utf-8")
    return (log.strip().splitlines() or [""])[-1]


def _with_times(described: dict[str, Any]) -> dict[str, Any]:
    return {**described, **{key: _time(described[key]) for key in ("TrainingStartTime", "TrainingEndTime")}}


def _is_over(one: Inspected) -> bool:
    return one["State"]["Status"] in ("exited", "dead")


def _overdue(one: Inspected) -> bool:
    """Whether a container runs for longer than its job may."""
    began = _time(one["State"]["StartedAt"]).timestamp()
    return one["State"]["Status"] == "running" and time.time() - began > _longest(one)


def _longest(one: Inspected) -> int:
    return int(one["Config"]["Labels"][docker.LONGEST])


def _time(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text)
