"""Several processes for one run: the call of torchrun that starts them on a machine, and what it says at their end."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import psutil

from roofscale.config import RunConfig
from roofscale.errors import ConfigError
from roofscale.runners import child_exec
from roofscale.runners.outcome import ExitEvidence

_HERE = "127.0.0.1"
_PORT = "29500"  # torchrun's own default; on the first of several machines
_SUMMARY = "torch.distributed.elastic.multiprocessing.errors.ChildFailedError"
# Of the summary: "Root Cause (first observed failure)", and the exit code below it.
_ROOT_CAUSE = re.compile(r"Root Cause[^\n]*\n(?:.*\n)*?\s*exitcode\s*:\s*(-?\d+)")
# How torch's and the launcher's own log lines begin: "W1124 16:42:33.123000 4027 torch/distributed/...".
_LOG_LINE = re.compile(r"^(?:\[rank\d+\]:)?\[?[IWE]\d{4} ")


@dataclass(frozen=True)
class Nodes:
    """The machines that train together, and which of them this is."""

    names: tuple[str, ...] = (_HERE,)
    place: int = 0
    network: str = ""  # the interface between them; empty: whichever is found

    def environment(self) -> dict[str, str]:
        """What gloo and NCCL have to be told."""
        interface = self.network if len(self.names) > 1 else "lo" if sys.platform == "linux" else ""
        return {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface} if interface else {}


def check_nodes(config: RunConfig, machines: Nodes) -> None:
    """Refuse a config for another number of machines.

    Raises:
        ConfigError: the config wants more machines, or fewer.
    """
    if config.instance_count != len(machines.names):
        raise ConfigError(
            f"instance_count={config.instance_count}: here {len(machines.names)} would train, and several do as a "
            "SageMaker job only (--runner sagemaker). On one machine, processes=2 takes two of its GPUs."
        )


def torchrun_command(command: Sequence[str], config: RunConfig, machines: Nodes, cores: int) -> tuple[str, ...]:
    """The command that runs ``command`` once a device of this machine: itself where the config wants one device.

    Raises:
        ConfigError: the config wants more machines, or fewer.
    """
    check_nodes(config, machines)
    if config.world_size == 1:
        return tuple(command)
    where: tuple[str, ...] = ("--standalone", "--local-addr", _HERE)  # on a free port
    if len(machines.names) > 1:
        where = (
            *("--nnodes", str(len(machines.names)), "--node-rank", str(machines.place)),
            *("--master-addr", machines.names[0], "--master-port", _PORT),
        )
    torchrun = (sys.executable, "-m", "torch.distributed.run", *where, "--nproc-per-node", str(config.processes))
    # torchrun gives each process a session of its own: killed, it would leave them behind.
    return (*torchrun, "--no-python", sys.executable, "-I", "-S", child_exec.__file__, "", "", str(cores), *command)


def processes(torchrun: int) -> list[psutil.Process]:
    """What torchrun has started, without what these have started; empty before it has, and after its end."""
    try:
        started: list[psutil.Process] = psutil.Process(torchrun).children()
        return started
    except psutil.Error:
        return []


def with_root_cause(evidence: ExitEvidence) -> ExitEvidence:
    """The same evidence with the exit code of the process that failed first, and without torchrun's words.

    torchrun itself ends with 1, whatever its processes ended with, and after their last words.
    """
    found = _ROOT_CAUSE.search(evidence.stderr)
    lines = evidence.stderr.partition('Traceback (most recent call last):\n  File "<frozen runpy>"')[0].splitlines()
    said = "\n".join(line for line in lines if not _LOG_LINE.match(line))
    return replace(evidence, stderr=said, exit_code=int(found[1]) if found else evidence.exit_code)
