"""MLflow's own system metrics of the whole machine, sent by our means."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor


@contextmanager
def system_metrics(log: Callable[[Mapping[str, float]], None]) -> Iterator[None]:
    """Hand over a sample every ``MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL`` seconds, and one when the block ends.

    MLflow's collectors are used and not its thread: that one asks the server at every sample whether the run still
    goes on, and ends itself when there is no answer.
    """
    collectors: Any = SystemMetricsMonitor(run_id="")  # type: ignore[no-untyped-call]  # never started
    over = threading.Event()

    def look() -> dict[str, float]:
        collectors.collect_metrics()
        found = {f"system/{name}": value for name, value in collectors.aggregate_metrics().items()}
        for monitor in collectors.monitors:
            monitor.clear_metrics()
        return found

    def collect() -> None:
        look()  # at no more than where the counters begin: the CPU's use since then would be 0
        ended = False
        while not ended:
            ended = over.wait(collectors.sampling_interval)
            log(look())

    thread = threading.Thread(target=collect, name="system metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
