"""SageMaker's local mode: jobs as containers on this machine, with no account and no S3.

Stands in for ``cloud.Cloud``: the same image under the same contract (/opt/ml, an exec-form entrypoint, the memory of
the instance as a hard limit, SIGTERM and 120 seconds at a stop), started by the command ``docker``. What lies in S3
elsewhere lies in folders here: ``s3://local/home/me`` is ``/home/me``, so that checkpoints outlive a container.

The SageMaker SDK has a local mode too. It mounts no checkpoints, and holds a job neither to its memory nor to its time.
"""

import csv
import datetime
import io
import json
import os
import shutil
import subprocess
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from roofscale import compute
from roofscale.compute import GIB, Compute
from roofscale.errors import ConfigError
from roofscale.measurement import write_json
from roofscale.runners.sagemaker.settings import HERE, Settings

_ML = "/opt/ml"
_STOP_SECONDS = 120  # between SIGTERM and SIGKILL, as on SageMaker
_LONGEST = "roofscale:longest"  # the label that holds MaxRuntimeInSeconds
# What each job's folder remembers: why it was stopped, and how it ended.
_STOPPED, _ENDED = "stopped", "ended.json"
_OOM = "ClientError: Please use an instance type with more memory"
_TRAINING = {"TrainingJobStatus": "InProgress", "SecondaryStatus": "Training"}
_STOPPING = {"TrainingJobStatus": "Stopping", "SecondaryStatus": "Stopping"}
_GONE = {
    "TrainingJobStatus": "Failed",
    "SecondaryStatus": "Failed",
    "FailureReason": "InternalServerError: somebody has removed the container",
}


class Containers:
    """Docker and the file system, asked in the words of S3 and SageMaker."""

    def __init__(self, settings: Settings) -> None:
        self._output = folder_of(f"s3://{settings.bucket}/{settings.prefix.strip('/')}/output")

    def submit(self, request: Mapping[str, Any]) -> None:
        """Start a job's container.

        Raises:
            ConfigError: Docker is not there, or refuses; or it would take several machines.
        """
        if request["ResourceConfig"]["InstanceCount"] > 1:
            raise ConfigError("local_mode has this machine only; set instance_count=1, or local_mode: false.")
        size = compute.get(request["ResourceConfig"]["InstanceType"])
        name = request["TrainingJobName"]
        job = self._output / name
        for folder in (job / "output/data", job / "model", folder_of(request["CheckpointConfig"]["S3Uri"])):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            _docker(*run_words(request, size, job))
        except ConfigError:  # of a job that could not start, nothing is to be found again
            shutil.rmtree(job)
            if _inspect(name):
                _docker("rm", "--force", name)
            raise

    def describe(self, name: str) -> dict[str, Any] | None:
        """What DescribeTrainingJob would say; a job that runs for longer than it may is stopped."""
        job = self._output / name
        if (job / _ENDED).exists():
            return _with_times(json.loads((job / _ENDED).read_text(encoding="utf-8")))
        found = _inspect(name)
        if found is None:
            return _GONE if job.exists() else None
        why = (job / _STOPPED).read_text(encoding="utf-8") if (job / _STOPPED).exists() else ""
        if found["State"]["Status"] not in ("exited", "dead"):
            if not why and _overdue(found):
                self._stop(name, "MaxRuntimeExceeded")
            return _STOPPING if why else _TRAINING
        log = _docker("logs", name)
        (job / "log").write_text(log, encoding="utf-8")
        write_json(job / _ENDED, ended(found, why, _said(job / "output/failure", log)))
        _docker("rm", name)
        return self.describe(name)

    def stop(self, name: str) -> None:
        """Ask a job to stop; one that is over already is left alone."""
        if (found := _inspect(name)) and found["State"]["Status"] == "running":
            self._stop(name, "Stopped")

    def _stop(self, name: str, why: str) -> None:
        (self._output / name / _STOPPED).write_text(why, encoding="utf-8")
        subprocess.Popen(  # it waits until the container has ended, and is not to hear a second Ctrl-C
            ["docker", "stop", "-t", str(_STOP_SECONDS), name],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def running(self, begins: str) -> dict[str, dict[str, str]]:
        """The tags of each job under way whose name begins so."""
        names = _docker("ps", "--filter", f"name=^/?{begins}", "--format", "{{.Names}}").split()
        found = {name: _inspect(name) for name in names}
        return {name: inspected["Config"]["Labels"] for name, inspected in found.items() if inspected}

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
        """One file of a job's output, which nobody packs here; None where it is not there."""
        file = folder_of(uri).parent / "data" / name
        return file.read_bytes() if file.exists() else None

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


def folder_of(uri: str) -> Path:
    """Where a URI of this machine's leads.

    Raises:
        ConfigError: it leads into S3.
    """
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if bucket != HERE:
        raise ConfigError(
            f"{uri}: local_mode has no S3; expected s3://{HERE}/ABSOLUTE/PATH of a folder on this machine."
        )
    return Path("/", key)


def run_words(request: Mapping[str, Any], size: Compute, job: Path) -> list[str]:
    """The words for ``docker`` that start a job's container."""
    algorithm = request["AlgorithmSpecification"]
    command: list[str] = [*algorithm["ContainerEntrypoint"], *algorithm["ContainerArguments"]]
    memory = str(int(size.memory_gib * GIB))
    labels = {tag["Key"]: tag["Value"] for tag in request["Tags"]}
    labels[_LONGEST] = str(request["StoppingCondition"]["MaxRuntimeInSeconds"])
    mounts = [
        _mount(job / "output", f"{_ML}/output"),
        _mount(job / "model", f"{_ML}/model"),
        _mount(folder_of(request["CheckpointConfig"]["S3Uri"]), request["CheckpointConfig"]["LocalPath"]),
        *(
            _mount(folder_of(channel["DataSource"]["S3DataSource"]["S3Uri"]),
                   f"{_ML}/input/data/{channel['ChannelName']}", "readonly")
            for channel in request["InputDataConfig"]
        ),
    ]  # fmt: skip
    return [
        "run", "--detach", "--name", request["TrainingJobName"], "--hostname", "algo-1", "--network", "none",
        "--memory", memory, "--memory-swap", memory, "--cpus", str(min(size.vcpus, os.cpu_count() or 1)),
        "--shm-size", str(int(size.memory_gib * GIB / 2)),  # what Linux gives /dev/shm by itself
        *(("--gpus", str(size.gpu_count)) if size.gpu_count else ()),
        # Files are to belong to who started it; a user without a name or a home is one that Python can do with.
        "--user", f"{os.getuid()}:{os.getgid()}", "--env", "HOME=/tmp", "--env", "USER=roofscale",
        "--env", f"TRAINING_JOB_NAME={request['TrainingJobName']}",
        *(word for mount in mounts for word in ("--mount", mount)),
        *(word for key, value in labels.items() for word in ("--label", f"{key}={value}")),
        "--entrypoint", command[0], algorithm["TrainingImage"], *command[1:],
    ]  # fmt: skip


def ended(inspected: Mapping[str, Any], why: str, said: str) -> dict[str, Any]:
    """What DescribeTrainingJob would say of a container that is over.

    Args:
        inspected: what ``docker inspect`` says of it.
        why: it was stopped; empty where it was not.
        said: what it left as the cause of a failure.
    """
    state = inspected["State"]
    code, longest = state["ExitCode"], int(inspected["Config"]["Labels"][_LONGEST])
    if why:
        status, secondary, reason = "Stopped", why, ""
    elif code == 0:
        status, secondary, reason = "Completed", "Completed", ""
    else:
        status, secondary = "Failed", "Failed"
        reason = f"{_OOM}, exit code: {code}" if state["OOMKilled"] else f"AlgorithmError: {said}, exit code: {code}"
    return {
        "TrainingJobStatus": status,
        "SecondaryStatus": secondary,
        "FailureReason": reason,
        "StoppingCondition": {"MaxRuntimeInSeconds": longest},
        "TrainingStartTime": state["StartedAt"],
        "TrainingEndTime": state["FinishedAt"],
    }


def _mount(source: Path, target: str, *more: str) -> str:
    """A mount as Docker reads it: a line of CSV, for paths with a comma in them."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(["type=bind", f"source={source}", f"target={target}", *more])
    return line.getvalue()


def _docker(*words: str) -> str:
    """Run ``docker``; what it says, the errors of a container's log included.

    Raises:
        ConfigError: it is not there, or refuses.
    """
    errors = subprocess.STDOUT if words[0] == "logs" else subprocess.PIPE
    try:
        return subprocess.run(["docker", *words], stdout=subprocess.PIPE, stderr=errors, text=True, check=True).stdout
    except FileNotFoundError:
        raise ConfigError(
            "local_mode: there is no command 'docker' here; install Docker Engine, or set local_mode: false."
        ) from None
    except subprocess.CalledProcessError as error:
        raise ConfigError(
            f"docker {words[0]}: {error.stderr.strip()} `docker info` must answer, and the image be there (docker "
            "build -t IMAGE .)."
        ) from None


def _inspect(name: str) -> dict[str, Any] | None:
    found = _docker("ps", "--all", "--filter", f"name=^/?{name}$", "--format", "{{.Names}}").split()
    return dict(json.loads(_docker("inspect", name))[0]) if name in found else None


def _said(failure: Path, log: str) -> str:
    """The cause that the job left, or else the last line of its log."""
    if failure.exists():
        return failure.read_text(encoding="utf-8")
    return (log.strip().splitlines() or [""])[-1]


def _with_times(described: dict[str, Any]) -> dict[str, Any]:
    times = {key: datetime.datetime.fromisoformat(described[key]) for key in ("TrainingStartTime", "TrainingEndTime")}
    return {**described, **times}


def _overdue(inspected: Mapping[str, Any]) -> bool:
    """Whether a container runs for longer than its job may."""
    if inspected["State"]["Status"] != "running":
        return False
    began = datetime.datetime.fromisoformat(inspected["State"]["StartedAt"])
    return time.time() - began.timestamp() > int(inspected["Config"]["Labels"][_LONGEST])
