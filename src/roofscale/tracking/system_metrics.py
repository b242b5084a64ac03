"""System metrics of the whole machine: sampled by MLflow's collectors, sent by Roofscale."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor


@contextmanager
def system_metrics(log: Callable[[Mapping[str, float]], None], node: str = "") -> Iterator[None]:
    """Call ``log`` with a sample every ``MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL`` seconds, and when the block ends.

    Uses MLflow's collectors but not its thread, which queries the server at every sample for whether the run is still
    active, and stops if the server does not answer.

    Args:
        log: called with the metrics under MLflow's names.
        node: of this machine, if several log to one run: ``node_0``, as MLflow's own ``MLFLOW_SYSTEM_METRICS_NODE_ID``.
    """
    prefix = f"system/{node}/" if node else "system/"
    collectors: Any = SystemMetricsMonitor(run_id="")  # type: ignore[no-untyped-call]  # never started
    ended = threading.Event()

    def sample() -> dict[str, float]:
        collectors.collect_metrics()
        metrics = {f"{prefix}{name}": value for name, value in collectors.aggregate_metrics().items()}
        for monitor in collectors.monitors:
            monitor.clear_metrics()
        return metrics

    def collect() -> None:
        sample()  # starts the counters; not logged, as its CPU usage is always 0
        last = False
        while not last:
            last = ended.wait(collectors.sampling_interval)
            log(sample())

    thread = threading.Thread(target=collect, name="system metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
