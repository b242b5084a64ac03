"""Local runner: executes one run config on this machine and returns its measurement, even if the run crashes.

The training process is separate from the launcher, so that a crash does not end the launcher, and the measured memory
and CPU time are those of the run alone. The same runner works inside a container, where it is process 1.
"""

import contextlib
import importlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from roofscale import cgroup, compute
from roofscale.compute import ResourceLimits
from roofscale.config import RunConfig
from roofscale.files import write_json
from roofscale.measurement import Measurement
from roofscale.monitoring.sampler import Monitor
from roofscale.runners import child_exec, torchrun
from roofscale.runners.events import EventTail
from roofscale.runners.memory_limit import MemoryLimit
from roofscale.runners.outcome import ExitEvidence, classify
from roofscale.runners.supervise import Listener, SilentListener, StopRequest, Supervisor
from roofscale.runners.torchrun import Nodes
from roofscale.train import malloc

if TYPE_CHECKING:
    from roofscale.runners.build_measurement import RunObservation

EVENTS = "events.jsonl"
MEASUREMENT = "measurement.json"
TRAIN = (sys.executable, "-m", "roofscale.train")
_STDERR_TAIL_BYTES = 16_384
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# Seconds between memory samples: fewer if a watchdog enforces the limit, as memory can grow past it between two.
_WATCHDOG_INTERVAL, _CGROUP_INTERVAL = 0.1, 0.2


@dataclass
class LocalRunner:
    """Runner for a separate process on this machine, limited to the memory and the cores of the config's compute.

    A run folder that holds a checkpoint is resumed. SIGTERM and SIGINT to this process are forwarded to the run, which
    writes a checkpoint and exits (a second one kills it); the outcome of the measurement is then ``interrupted``.
    """

    run_dir: Path  # config.json, events.jsonl, checkpoints, stderr.log, measurement.json
    listener: Listener = field(default_factory=SilentListener)
    command: Sequence[str] = TRAIN  # the run folder is appended; run in each of the config's processes
    grace_seconds: float = 100.0  # SageMaker kills a job 120 s after the stop request
    use_cgroup: bool = True  # False: limit the memory by the watchdog even if a cgroup can be made
    stop_request: StopRequest = field(default_factory=StopRequest)  # call request() from another thread to stop the run
    nodes: Nodes = field(default_factory=Nodes)  # that train together; default: this one alone
    needed_after: Sequence[str] = ()  # modules that the caller needs after the run, imported while the child starts

    def __call__(self, config: RunConfig) -> Measurement:
        """Run the config, and save the measurement in the run folder.

        Raises:
            ConfigError: the compute is unknown, or ``instance_count`` differs from the number of machines.
            OSError: the run folder cannot be written, or the command cannot be started.
        """
        size = compute.get(config.compute)
        limits = compute.resource_limits(size)
        command = (*torchrun.torchrun_command(self.command, config, self.nodes, limits.cores), str(self.run_dir))
        self.run_dir.mkdir(parents=True, exist_ok=True)
        write_json(self.run_dir / "config.json", config.as_dict())
        parent = cgroup.own_memory() if self.use_cgroup else None
        with MemoryLimit(limits.memory_bytes, parent) as memory_limit, self.stop_request.on_signals():
            observation = self._supervise(command, config, limits, memory_limit)
        # Not at the top: a job sets its signal handlers before it imports NumPy.
        from roofscale.runners.build_measurement import build_measurement

        measurement = build_measurement(config, size, limits, observation)
        measurement.save(self.run_dir / MEASUREMENT)
        return measurement

    def _supervise(
        self, command: Sequence[str], config: RunConfig, limits: ResourceLimits, memory_limit: MemoryLimit
    ) -> "RunObservation":
        """Start the training process, supervise it until it ends, and classify its outcome."""
        events = EventTail(self.run_dir / EVENTS, from_end=True)
        started = time.time()
        with (self.run_dir / "stdout.log").open("ab") as out, (self.run_dir / "stderr.log").open("ab") as err:
            stderr_start = err.tell()  # a resumed run must not be judged by what an earlier process wrote
            child = self._start(command, config, limits, memory_limit, out, err)
        threading.Thread(target=self._import_needed, daemon=True).start()
        supervisor = Supervisor(
            child,
            memory_limit,
            events,
            self.listener,
            self.stop_request,
            timeout_seconds=config.timeout_seconds,
            grace_seconds=self.grace_seconds,
            is_torchrun=config.world_size > 1,
        )
        monitor = _watch(child, supervisor, limits, memory_limit)
        supervisor.forward(monitor)
        stderr = _tail(self.run_dir / "stderr.log", stderr_start)
        evidence = _evidence(child.returncode, supervisor, memory_limit, stderr, config.timeout_seconds)
        outcome, detail = classify(torchrun.with_root_cause(evidence) if config.world_size > 1 else evidence)
        from roofscale.runners.build_measurement import RunObservation

        return RunObservation(
            outcome=outcome,
            detail=detail,
            started=started,
            ended=time.time(),
            events=EventTail(self.run_dir / EVENTS).read(),
            memory=monitor.points,
            metrics=monitor.summary(),
            source=monitor.source,
            limit=memory_limit.description,
            resources=monitor.resources,
        )

    def _import_needed(self) -> None:
        """Import what is needed after the run, while the child is busy with its own imports; takes seconds."""
        for name in ("scipy.stats", *self.needed_after):  # SciPy for the measurement
            importlib.import_module(name)

    def _start(
        self,
        command: Sequence[str],
        config: RunConfig,
        limits: ResourceLimits,
        memory_limit: MemoryLimit,
        out: IO[bytes],
        err: IO[bytes],
    ) -> "subprocess.Popen[bytes]":
        """Start the training process (or torchrun) through ``child_exec``, as leader of a session of its own."""
        threads = str(config.threads or max(1, limits.cores // config.processes))
        group = str(memory_limit.group.path) if memory_limit.group else ""
        return subprocess.Popen(
            [sys.executable, "-I", "-S", child_exec.__file__, str(os.getpid()), group, str(limits.cores), *command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env={
                **os.environ,
                **malloc.training_environment(),
                **dict.fromkeys(_THREAD_VARIABLES, threads),
                **(self.nodes.environment() if config.world_size > 1 else {}),
            },
            start_new_session=True,
        )


def _watch(
    child: "subprocess.Popen[bytes]", supervisor: Supervisor, limits: ResourceLimits, memory_limit: MemoryLimit
) -> Monitor:
    """Monitor the child until it ends; kill all its processes, even if the monitoring fails."""
    try:
        monitor = Monitor(
            child.pid,
            memory_limit.group,
            cores=limits.cores,
            interval=_CGROUP_INTERVAL if memory_limit.group else _WATCHDOG_INTERVAL,
            limit_mib=memory_limit.watchdog_mib,
            on_limit_exceeded=supervisor.kill_over_limit,
        )
        with monitor:
            supervisor.watch(monitor)
    finally:
        supervisor.kill()  # its loader processes, or all its processes if something above failed
        child.wait()
    return monitor


def _evidence(
    exit_code: int, supervisor: Supervisor, memory_limit: MemoryLimit, stderr: str, timeout: float
) -> ExitEvidence:
    return ExitEvidence(
        exit_code=exit_code,
        watchdog=supervisor.watchdog,
        timed_out=supervisor.timed_out,
        interrupted=supervisor.interrupted,
        # Without a cgroup of the run's own the count includes other processes: ignore it if the run exited with 0.
        oom_kills=memory_limit.oom_kills() if memory_limit.group or exit_code else 0,
        stderr=stderr,
        end=supervisor.end,
        limit=memory_limit.description,
        timeout_seconds=timeout,
    )


def _tail(file: Path, start: int) -> str:
    """Return the last 16 KiB of what was written after byte ``start``; empty if the file cannot be read."""
    with contextlib.suppress(OSError), file.open("rb") as stream:
        stream.seek(max(start, file.stat().st_size - _STDERR_TAIL_BYTES))
        return stream.read().decode(errors="replace")
    return ""
