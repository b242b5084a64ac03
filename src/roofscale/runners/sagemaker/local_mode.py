"""Local mode: jobs as Docker containers on this machine, without an AWS account and without S3.

``LocalModeClient`` replaces ``jobs_api.SageMakerClient``. It runs the same image under the same contract (/opt/ml, an
exec-form entrypoint, the memory of the instance as a hard limit, SIGTERM and 120 seconds at a stop) with the command
``docker``. A job of several hosts is one container per host, on a network of their own. Folders replace S3:
``s3://local/home/me`` is ``/home/me``, so that checkpoints outlive a container.

The local mode of the SageMaker SDK mounts no checkpoints and enforces neither the memory nor the maximum runtime.
"""

import csv
import datetime
import io
import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from roofscale import compute
from roofscale.addresses import S3
from roofscale.compute import GIB
from roofscale.errors import ConfigError
from roofscale.files import write_json
from roofscale.runners.outcome import PEER_FAILED
from roofscale.runners.sagemaker import multi_node
from roofscale.runners.sagemaker.settings import HERE, SageMakerSettings

_JOB, _LONGEST = "roofscale:job", "roofscale:longest"  # labels: the job's name, and its MaxRuntimeInSeconds
_ML = "/opt/ml"
_STOP_SECONDS = 120  # between SIGTERM and SIGKILL, as on SageMaker
# Files in a job's folder: why it was stopped, and the final answer of ``describe``.
_STOPPED, _ENDED = "stopped", "ended.json"
_LOG = "log"  # in the folder of each host, once it has ended
_FAILED = "Failed"  # reason of a stop: one host has failed, so the others were stopped
_OOM = "ClientError: Please use an instance type with more memory"
_TRAINING = {"TrainingJobStatus": "InProgress", "SecondaryStatus": "Training"}
_STOPPING = {"TrainingJobStatus": "Stopping", "SecondaryStatus": "Stopping"}
_KILLED = "InternalServerError: the container was killed from outside, by a user or by a machine short of memory"
_GONE = {
    "TrainingJobStatus": "Failed",
    "SecondaryStatus": "Failed",
    "FailureReason": "InternalServerError: a user or a program has removed the container",
}
# The record of a container in the output of ``docker inspect``.
Inspected = Mapping[str, Any]


class LocalModeClient:
    """Docker and the file system behind the interface of ``SageMakerClient``."""

    def __init__(self, settings: SageMakerSettings) -> None:
        self._output = folder_of(f"s3://{settings.bucket}/{settings.prefix.strip('/')}/output")

    def check(self, request: Mapping[str, Any]) -> None:
        """Check nothing: Docker refuses at once what it cannot start."""

    def submit(self, request: Mapping[str, Any]) -> None:
        """Start a job's containers.

        Raises:
            ConfigError: Docker is missing or refuses.
        """
        name, hosts = request["TrainingJobName"], multi_node.host_names(request["ResourceConfig"]["InstanceCount"])
        job = self._output / name
        folder_of(request["CheckpointConfig"]["S3Uri"]).mkdir(parents=True, exist_ok=True)
        for host in hosts:
            for folder in ("output/data", "model", "input/config"):
                (job / host / folder).mkdir(parents=True, exist_ok=True)
            # As far as a job reads it.
            resource_config = {"current_host": host, "hosts": hosts, "network_interface_name": "eth0"}
            write_json(job / host / multi_node.RESOURCE_CONFIG, resource_config)
        try:
            if len(hosts) > 1:
                _run_docker("network", "create", "--internal", "--label", f"{_JOB}={name}", name)
            for host in hosts:
                _run_docker(*create_words(request, job, host))
            _run_docker("start", *(_container_name(name, host) for host in hosts))
        except ConfigError:  # the next start must not find a job that never ran
            self._forget(name)
            raise

    def _forget(self, name: str) -> None:
        shutil.rmtree(self._output / name)
        _remove(name)

    def describe(self, name: str) -> dict[str, Any] | None:
        """Return what DescribeTrainingJob would answer; None if there is no such job.

        No service watches a local job, so each call also enforces its rules: a job over its maximum runtime or with a
        failed host is stopped, one with a missing host is removed, and the end of one is recorded in ``ended.json``.
        """
        job = self._output / name
        if (job / _ENDED).exists():
            ended = json.loads((job / _ENDED).read_text(encoding="utf-8"))
            return {**ended, **{key: _time(ended[key]) for key in ("TrainingStartTime", "TrainingEndTime")}}
        containers = _list_containers(f"label={_JOB}={name}")
        if not job.exists():
            return None
        # The launcher was killed while it submitted the job: it counts as not submitted.
        if any(container["State"]["Status"] == "created" for container in containers):
            self._forget(name)
            return None
        if len(containers) < len(_hosts(job)):
            _remove(name)
            return _GONE
        stopped = (job / _STOPPED).read_text(encoding="utf-8") if (job / _STOPPED).exists() else ""
        if not all(map(_is_over, containers)):
            if not stopped and any(map(_is_overdue, containers)):
                self._stop(name, "MaxRuntimeExceeded")
            elif not stopped and any(_is_over(record) and record["State"]["ExitCode"] for record in containers):
                self._stop(name, _FAILED)
            return _STOPPING if stopped and stopped != _FAILED else _TRAINING
        causes = [_failure_cause(job, container["Config"]["Hostname"]) for container in containers]
        write_json(job / _ENDED, describe_ended(containers, stopped, causes))
        _remove(name)
        return self.describe(name)

    def stop(self, name: str) -> None:
        """Ask a job to stop; no error if it is over already."""
        if _list_containers(f"label={_JOB}={name}", "status=running"):
            self._stop(name, "Stopped")

    def _stop(self, name: str, reason: str) -> None:
        job = self._output / name
        if not (job / _STOPPED).exists():  # the first reason is the true one
            (job / _STOPPED).write_text(reason, encoding="utf-8")
        subprocess.Popen(  # it waits for their end; in a session of its own, so that a second Ctrl-C does not reach it
            ["docker", "stop", "-t", str(_STOP_SECONDS), *(_container_name(name, host) for host in _hosts(job))],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def running(self, begins: str) -> dict[str, dict[str, str]]:
        """Return the tags of each job under way, by its name, for names that begin with ``begins``."""
        containers = _list_containers(f"name=^/?{begins}", f"label={_JOB}", "status=running")
        all_labels = [container["Config"]["Labels"] for container in containers]
        return {labels[_JOB]: labels for labels in all_labels}

    def log_reader(self, name: str, hosts: int = 1) -> Callable[[], list[str]]:
        """Return a function that returns the lines of a job's log since its last call."""
        job, counts = self._output / name, Counter[str]()

        def read() -> list[str]:
            lines: list[str] = []
            for host in _hosts(job):
                new = _read_log(job, host).splitlines()[counts[host] :]
                counts[host] += len(new)
                lines += new
            return lines

        return read

    def write(self, uri: str, content: bytes) -> None:
        """Write a file, with the folders that lead to it."""
        file = folder_of(uri)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)

    def read_from(self, uri: str, offset: int) -> bytes:
        """Return a file's bytes from an offset on; empty if the file is missing or shorter."""
        if not folder_of(uri).exists():
            return b""
        with folder_of(uri).open("rb") as stream:
            stream.seek(offset)
            return stream.read()

    def read_packed(self, uri: str, name: str) -> bytes | None:
        """Return one output file of a job's hosts; None if no host wrote it.

        Args:
            uri: of the archive that SageMaker would make; local mode packs none and reads the hosts' folders.
        """
        files = sorted(folder_of(uri).parents[1].glob(f"algo-*/output/data/{name}"))
        return files[0].read_bytes() if files else None

    def fetch(self, uri: str, folder: Path, leave_out: Collection[str] = ()) -> None:
        """Copy a folder's files into another folder, except hidden ones and the names in ``leave_out``."""
        top = folder_of(uri)
        for file in top.rglob("*"):
            if file.is_file() and not file.name.startswith(".") and file.name not in leave_out:
                copy = folder / file.relative_to(top)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)

    def size(self, uri: str) -> int:
        """Return the bytes of all files in a folder."""
        return sum(file.stat().st_size for file in folder_of(uri).rglob("*") if file.is_file())


def describe_ended(containers: Sequence[Inspected], stopped: str, causes: Sequence[str]) -> dict[str, Any]:
    """Return what DescribeTrainingJob would answer for a job whose containers have all ended.

    Args:
        containers: one per host.
        stopped: the reason of the stop (``Stopped``, ``MaxRuntimeExceeded``, ``Failed``); empty if it was not stopped.
        causes: the text of each host about its failure, in the order of ``containers``.
    """
    if stopped and stopped != _FAILED:
        status, secondary, reason = "Stopped", stopped, ""
    elif reason := _reason(containers, causes):
        status, secondary = "Failed", "Failed"
    else:
        status, secondary = "Completed", "Completed"
    return {
        "TrainingJobStatus": status,
        "SecondaryStatus": secondary,
        "FailureReason": reason,
        "StoppingCondition": {"MaxRuntimeInSeconds": _max_runtime(containers[0])},
        "TrainingStartTime": min((container["State"]["StartedAt"] for container in containers), key=_time),
        "TrainingEndTime": max((container["State"]["FinishedAt"] for container in containers), key=_time),
    }


def _reason(containers: Sequence[Inspected], causes: Sequence[str]) -> str:
    """Return FailureReason by the host that failed first; empty if none failed.

    A host out of memory counts before all others, and one that only lost its peer after them.
    """
    failed = [
        (container["State"], cause)
        for container, cause in zip(containers, causes, strict=True)
        if container["State"]["ExitCode"]
    ]
    if not failed:
        return ""
    state, cause = min(
        failed, key=lambda host: (not host[0]["OOMKilled"], PEER_FAILED in host[1], _time(host[0]["FinishedAt"]))
    )
    if state["ExitCode"] == 128 + signal.SIGKILL and not state["OOMKilled"]:
        return _KILLED  # Docker reports a kill by the memory limit, so this was none; SageMaker's 137 can mean either
    return f"{_OOM if state['OOMKilled'] else f'AlgorithmError: {cause}'}, exit code: {state['ExitCode']}"


def _hosts(job: Path) -> list[str]:
    """Return the names of a job's hosts, read from their folders, sorted."""
    return sorted(folder.name for folder in job.glob("algo-*"))


def _read_log(job: Path, host: str) -> str:
    """Return the log of a host, of its container or as it was saved at its end."""
    file = job / host / _LOG
    return file.read_text("utf-8") if file.exists() else _run_docker("logs", _container_name(job.name, host))


def _failure_cause(job: Path, host: str) -> str:
    """Return the cause in the host's failure file, else the last line of its log; saves the log."""
    log, failure = _run_docker("logs", _container_name(job.name, host)), job / host / "output/failure"
    (job / host / _LOG).write_text(log, encoding="utf-8")
    return failure.read_text(encoding="utf-8") if failure.exists() else (log.strip().splitlines() or [""])[-1]


def _is_over(container: Inspected) -> bool:
    return container["State"]["Status"] in ("exited", "dead")


def _is_overdue(container: Inspected) -> bool:
    """Whether a container has run for longer than MaxRuntimeInSeconds of its job."""
    started = _time(container["State"]["StartedAt"]).timestamp()
    return container["State"]["Status"] == "running" and time.time() - started > _max_runtime(container)


def _max_runtime(container: Inspected) -> int:
    return int(container["Config"]["Labels"][_LONGEST])


def _time(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text)


def folder_of(uri: str) -> Path:
    """Return the folder of ``s3://local/ABSOLUTE/PATH``.

    Raises:
        ConfigError: the bucket is another than ``local``, so the URI is one of S3.
    """
    bucket, _, key = uri.removeprefix(S3).partition("/")
    if bucket != HERE:
        raise ConfigError(
            f"{uri}: local_mode has no S3; expected s3://{HERE}/ABSOLUTE/PATH of a folder on this machine."
        )
    return Path("/", key)


def _container_name(job: str, host: str) -> str:
    """Return the container's name of a job's host; unambiguous, because job names contain no dot."""
    return f"{job}.{host}"


def create_words(request: Mapping[str, Any], folder: Path, host: str) -> list[str]:
    """Return the arguments of ``docker`` that create the container of one host of a job; ``folder`` is the job's."""
    size = compute.get(request["ResourceConfig"]["InstanceType"])
    algorithm, name = request["AlgorithmSpecification"], request["TrainingJobName"]
    command: list[str] = [*algorithm["ContainerEntrypoint"], *algorithm["ContainerArguments"]]
    hosts = multi_node.host_names(request["ResourceConfig"]["InstanceCount"])
    memory = str(int(size.memory_gib * GIB))
    labels = {tag["Key"]: tag["Value"] for tag in request["Tags"]}
    labels |= {_JOB: name, _LONGEST: str(request["StoppingCondition"]["MaxRuntimeInSeconds"])}
    return [
        "create", "--name", _container_name(name, host), "--hostname", host,
        *(("--network", "none") if len(hosts) == 1 else ("--network", name, "--network-alias", host)),
        "--memory", memory, "--memory-swap", memory, "--cpus", str(min(size.vcpus, os.cpu_count() or 1)),
        "--shm-size", str(int(size.memory_gib * GIB / 2)),  # half of the memory: Linux's default for /dev/shm
        *(("--gpus", _gpus(size.gpu_count, hosts.index(host))) if size.gpu_count else ()),
        # The job's files must belong to the user who started it. That uid has no name and no home in the image, which
        # Python's getpass and caches need, hence HOME and USER.
        "--user", f"{os.getuid()}:{os.getgid()}", "--env", "HOME=/tmp", "--env", "USER=roofscale",
        *(word for key, value in {**request["Environment"], "TRAINING_JOB_NAME": name}.items()
          for word in ("--env", f"{key}={value}")),
        *(word for mount in _mounts(request, folder / host) for word in ("--mount", mount)),
        *(word for key, value in labels.items() for word in ("--label", f"{key}={value}")),
        "--entrypoint", command[0], algorithm["TrainingImage"], *command[1:],
    ]  # fmt: skip


def _mounts(request: Mapping[str, Any], own: Path) -> list[str]:
    """Return the mounts of a host: output and model folders of its own; all hosts share data and checkpoints."""
    return [
        _mount(own / "input/config", f"{_ML}/input/config", "readonly"),
        _mount(own / "output", f"{_ML}/output"),
        _mount(own / "model", f"{_ML}/model"),
        _mount(folder_of(request["CheckpointConfig"]["S3Uri"]), request["CheckpointConfig"]["LocalPath"]),
        *(
            _mount(folder_of(channel["DataSource"]["S3DataSource"]["S3Uri"]),
                   f"{_ML}/input/data/{channel['ChannelName']}", "readonly")
            for channel in request["InputDataConfig"]
        ),
    ]  # fmt: skip


def _mount(source: Path, target: str, *more: str) -> str:
    """Return the value of ``--mount``; Docker parses it as CSV, so a path with a comma is quoted."""
    return _csv("type=bind", f"source={source}", f"target={target}", *more)


def _gpus(count: int, host_index: int) -> str:
    """Return the value of ``--gpus``: ``count`` devices of this machine, disjoint between hosts; also CSV."""
    return _csv(f"device={','.join(str(host_index * count + device) for device in range(count))}")


def _csv(*words: str) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(words)
    return line.getvalue()


def _list_containers(*filters: str) -> list[dict[str, Any]]:
    """Return the records of ``docker inspect`` of the matching containers, ended ones included, sorted by name."""
    words = [word for condition in filters for word in ("--filter", condition)]
    names = _run_docker("ps", "--all", *words, "--format", "{{.Names}}").split()
    inspected: list[dict[str, Any]] = json.loads(_run_docker("inspect", *names)) if names else []
    return sorted(inspected, key=lambda record: str(record["Name"]))


def _remove(name: str) -> None:
    """Remove the containers and the network of a job, if there are any."""
    if names := _run_docker("ps", "--all", "--filter", f"label={_JOB}={name}", "--format", "{{.Names}}").split():
        _run_docker("rm", "--force", *names)
    if _run_docker("network", "ls", "--quiet", "--filter", f"label={_JOB}={name}").strip():
        _run_docker("network", "rm", name)


def _run_docker(*words: str) -> str:
    """Run ``docker`` and return its stdout; with ``logs`` also stderr, to which a container's errors go.

    Raises:
        ConfigError: the command is missing, or it fails.
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
