"""Several processes for one run: how torchrun is called, and that the first to fail says what the run came to."""

import sys
from pathlib import Path

import psutil
import pytest

from roofscale import cgroup
from roofscale.config import RunConfig
from roofscale.errors import ConfigError
from roofscale.measurement import Measurement, Outcome
from roofscale.runners.local import TRAIN, LocalRunner
from roofscale.runners.outcome import PEER_FAILED, ExitEvidence, classify
from roofscale.runners.supervise import SilentListener
from roofscale.runners.torchrun import Nodes, torchrun_command, with_root_cause

CHILD = Path(__file__).with_name("fake_training.py")
TWO = RunConfig(processes=2)
THREE = Nodes(("algo-1", "algo-2", "algo-3"), 1, "eth0")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


def run(folder: Path, how: str, config: RunConfig = TWO, use_cgroup: bool = False, **options: object) -> Measurement:
    command = [sys.executable, str(CHILD), how]
    return LocalRunner(folder, command=command, use_cgroup=use_cgroup, **options)(config)  # type: ignore[arg-type]


def left_behind(folder: Path) -> list[psutil.Process]:
    return [one for one in psutil.process_iter(["cmdline"]) if str(folder) in (one.info["cmdline"] or ())]


def test_one_process_is_started_as_ever() -> None:
    assert torchrun_command(TRAIN, RunConfig(), Nodes(), 4) == TRAIN


def test_the_call_of_torchrun() -> None:
    here = torchrun_command(TRAIN, TWO, Nodes(), 4)
    assert here[1:9] == ("-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node",
                         "2", "--no-python")  # fmt: skip
    assert here[-3:] == TRAIN
    there = torchrun_command(TRAIN, RunConfig(processes=4, instance_count=3), THREE, 4)
    words = " ".join(there)
    assert "--nnodes 3 --node-rank 1 --master-addr algo-1 --master-port 29500 --nproc-per-node 4" in words
    assert "--standalone" not in there


def test_machines_are_told_their_interface() -> None:
    assert THREE.environment() == {"GLOO_SOCKET_IFNAME": "eth0", "NCCL_SOCKET_IFNAME": "eth0"}
    assert set(Nodes().environment().values()) <= {"lo"}


def test_several_machines_are_refused_on_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="instance_count=2"):
        run(tmp_path, "ok", RunConfig(instance_count=2))
    assert not list(tmp_path.iterdir())


@LINUX
@pytest.mark.parametrize(
    ("how", "outcome", "said"),
    [
        pytest.param("plain,cuda_oom", Outcome.CUDA_OOM, "Tried to allocate 2.00 GiB", marks=pytest.mark.slow),
        pytest.param("segfault,plain", Outcome.CRASHED, "SIGSEGV", marks=pytest.mark.slow),
        ("plain,exception", Outcome.CRASHED, "something nobody thought of"),
        ("diverged,plain", Outcome.DIVERGED, "step 5"),
    ],
)
def test_the_first_to_fail_says_what_the_run_came_to(how: str, outcome: Outcome, said: str, tmp_path: Path) -> None:
    measured = run(tmp_path, how)
    assert measured.outcome is outcome
    assert said in measured.detail
    assert not left_behind(tmp_path)


@LINUX
@pytest.mark.parametrize("use_cgroup", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_out_of_memory_in_one_process_ends_all(use_cgroup: bool, tmp_path: Path) -> None:
    if use_cgroup and not cgroup.own_memory():
        pytest.skip("no memory cgroup here")
    measured = run(tmp_path, "deaf,eat", RunConfig(processes=2, compute="local:1"), use_cgroup)
    assert measured.outcome is Outcome.HOST_OOM
    assert not left_behind(tmp_path)


@LINUX
def test_a_stop_reaches_every_process(tmp_path: Path) -> None:
    class WhenBothTrain(SilentListener):
        noted = 0

        def event(self, event: dict[str, object]) -> None:
            self.noted += event["event"] == "note"
            if self.noted == 2:
                runner.stop_request.request()
                self.noted = 3

    command = [sys.executable, str(CHILD), "wait,wait"]
    runner = LocalRunner(tmp_path, WhenBothTrain(), command=command, use_cgroup=False)
    assert runner(TWO).outcome is Outcome.INTERRUPTED
    assert (tmp_path / "checkpoint.pt").exists()
    assert (tmp_path / "events.jsonl").read_text().count('"interrupted"') == 2


def test_a_process_that_only_missed_another_says_so() -> None:
    stderr = "RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer"
    outcome, detail = classify(ExitEvidence(exit_code=1, stderr=stderr))
    assert outcome is Outcome.CRASHED
    assert detail.startswith(PEER_FAILED)
    killed = with_root_cause(ExitEvidence(exit_code=1, stderr=f"{stderr}\n{SUMMARY}"))
    assert killed.exit_code == -9
    assert "Root Cause" not in killed.stderr


SUMMARY = """E1124 16:42:33.123000 4027 torch/distributed/elastic/multiprocessing/api.py:984] failed (exitcode: -9)
Traceback (most recent call last):
  File "<frozen runpy>", line 198, in _run_module_as_main
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
roofscale FAILED
------------------------------------------------------------
Failures:
[1]:
  rank      : 0 (local_rank: 0)
  exitcode  : 1 (pid: 4031)
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-24_16:42:33
  host      : localhost
  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 4032)
  error_file: <N/A>
  traceback : Signal 9 (SIGKILL) received by PID 4032
============================================================
"""
