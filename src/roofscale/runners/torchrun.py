"""Torchrun: the command that starts a run's training processes on a machine, and parsing of its error summary."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import psutil

from roofscale.config import RunConfig
from roofscale.errors import ConfigError
from roofscale.runners import child_exec
from roofscale.runners.outcome import ExitEvidence

_LOCALHOST = "127.0.0.1"
_PORT = "29500"  # torchrun's default, on the first of several machines
# Matches "Root Cause (first observed failure)" in the summary, and captures the exit code below it.
_ROOT_CAUSE = re.compile(r"Root Cause[^\n]*\n(?:.*\n)*?\s*exitcode\s*:\s*(-?\d+)")
# Start of the log lines of torch and torchrun: "W1124 16:42:33.123000 4027 torch/distributed/...".
_LOG_LINE = re.compile(r"^(?:\[rank\d+\]:)?\[?[IWE]\d{4} ")


@dataclass(frozen=True)
class Nodes:
    """The machines that train together, and the index of this one."""

    names: tuple[str, ...] = (_LOCALHOST,)
    rank: int = 0  # index of this machine in ``names``; the first one is the master
    network: str = ""  # the network interface between them; empty: chosen by gloo and NCCL

    def environment(self) -> dict[str, str]:
        """Return the environment variables for gloo and NCCL."""
        interface = self.network if len(self.names) > 1 else "lo" if sys.platform == "linux" else ""
        return {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface} if interface else {}


def check_nodes(config: RunConfig, nodes: Nodes) -> None:
    """Check that a config is for this number of machines.

    Raises:
        ConfigError: ``instance_count`` differs from the number of machines.
    """
    if config.instance_count != len(nodes.names):
        raise ConfigError(
            f"instance_count={config.instance_count}: here {len(nodes.names)} would train, and several do as a "
            "SageMaker job only (--runner sagemaker). On one machine, processes=2 takes two of its GPUs."
        )


def torchrun_command(command: Sequence[str], config: RunConfig, nodes: Nodes, cores: int) -> tuple[str, ...]:
    """Return the command that runs ``command`` once per device of this machine; unchanged for one device in all.

    Raises:
        ConfigError: ``instance_count`` differs from the number of machines.
    """
    check_nodes(config, nodes)
    if config.world_size == 1:
        return tuple(command)
    rendezvous: tuple[str, ...] = ("--standalone", "--local-addr", _LOCALHOST)  # on a free port
    if len(nodes.names) > 1:
        rendezvous = (
            *("--nnodes", str(len(nodes.names)), "--node-rank", str(nodes.rank)),
            *("--master-addr", nodes.names[0], "--master-port", _PORT),
        )
    torchrun = (sys.executable, "-m", "torch.distributed.run", *rendezvous, "--nproc-per-node", str(config.processes))
    # torchrun starts each process in a session of its own, so they would survive its kill: child_exec ties them to it.
    return (*torchrun, "--no-python", sys.executable, "-I", "-S", child_exec.__file__, "", "", str(cores), *command)


def processes(torchrun: int) -> list[psutil.Process]:
    """Return the training processes that torchrun has started, without their children; empty before and after."""
    try:
        children: list[psutil.Process] = psutil.Process(torchrun).children()
        return children
    except psutil.Error:
        return []


def with_root_cause(evidence: ExitEvidence) -> ExitEvidence:
    """Return the evidence with the exit code of the process that failed first, and without torchrun's log lines and
    traceback.

    torchrun exits with 1 for any exit codes of its processes, and writes its summary after their messages.
    """
    root_cause = _ROOT_CAUSE.search(evidence.stderr)
    lines = evidence.stderr.partition('Traceback (most recent call last):\n  File "<frozen runpy>"')[0].splitlines()
    stderr = "\n".join(line for line in lines if not _LOG_LINE.match(line))
    return replace(evidence, stderr=stderr, exit_code=int(root_cause[1]) if root_cause else evidence.exit_code)
