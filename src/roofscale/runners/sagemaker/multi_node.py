"""The machines of one training job, and how their measurements become one. Pure functions, except for one file read.

The job runs the same program on every machine. A runner on each machine holds its processes to the memory, samples them
and classifies how they ended. Only the first machine's processes write the run folder.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from roofscale.measurement import Measurement, Outcome, ResourceSample
from roofscale.runners.outcome import PEER_FAILED
from roofscale.runners.torchrun import Nodes

RESOURCE_CONFIG = "input/config/resourceconfig.json"  # below /opt/ml
_PER_MACHINE = ("memory/", "cpu/", "disk/", "network/", "gpu/", "system/")


def host_names(count: int) -> tuple[str, ...]:
    """Return SageMaker's names of a job's machines: ``algo-1``, ``algo-2``, ..."""
    return tuple(f"algo-{number}" for number in range(1, count + 1))


def read_resource_config(file: Path) -> Nodes:
    """Return the machines in SageMaker's resource config; this machine alone if there is no such file.

    Source: https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-training-algo-running-container.html
    """
    if not file.exists():
        return Nodes()
    content: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    hosts = tuple(sorted(content["hosts"]))
    return Nodes(hosts, hosts.index(content["current_host"]), content.get("network_interface_name", ""))


def node_folder(checkpoints: Path, rank: int) -> Path:
    """Return a machine's run folder; all machines share one prefix in S3, so their file paths must differ."""
    return checkpoints / f"node{rank}" if rank else checkpoints


def measurement_name(rank: int) -> str:
    """Return the file name of a machine's measurement; the service packs those of all machines into one archive."""
    return f"measurement-node{rank}.json" if rank else "measurement.json"


def merge_measurements(measurements: Sequence[Measurement | None]) -> Measurement | None:
    """Return one measurement of all machines; None if no machine left one.

    It is that of the first machine, with the outcome of the machine that ended first. The other machines' resource
    metrics are added under ``node<index>/``.

    Args:
        measurements: one per machine, in order; None for a machine that left none.
    """
    by_index = {index: own for index, own in enumerate(measurements) if own is not None}
    if not by_index:
        return None
    first = next(iter(by_index.values()))
    ending = min(by_index.values(), key=_follower_rank)
    metrics = dict(first.metrics)
    resources: list[ResourceSample] = []
    for index, own in by_index.items():
        metrics |= of_node(index, own.metrics)
        resources += [ResourceSample(row.time, of_node(index, row.metrics)) for row in own.resources]
    return dataclasses.replace(
        first,
        outcome=ending.outcome,
        detail=ending.detail,
        metrics=metrics,
        resources=tuple(sorted(resources, key=lambda row: row.time)),
    )


def _follower_rank(measurement: Measurement) -> int:
    """Rank how likely a machine ended only because another failed: then it lost a peer or was asked to stop."""
    if measurement.outcome is Outcome.OK or measurement.detail.startswith(PEER_FAILED):
        return 2
    return 1 if measurement.outcome is Outcome.INTERRUPTED else 0


def of_node(index: int, metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of a machine's resources under names of its own, which its system metrics have already.

    Those of the first machine, index 0, keep their names.
    """
    if not index:
        return dict(metrics)
    return {
        name if name.startswith("system/") else f"node{index}/{name}": value
        for name, value in metrics.items()
        if name.startswith(_PER_MACHINE)
    }
