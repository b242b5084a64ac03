"""The local runner: one run config in, one measurement out, whatever happens in between.

The run is a process of its own, so that a run that dies takes nobody with it, and so that what is measured is the run
and not whoever looks on. The same runner works inside a container, where it is process 1.
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

if TYPE_CHECKING:
    from roofscale.runners.build_measurement import RunObservation

EVENTS = "events.jsonl"
MEASUREMENT = "measurement.json"
TRAIN = (sys.executable, "-m", "roofscale.train")
_STDERR_TAIL_BYTES = 16_384
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# A watchdog has to look more often than a monitor.
_INTERVAL_SECONDS = {True: 0.1, False: 0.2}


@dataclass
class LocalRunner:
    """Runs a config in its own process on this machine, held to the memory and the cores of its compute.

    A run folder that holds a checkpoint is resumed. SIGTERM and SIGINT to this process are passed on to the run, which
    writes a checkpoint and ends (a second one ends it at once); the measurement then says ``interrupted``.
    """

    run_dir: Path  # config.json, events.jsonl, checkpoints, stderr.log, measurement.json
    listener: Listener = field(default_factory=SilentListener)
    command: Sequence[str] = TRAIN  # the run folder is appended; run in each of the config's processes
    grace_seconds: float = 100.0  # SageMaker kills a job 120 s after it has asked it to stop
    use_cgroup: bool = True  # False: hold the memory by the watchdog even where a cgroup can be made
    interrupt: StopRequest = field(default_factory=StopRequest)  # ask() it from another thread to stop the run
    machines: Nodes = field(default_factory=Nodes)  # that train together; this one alone

    def __call__(self, config: RunConfig) -> Measurement:
        """Run, and save the measurement in the run folder.

        Raises:
            ConfigError: the compute is not known, or the config wants more machines than there are.
            OSError: the run folder cannot be written, or the command cannot be started.
        """
        size = compute.get(config.compute)
        allowed = compute.resource_limits(size)
        command = (*torchrun.torchrun_command(self.command, config, self.machines, allowed.cores), str(self.run_dir))
        self.run_dir.mkdir(parents=True, exist_ok=True)
        write_json(self.run_dir / "config.json", config.as_dict())
        parent = cgroup.own_memory() if self.use_cgroup else None
        with MemoryLimit(allowed.memory_bytes, parent) as limit, self.interrupt.on_signals():
            supervised = self._supervise(command, config, allowed, limit)
        from roofscale.runners.build_measurement import build_measurement

        measurement = build_measurement(config, size, allowed, supervised)
        measurement.save(self.run_dir / MEASUREMENT)
        return measurement

    def _supervise(
        self, command: Sequence[str], config: RunConfig, allowed: ResourceLimits, limit: MemoryLimit
    ) -> "RunObservation":
        events = EventTail(self.run_dir / EVENTS, from_end=True)
        started = time.time()
        with _append(self.run_dir / "stdout.log") as out, _append(self.run_dir / "stderr.log") as err:
            stderr_start = err.tell()
            child = self._start(command, config, allowed, limit, out, err)
        # Two seconds of SciPy, while the child is at its own imports.
        threading.Thread(
            target=importlib.import_module, args=("roofscale.runners.build_measurement",), daemon=True
        ).start()
        supervisor = Supervisor(
            child,
            limit,
            events,
            self.listener,
            self.interrupt,
            timeout_seconds=config.timeout_seconds,
            grace_seconds=self.grace_seconds,
            together=config.world_size > 1,
        )
        monitor = _watch(child, supervisor, allowed, limit)
        supervisor.forward(monitor)
        stderr = _tail(self.run_dir / "stderr.log", stderr_start)
        evidence = _evidence(child.returncode, supervisor, limit, stderr, config.timeout_seconds)
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
            limit=limit.description,
            resources=monitor.resources,
        )

    def _start(
        self,
        command: Sequence[str],
        config: RunConfig,
        allowed: ResourceLimits,
        limit: MemoryLimit,
        out: IO[bytes],
        err: IO[bytes],
    ) -> "subprocess.Popen[bytes]":
        threads = str(config.threads or max(1, allowed.cores // config.processes))
        group = str(limit.group.path) if limit.group else ""
        return subprocess.Popen(
            [
                sys.executable,
                "-I",
                "-S",
                child_exec.__file__,
                str(os.getpid()),
                group,
                str(allowed.cores),
                *command,
            ],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env={
                **os.environ,
                **dict.fromkeys(_THREAD_VARIABLES, threads),
                **(self.machines.environment() if config.world_size > 1 else {}),
            },
            start_new_session=True,
        )


def _watch(
    child: "subprocess.Popen[bytes]", supervisor: Supervisor, allowed: ResourceLimits, limit: MemoryLimit
) -> Monitor:
    """Watch the child to its end, and leave nothing of it behind, whatever fails here."""
    try:
        monitor = Monitor(
            child.pid,
            limit.group,
            cores=allowed.cores,
            interval=_INTERVAL_SECONDS[limit.group is None],
            limit_mib=limit.watchdog_mib,
            on_over=supervisor.over_limit,
        )
        with monitor:
            supervisor.watch(monitor)
    finally:
        supervisor.kill()  # its loader processes, or all of it where something here failed
        child.wait()
    return monitor


def _evidence(exit_code: int, supervisor: Supervisor, limit: MemoryLimit, stderr: str, timeout: float) -> ExitEvidence:
    return ExitEvidence(
        exit_code=exit_code,
        watchdog=supervisor.watchdog,
        timed_out=supervisor.timed_out,
        interrupted=supervisor.interrupted,
        # Around the run's cgroup, a kill may have hit somebody else: it says nothing of a run that ended well.
        oom_kills=limit.oom_kills() if limit.group or exit_code else 0,
        stderr=stderr,
        end=supervisor.end,
        limit=limit.description,
        timeout_seconds=timeout,
    )


def _append(file: Path) -> IO[bytes]:
    return file.open("ab")


def _tail(file: Path, start: int) -> str:
    """The last of what was written after ``start``."""
    with contextlib.suppress(OSError), file.open("rb") as stream:
        stream.seek(max(start, file.stat().st_size - _STDERR_TAIL_BYTES))
        return stream.read().decode(errors="replace")
    return ""
