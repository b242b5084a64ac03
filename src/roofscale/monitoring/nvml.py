"""GPU use seen from outside, through NVIDIA's management library (nvidia-ml-py) where there is one."""

import contextlib
import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class GpuUsage:
    """All visible GPUs together at one moment."""

    utilisation: float  # share of the last sample period with a kernel running, mean over the GPUs
    memory_bytes: int  # held by the run's processes, summed over the GPUs
    power_w: float  # summed


class GpuMonitor:
    """NVIDIA's management library, opened once; without a GPU or driver it is falsy and ``use`` gives None."""

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
        """Let go of the library."""
        if self._nvml is not None:
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()
        self._nvml, self._handles = None, []

    def use(self, pids: Iterable[int]) -> GpuUsage | None:
        """What ``pids`` hold and how busy the GPUs are, or None where there is no GPU or it does not answer."""
        if not self._handles:
            return None
        try:
            busy = [self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100 for handle in self._handles]
            power = [self._nvml.nvmlDeviceGetPowerUsage(handle) / 1000 for handle in self._handles]
            held = [self._used_mib(handle, frozenset(pids)) for handle in self._handles]
        except self._nvml.NVMLError:
            return None
        return GpuUsage(sum(busy) / len(busy), sum(held), sum(power))

    def _used_mib(self, handle: Any, pids: frozenset[int]) -> int:
        """Bytes held by ``pids``; by everybody where the driver knows them by other ids, as it does in a container."""
        running = self._nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        ours = [process.usedGpuMemory for process in running if process.pid in pids]
        if ours and None not in ours:
            return sum(ours)
        return int(self._nvml.nvmlDeviceGetMemoryInfo(handle).used)
