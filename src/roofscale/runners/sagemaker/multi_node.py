"""The machines of one training job, and the one measurement of what each of them has seen. Pure functions.

The job runs the same entry on every machine. The first one's processes write the run folder; each has a runner that
holds the processes to the memory, samples what they use and settles how they ended.
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
_OF_ONE_MACHINE = ("memory/", "cpu/", "disk/", "network/", "gpu/", "system/")


def host_names(count: int) -> tuple[str, ...]:
    """What SageMaker calls a job's machines."""
    return tuple(f"algo-{number}" for number in range(1, count + 1))


def resource_config(machines: Sequence[str], current: str, instance_type: str) -> dict[str, Any]:
    """What SageMaker tells each machine of a job in its resource config, see ``machines_of``."""
    group = "homogeneousCluster"
    return {
        "current_host": current,
        "current_instance_type": instance_type,
        "current_group_name": group,
        "hosts": [*machines],
        "instance_groups": [
            {"instance_group_name": group, "instance_type": instance_type, "hosts": [*machines]},
        ],
        "network_interface_name": "eth0",
    }


def read_resource_config(file: Path) -> Nodes:
    """The machines that SageMaker's resource config names; this one alone where there is no such file.

    Source: https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-training-algo-running-container.html
    """
    if not file.exists():
        return Nodes()
    found: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    hosts = tuple(sorted(found["hosts"]))
    return Nodes(hosts, hosts.index(found["current_host"]), found.get("network_interface_name", ""))


def node_folder(checkpoints: Path, place: int) -> Path:
    """The run folder of a machine; all lie in one place in S3, where no two files may have the same name."""
    return checkpoints / _node(place) if place else checkpoints


def measurement_name(place: int) -> str:
    """What a machine's measurement is called; of all machines the service makes one archive."""
    return f"measurement-{_node(place)}.json" if place else "measurement.json"


def merge_measurements(found: Sequence[Measurement | None]) -> Measurement | None:
    """The first machine's measurement, with what the others used under names of their own, and the ending of the one
    that ended first.

    Args:
        found: of each machine in turn what it has left.
    """
    known = {place: one for place, one in enumerate(found) if one is not None}
    if not known:
        return None
    first = known.get(0) or next(iter(known.values()))
    ending = min(known.values(), key=_followed)
    others = {_node(place): one for place, one in known.items() if place}
    resources = [*first.resources] if 0 in known else []
    metrics = dict(first.metrics)
    for node, one in others.items():
        metrics |= _named(node, one.metrics)
        resources += [ResourceSample(row.time, _named(node, row.metrics)) for row in one.resources]
    return dataclasses.replace(
        first,
        outcome=ending.outcome,
        detail=ending.detail,
        metrics=metrics,
        resources=tuple(sorted(resources, key=lambda row: row.time)),
    )


def _followed(one: Measurement) -> int:
    """How likely a machine only ended because another had: once one fails, the others miss it or are asked to stop."""
    if one.outcome is Outcome.OK or one.detail.startswith(PEER_FAILED):
        return 2
    return 1 if one.outcome is Outcome.INTERRUPTED else 0


def _named(node: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"{node}/{name}": value for name, value in metrics.items() if name.startswith(_OF_ONE_MACHINE)}


def _node(place: int) -> str:
    return f"node{place}"
