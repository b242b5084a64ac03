"""The command ``docker``, as local mode uses it: how a job's containers are started, found and removed."""

import csv
import io
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roofscale.compute import GIB, Compute
from roofscale.errors import ConfigError
from roofscale.runners.sagemaker import multi_node
from roofscale.runners.sagemaker.settings import HERE

JOB, LONGEST = "roofscale:job", "roofscale:longest"  # labels: the job's name, and its MaxRuntimeInSeconds
CONFIG = "config"  # in a host's folder: what the service tells the host
_ML = "/opt/ml"
_STOP_SECONDS = 120  # between SIGTERM and SIGKILL, as on SageMaker


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


def container(job: str, host: str) -> str:
    """What Docker calls a job's host; no job has a dot in its name."""
    return f"{job}.{host}"


def start(request: Mapping[str, Any], size: Compute, folder: Path) -> None:
    """Start a job: each host's container once all are there, and before them the network between several.

    Args:
        folder: the job's, with one of each host's in it.

    Raises:
        ConfigError: Docker is not there, or refuses; some of it may be left then, see ``remove``.
    """
    name = request["TrainingJobName"]
    machines = multi_node.host_names(request["ResourceConfig"]["InstanceCount"])
    if len(machines) > 1:
        run_docker("network", "create", "--internal", "--label", f"{JOB}={name}", name)
    for host in machines:
        run_docker(*create_words(request, size, folder, host))
    run_docker("start", *(container(name, host) for host in machines))


def create_words(request: Mapping[str, Any], size: Compute, folder: Path, host: str) -> list[str]:
    """The words for ``docker`` that make the container of one of a job's hosts."""
    algorithm, name = request["AlgorithmSpecification"], request["TrainingJobName"]
    command: list[str] = [*algorithm["ContainerEntrypoint"], *algorithm["ContainerArguments"]]
    machines = multi_node.host_names(request["ResourceConfig"]["InstanceCount"])
    memory = str(int(size.memory_gib * GIB))
    labels = {tag["Key"]: tag["Value"] for tag in request["Tags"]}
    labels |= {JOB: name, LONGEST: str(request["StoppingCondition"]["MaxRuntimeInSeconds"])}
    return [
        "create", "--name", container(name, host), "--hostname", host,
        *(("--network", "none") if len(machines) == 1 else ("--network", name, "--network-alias", host)),
        "--memory", memory, "--memory-swap", memory, "--cpus", str(min(size.vcpus, os.cpu_count() or 1)),
        "--shm-size", str(int(size.memory_gib * GIB / 2)),  # what Linux gives /dev/shm by itself
        *(("--gpus", _gpus(size.gpu_count, machines.index(host))) if size.gpu_count else ()),
        # Files are to belong to who started it; a user without a name or a home is one that Python can do with.
        "--user", f"{os.getuid()}:{os.getgid()}", "--env", "HOME=/tmp", "--env", "USER=roofscale",
        "--env", f"TRAINING_JOB_NAME={name}",
        *(word for mount in _mounts(request, folder / host) for word in ("--mount", mount)),
        *(word for key, value in labels.items() for word in ("--label", f"{key}={value}")),
        "--entrypoint", command[0], algorithm["TrainingImage"], *command[1:],
    ]  # fmt: skip


def _mounts(request: Mapping[str, Any], own: Path) -> list[str]:
    """What a host sees: what it leaves is its own, data and checkpoints are all hosts'."""
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
    """A mount as Docker reads it: a line of CSV, for paths with a comma in them."""
    return _csv("type=bind", f"source={source}", f"target={target}", *more)


def _gpus(count: int, place: int) -> str:
    """A host's share of this machine's GPUs, none of which two hosts have; Docker reads CSV here too."""
    return _csv(f"device={','.join(str(place * count + one) for one in range(count))}")


def _csv(*words: str) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(words)
    return line.getvalue()


def list_containers(*filters: str, over: bool = True) -> list[dict[str, Any]]:
    """What ``docker inspect`` says of the containers that fit, those that are over among them if asked for."""
    words = [word for one in filters for word in ("--filter", one)]
    names = run_docker("ps", *(("--all",) if over else ()), *words, "--format", "{{.Names}}").split()
    inspected: list[dict[str, Any]] = json.loads(run_docker("inspect", *names)) if names else []
    return sorted(inspected, key=lambda one: str(one["Name"]))


def job_containers(name: str) -> list[dict[str, Any]]:
    """What ``docker inspect`` says of each of a job's containers."""
    return list_containers(f"label={JOB}={name}")


def stop(containers: list[str]) -> None:
    """Ask containers to stop, all at once; returns at once too."""
    subprocess.Popen(  # it waits until they have ended, and is not to hear a second Ctrl-C
        ["docker", "stop", "-t", str(_STOP_SECONDS), *containers],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def remove(name: str) -> None:
    """Remove what there is of a job's containers and network."""
    if left := run_docker("ps", "--all", "--filter", f"label={JOB}={name}", "--format", "{{.Names}}").split():
        run_docker("rm", "--force", *left)
    if run_docker("network", "ls", "--quiet", "--filter", f"label={JOB}={name}").strip():
        run_docker("network", "rm", name)


def run_docker(*words: str) -> str:
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
