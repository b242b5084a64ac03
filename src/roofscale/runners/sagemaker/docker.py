"""Calls of the command ``docker`` for local mode: start, list, stop and remove the containers of a job."""

import csv
import io
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roofscale import compute
from roofscale.addresses import S3
from roofscale.compute import GIB
from roofscale.errors import ConfigError
from roofscale.runners.sagemaker import multi_node
from roofscale.runners.sagemaker.settings import HERE

JOB, LONGEST = "roofscale:job", "roofscale:longest"  # labels: the job's name, and its MaxRuntimeInSeconds
CONFIG = "config"  # folder in a host's folder, with resourceconfig.json
_ML = "/opt/ml"
_STOP_SECONDS = 120  # between SIGTERM and SIGKILL, as on SageMaker


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


def container(job: str, host: str) -> str:
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
    labels |= {JOB: name, LONGEST: str(request["StoppingCondition"]["MaxRuntimeInSeconds"])}
    return [
        "create", "--name", container(name, host), "--hostname", host,
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
        _mount(own / CONFIG, f"{_ML}/{Path(multi_node.RESOURCE_CONFIG).parent}", "readonly"),
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


def list_containers(*filters: str) -> list[dict[str, Any]]:
    """Return the records of ``docker inspect`` of the matching containers, ended ones included, sorted by name."""
    words = [word for condition in filters for word in ("--filter", condition)]
    names = run_docker("ps", "--all", *words, "--format", "{{.Names}}").split()
    inspected: list[dict[str, Any]] = json.loads(run_docker("inspect", *names)) if names else []
    return sorted(inspected, key=lambda record: str(record["Name"]))


def stop(containers: list[str]) -> None:
    """Ask containers to stop, all at the same time, without waiting for it."""
    subprocess.Popen(  # it waits for their end; in a session of its own, so that a second Ctrl-C does not reach it
        ["docker", "stop", "-t", str(_STOP_SECONDS), *containers],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def remove(name: str) -> None:
    """Remove the containers and the network of a job, if there are any."""
    if names := run_docker("ps", "--all", "--filter", f"label={JOB}={name}", "--format", "{{.Names}}").split():
        run_docker("rm", "--force", *names)
    if run_docker("network", "ls", "--quiet", "--filter", f"label={JOB}={name}").strip():
        run_docker("network", "rm", name)


def run_docker(*words: str) -> str:
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
