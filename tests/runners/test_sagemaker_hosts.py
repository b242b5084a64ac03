"""Several machines of one job: who each is, and one measurement of what they have left."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from roofscale import training_job
from roofscale.measurement import Measurement, Outcome, ResourceSample
from roofscale.runners.outcome import PEER_FAILED
from roofscale.runners.sagemaker import multi_node
from roofscale.runners.torchrun import Nodes
from roofscale.tracking.system_metrics import system_metrics

ROW = ResourceSample(2.0, {"cpu/utilisation": 0.5})
FIRST = Measurement(
    Outcome.OK, "6 steps", "abc", metrics={"memory/peak_mib": 100.0, "train/steps": 6.0}, resources=(ROW,)
)
SECOND = Measurement(
    Outcome.OK,
    "",
    "abc",
    metrics={"memory/peak_mib": 90.0, "gpu/utilisation": 0.9, "train/steps": 0.0, "speed/run_seconds": 9.0},
    resources=(ResourceSample(1.0, {"cpu/utilisation": 0.4}),),
)


def written(top: Path, current: str, *names: str) -> Path:
    file = top / multi_node.RESOURCE_CONFIG
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"current_host": current, "hosts": names, "network_interface_name": "eth0"}))
    return file


def test_machines_are_those_of_the_resource_config_in_one_order_on_all(tmp_path: Path) -> None:
    assert multi_node.read_resource_config(written(tmp_path, "algo-2", "algo-2", "algo-1")) == Nodes(
        ("algo-1", "algo-2"), 1, "eth0"
    )
    assert multi_node.read_resource_config(written(tmp_path, "algo-1", "algo-1", "algo-2")).rank == 0
    assert multi_node.read_resource_config(tmp_path / "none.json") == Nodes()


def test_the_system_metrics_of_several_machines_have_mlflows_names() -> None:
    sampled: list[Mapping[str, float]] = []
    with system_metrics(sampled.append, "node_1"):
        pass
    names = set(sampled[-1])
    assert "system/node_1/cpu_utilization_percentage" in names
    assert all(name.startswith("system/node_1/") for name in names)
    assert set(multi_node.of_node(1, sampled[-1])) == names


def test_no_two_machines_leave_a_file_of_the_same_name() -> None:
    folders = [multi_node.node_folder(Path("/opt/ml/checkpoints"), rank) for rank in range(3)]
    assert folders[0] == Path("/opt/ml/checkpoints"), "where a job of one machine has it"
    assert len(set(folders)) == 3
    assert multi_node.measurement_name(0) == "measurement.json"
    assert len({multi_node.measurement_name(rank) for rank in range(3)}) == 3


def test_what_other_machines_used_has_names_of_its_own() -> None:
    found = multi_node.merge_measurements([FIRST, SECOND])
    assert found is not None
    assert found.metrics == {
        "memory/peak_mib": 100.0,
        "train/steps": 6.0,
        "node1/memory/peak_mib": 90.0,
        "node1/gpu/utilisation": 0.9,
    }
    assert found.resources == (ResourceSample(1.0, {"node1/cpu/utilisation": 0.4}), ROW)
    assert multi_node.merge_measurements([FIRST]) == FIRST
    assert multi_node.merge_measurements([None, None]) is None


@pytest.mark.parametrize(
    "lost", [FIRST, None, Measurement(Outcome.CRASHED, f"{PEER_FAILED}: Connection closed", "abc")]
)
def test_the_machine_that_ended_first_says_what_the_run_came_to(lost: Measurement | None) -> None:
    dead = Measurement(Outcome.HOST_OOM, "killed by the kernel", "abc")
    followed = Measurement(Outcome.CRASHED, f"{PEER_FAILED}: Connection closed by peer", "abc")
    asked = Measurement(Outcome.INTERRUPTED, "asked to stop before it was done", "abc")
    stopped = multi_node.merge_measurements([asked, dead, followed])
    assert stopped is not None
    assert stopped.outcome is Outcome.HOST_OOM, "the others are asked to stop for it"
    found = multi_node.merge_measurements([lost if lost is not FIRST else followed, dead, followed])
    assert found is not None
    assert (found.outcome, found.detail) == (Outcome.HOST_OOM, "killed by the kernel")


def test_a_machine_that_only_followed_leaves_no_cause(tmp_path: Path) -> None:
    training_job.write_results(
        Measurement(Outcome.CRASHED, f"{PEER_FAILED}: Connection closed by peer", "abc"), tmp_path, rank=1
    )
    assert (tmp_path / "data/measurement-node1.json").exists()
    assert not (tmp_path / "failure").exists()
    training_job.write_results(Measurement(Outcome.HOST_OOM, "killed by the kernel", "abc"), tmp_path, rank=1)
    assert (tmp_path / "failure").read_text() == "host_oom: killed by the kernel"
