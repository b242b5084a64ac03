"""GPU use of a run's processes, read through NVIDIA's management library NVML (package nvidia-ml-py) if present."""

import contextlib
import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class GpuUsage:
    """The use of all visible GPUs at one moment."""

    utilisation: float  # share of NVML's last sample period with a kernel running, mean over the GPUs
    memory_bytes: int  # used by the run's processes, summed over the GPUs
    power_w: float  # summed over the GPUs


class GpuMonitor:
    """A session with NVML; without a GPU, driver or package it is falsy and ``use`` returns None."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._handles: list[Any] = []
        with contextlib.suppress(Exception):  # no package, no driver, no GPU: each has an exception type of its own
            nvml = importlib.import_module("pynvml")
            nvml.nvmlInit()
            self._handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
            self._nvml = nvml

    def __bool__(self) -> bool:
        return bool(self._handles)

    def close(self) -> None:
        """Shut NVML down."""
        if self._nvml is not None:
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()
        self._nvml, self._handles = None, []

    def use(self, pids: Iterable[int]) -> GpuUsage | None:
        """Read the GPU use of ``pids``; None if there is no GPU or NVML reports an error."""
        if not self._handles:
            return None
        try:
            utilisation = [self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100 for handle in self._handles]
            power = [self._nvml.nvmlDeviceGetPowerUsage(handle) / 1000 for handle in self._handles]
            memory = [self._used_bytes(handle, frozenset(pids)) for handle in self._handles]
        except self._nvml.NVMLError:
            return None
        return GpuUsage(sum(utilisation) / len(utilisation), sum(memory), sum(power))

    def _used_bytes(self, handle: Any, pids: frozenset[int]) -> int:
        """Return the bytes used by ``pids``; by all processes if the driver knows other ids, as in a container."""
        running = self._nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        ours = [process.usedGpuMemory for process in running if process.pid in pids]
        if ours and None not in ours:
            return sum(ours)
        return int(self._nvml.nvmlDeviceGetMemoryInfo(handle).used)
