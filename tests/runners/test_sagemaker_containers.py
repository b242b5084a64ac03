"""Local mode: what Docker is asked, and what its answers mean; a script stands in for Docker."""

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
from tests.runners.sagemaker_settings import CONFIG

from roofscale.errors import ConfigError
from roofscale.measurement import Outcome
from roofscale.runners.outcome import PEER_FAILED
from roofscale.runners.sagemaker import multi_node
from roofscale.runners.sagemaker import request as requests
from roofscale.runners.sagemaker.job import Job
from roofscale.runners.sagemaker.job_outcome import job_outcome
from roofscale.runners.sagemaker.local_mode import LocalModeClient, create_words, describe_ended, folder_of
from roofscale.runners.sagemaker.settings import HERE, SageMakerSettings, load

JOB = Job("roofscale-train-abc")
BEGAN, OVER = "2026-11-24T12:00:00.123456789Z", "2026-11-24T12:01:00.5Z"
# Says what the file `answer` next to it holds for its first word, and writes its words down, one call a line.
DOCKER = """#!/usr/bin/env python3
import json, pathlib, sys
here = pathlib.Path(__file__).parent
with open(here / "calls", "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
said = json.loads((here / "answers").read_text()).get(sys.argv[1], "")
if isinstance(said, int):
    sys.exit("refused")
print(said)
"""


class Docker:
    """A stand-in for the command ``docker``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "docker").write_text(DOCKER)
        (folder / "docker").chmod(0o755)
        self.answers()

    def answers(self, **by_word: Any) -> None:
        """What it says to each first word; a number: it refuses."""
        said = {word: text if isinstance(text, int | str) else json.dumps(text) for word, text in by_word.items()}
        (self.folder / "answers").write_text(json.dumps(said))

    @property
    def calls(self) -> list[list[str]]:
        lines = (self.folder / "calls").read_text().splitlines() if (self.folder / "calls").exists() else []
        return [json.loads(line) for line in lines]


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Docker:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return Docker(tmp_path / "bin")


@pytest.fixture
def settings(tmp_path: Path) -> SageMakerSettings:
    return load({"ROOFSCALE_SAGEMAKER_IMAGE": "roofscale", "ROOFSCALE_SAGEMAKER_LOCAL_MODE": "true"}, tmp_path)


def asked(settings: SageMakerSettings, **knobs: Any) -> dict[str, Any]:
    config = CONFIG.with_overrides({"data_root": f"s3://{HERE}/data, all", **knobs})
    return requests.build_request(config, settings, JOB, {"experiment": "roofscale-train"})


def inspected(status: str = "exited", code: int = 0, host: str = "algo-1", **state: Any) -> dict[str, Any]:
    times = {"StartedAt": BEGAN, "FinishedAt": OVER}
    labels = {"roofscale:longest": "900", "roofscale:job": JOB.name}
    return {
        "Name": f"/{JOB.name}.{host}",
        "State": {"Status": status, "ExitCode": code, "OOMKilled": False, **times, **state},
        "Config": {"Labels": labels, "Hostname": host},
    }


def test_an_image_is_all_that_local_mode_needs(settings: SageMakerSettings, tmp_path: Path) -> None:
    assert settings.prefix == str(tmp_path / "runs/containers")
    assert folder_of(requests.config_uri(settings, JOB)) == tmp_path / "runs/containers" / JOB.key / "config"


def test_a_container_gets_what_a_job_gets(settings: SageMakerSettings, tmp_path: Path) -> None:
    request = asked(settings, compute="ml.m5.large")
    words = create_words(request, tmp_path / "job", "algo-1")
    said = dict(itertools.pairwise(words))
    assert said["--memory"] == said["--memory-swap"] == str(8 * 2**30)
    assert said["--network"] == "none"
    assert words[words.index("--entrypoint") :] == [
        "--entrypoint", "python", "roofscale", *request["AlgorithmSpecification"]["ContainerEntrypoint"][1:],
        *request["AlgorithmSpecification"]["ContainerArguments"],
    ]  # fmt: skip
    mounts = [word for before, word in itertools.pairwise(words) if before == "--mount"]
    key = tmp_path / "runs/containers" / JOB.key
    assert f"type=bind,source={tmp_path}/job/algo-1/output,target=/opt/ml/output" in mounts
    assert f"type=bind,source={key}/folder,target=/opt/ml/checkpoints" in mounts
    assert f"type=bind,source={key}/config,target=/opt/ml/input/data/config,readonly" in mounts
    assert 'type=bind,"source=/data, all/rid",target=/opt/ml/input/data/rid,readonly' in mounts
    assert "--gpus" not in words


def test_hosts_share_data_and_checkpoints_and_have_a_name_and_an_output_each(
    settings: SageMakerSettings, tmp_path: Path
) -> None:
    request = asked(settings, compute="ml.m5.large", instance_count=2)
    first, second = (create_words(request, tmp_path / "job", host) for host in multi_node.host_names(2))
    assert [ours.replace("algo-1", "algo-2") for ours in first] == second, "they differ by the host and nothing else"
    said = dict(itertools.pairwise(second))
    assert (said["--name"], said["--hostname"]) == (f"{JOB.name}.algo-2", "algo-2")
    assert (said["--network"], said["--network-alias"]) == (JOB.name, "algo-2")
    assert "--publish" not in second
    mounts = [word for before, word in itertools.pairwise(second) if before == "--mount"]
    assert {mount.rpartition("target=")[2] for mount in mounts if "algo-2" in mount} == {
        "/opt/ml/input/config,readonly", "/opt/ml/output", "/opt/ml/model"
    }  # fmt: skip


def test_an_instance_with_gpus_asks_for_them_and_each_host_for_its_own(
    settings: SageMakerSettings, tmp_path: Path
) -> None:
    def gpus(name: str, host: str) -> str:
        words = create_words(asked(settings, compute=name, instance_count=2), tmp_path, host)
        return words[words.index("--gpus") + 1]

    assert (gpus("ml.g5.xlarge", "algo-1"), gpus("ml.g5.xlarge", "algo-2")) == ("device=0", "device=1")
    assert gpus("ml.g5.12xlarge", "algo-2") == '"device=4,5,6,7"', "as Docker reads a list within its CSV"


def test_what_lies_in_s3_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"s3://roofs/data: local_mode has no S3; expected s3://local/ABSOLUTE"):
        folder_of("s3://roofs/data")


@pytest.mark.parametrize(
    ("found", "why", "said", "outcome", "word"),
    [
        (inspected(code=1), "", "data_error: no images", Outcome.DATA_ERROR, "no images"),
        (inspected(code=137, OOMKilled=True), "", "", Outcome.HOST_OOM, "lower batch_size"),
        (inspected(code=137), "", "step 3: loss 0.5", Outcome.INTERRUPTED, "killed from outside"),
        (inspected(code=1), "Stopped", "", Outcome.INTERRUPTED, "was stopped"),
        (inspected(code=1), "MaxRuntimeExceeded", "", Outcome.TIMEOUT, "900 s"),
        (inspected(code=127), "", "python: not found", Outcome.CRASHED, "python: not found"),
    ],
)
def test_how_it_ended(found: dict[str, Any], why: str, said: str, outcome: Outcome, word: str) -> None:
    told, detail = job_outcome(describe_ended([found], why, [said]), None)
    assert told is outcome
    assert word in detail


def test_a_job_from_its_start_to_its_end(settings: SageMakerSettings, docker: Docker) -> None:
    there = LocalModeClient(settings)
    assert there.describe(JOB.name) is None
    there.submit(asked(settings))
    assert [call[0] for call in docker.calls[-2:]] == ["create", "start"]

    recent = "2999-01-01T00:00:00Z"
    docker.answers(ps=JOB.name, inspect=[inspected("running", StartedAt=recent)])
    assert there.describe(JOB.name) == {"TrainingJobStatus": "InProgress", "SecondaryStatus": "Training"}
    assert there.running("roofscale-train") == {JOB.name: inspected()["Config"]["Labels"]}

    host = folder_of(requests.output_uri(settings, JOB)).parents[1] / "algo-1"
    (host / "output/failure").write_text("diverged: the loss is nan")
    docker.answers(ps=JOB.name, inspect=[inspected(code=1)], logs="epoch 1\nepoch 2")
    found = there.describe(JOB.name)
    assert found
    assert found["FailureReason"] == "AlgorithmError: diverged: the loss is nan, exit code: 1"
    assert (found["TrainingEndTime"] - found["TrainingStartTime"]).total_seconds() == pytest.approx(60.4, abs=0.1)
    assert ["rm", "--force", JOB.name] in docker.calls
    assert (host / "log").read_text() == "epoch 1\nepoch 2\n"

    docker.answers()
    assert there.describe(JOB.name) == found, "it is remembered without the container"


def test_who_stays_too_long_is_stopped(settings: SageMakerSettings, docker: Docker) -> None:
    there = LocalModeClient(settings)
    there.submit(asked(settings))
    docker.answers(ps=JOB.name, inspect=[inspected("running")])  # for longer than 900 s
    there.describe(JOB.name)
    assert there.describe(JOB.name) == {"TrainingJobStatus": "Stopping", "SecondaryStatus": "Stopping"}
    docker.answers(ps=JOB.name, inspect=[inspected(code=143)])
    assert (there.describe(JOB.name) or {})["SecondaryStatus"] == "MaxRuntimeExceeded"


def test_a_job_of_two_hosts_from_its_start_to_its_end(settings: SageMakerSettings, docker: Docker) -> None:
    there = LocalModeClient(settings)
    there.submit(asked(settings, instance_count=2))
    assert [call[0] for call in docker.calls] == ["network", "create", "create", "start"]
    assert docker.calls[0][:3] == ["network", "create", "--internal"]
    assert docker.calls[-1] == ["start", f"{JOB.name}.algo-1", f"{JOB.name}.algo-2"]
    job = folder_of(requests.output_uri(settings, JOB)).parents[1]
    told = multi_node.read_resource_config(job / "algo-2/input/config/resourceconfig.json")
    assert (told.names, told.rank, told.network) == (("algo-1", "algo-2"), 1, "eth0")

    recent = {"StartedAt": "2999-01-01T00:00:00Z"}
    docker.answers(ps="a b", inspect=[inspected(), inspected("running", host="algo-2", **recent)])
    assert (there.describe(JOB.name) or {})["TrainingJobStatus"] == "InProgress", "one host is not all of them"
    assert not (job / "stopped").exists()

    for rank, name in enumerate(("measurement.json", "measurement-node1.json"), 1):
        (job / f"algo-{rank}/output/data" / name).write_text(name)
    docker.answers(ps="a b", inspect=[inspected(), inspected(host="algo-2", FinishedAt="2026-11-24T12:02:00Z")],
                   network="the id")  # fmt: skip
    found = there.describe(JOB.name) or {}
    assert (found["TrainingJobStatus"], found["TrainingEndTime"].minute) == ("Completed", 2)
    assert docker.calls[-1] == ["network", "rm", JOB.name]
    assert there.read_packed(requests.output_uri(settings, JOB), "measurement-node1.json") == b"measurement-node1.json"
    assert there.read_packed(requests.output_uri(settings, JOB), "measurement-node2.json") is None


def test_a_host_that_fails_ends_the_others_and_says_why(settings: SageMakerSettings, docker: Docker) -> None:
    there = LocalModeClient(settings)
    there.submit(asked(settings, instance_count=2))
    recent = {"StartedAt": "2999-01-01T00:00:00Z"}
    failed = inspected(code=137, host="algo-2", OOMKilled=True)
    docker.answers(ps="a b", inspect=[inspected("running", **recent), failed])
    for _ in range(2):
        assert there.describe(JOB.name) == {"TrainingJobStatus": "InProgress", "SecondaryStatus": "Training"}
    both = ["stop", "-t", "120", f"{JOB.name}.algo-1", f"{JOB.name}.algo-2"]
    docker.answers(ps="a b", inspect=[inspected(code=143), failed])
    found = there.describe(JOB.name) or {}
    assert (found["TrainingJobStatus"], job_outcome(found, None)[0]) == ("Failed", Outcome.HOST_OOM)
    assert docker.calls.count(both) == 1


def test_the_host_that_did_not_only_follow_says_why() -> None:
    earlier, later = inspected(code=1, FinishedAt=BEGAN), inspected(code=1)
    followed = f"crashed: {PEER_FAILED}: closed by peer"
    assert "no images" in describe_ended([earlier, later], "", [followed, "data_error: no images"])["FailureReason"]
    assert "first" in describe_ended([later, earlier], "Failed", ["crashed: second", "crashed: first"])["FailureReason"]


def test_a_container_that_somebody_removed_is_no_result(settings: SageMakerSettings, docker: Docker) -> None:
    there = LocalModeClient(settings)
    there.submit(asked(settings, instance_count=2))
    docker.answers(ps=f"{JOB.name}.algo-2", inspect=[inspected("running", host="algo-2")])
    outcome, detail = job_outcome(there.describe(JOB.name) or {}, None)
    assert (outcome, "removed the container" in detail) == (Outcome.INTERRUPTED, True)
    assert ["rm", "--force", f"{JOB.name}.algo-2"] in docker.calls, "nor does its other host go on"


def test_a_job_whose_launcher_was_killed_at_its_submission_is_submitted_anew(
    settings: SageMakerSettings, docker: Docker
) -> None:
    there = LocalModeClient(settings)
    there.submit(asked(settings, instance_count=2))
    docker.answers(ps=f"{JOB.name}.algo-1", inspect=[inspected("created", StartedAt="0001-01-01T00:00:00Z")])
    assert there.describe(JOB.name) is None
    assert ["rm", "--force", f"{JOB.name}.algo-1"] in docker.calls


@pytest.mark.parametrize("refused", ["create", "start"])
def test_what_docker_refuses_is_told_and_leaves_nothing(
    settings: SageMakerSettings, docker: Docker, refused: str
) -> None:
    there = LocalModeClient(settings)
    docker.answers(**{refused: 1}, ps=JOB.name)
    with pytest.raises(ConfigError, match=rf"docker {refused}: refused .*docker build -t IMAGE"):
        there.submit(asked(settings))
    assert ["rm", "--force", JOB.name] in docker.calls
    docker.answers()
    assert there.describe(JOB.name) is None


def test_files_are_written_read_on_and_fetched(settings: SageMakerSettings, tmp_path: Path) -> None:
    there, top = LocalModeClient(settings), f"s3://{HERE}{tmp_path}/run"
    there.write(f"{top}/events.jsonl", b"one\ntwo\n")
    there.write(f"{top}/plots/a.png", b"png")
    there.write(f"{top}/.half", b"x")
    assert there.read_from(f"{top}/events.jsonl", 4) == b"two\n"
    assert there.read_from(f"{top}/nothing", 0) == b""
    assert there.size(top) == 12
    there.fetch(top, tmp_path / "here", ("events.jsonl",))
    assert [str(p.relative_to(tmp_path / "here")) for p in (tmp_path / "here").rglob("*.*")] == ["plots/a.png"]


def test_no_docker_is_one_clear_message(settings: SageMakerSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="no command 'docker' here"):
        LocalModeClient(settings).describe(JOB.name)
