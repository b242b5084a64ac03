"""The local runner: every outcome provoked for real, in a child process that really does it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from roofscale import cgroup
from roofscale.config import RunConfig
from roofscale.errors import ConfigError
from roofscale.measurement import Measurement, Outcome
from roofscale.runners.events import Event
from roofscale.runners.local import LocalRunner
from roofscale.runners.memory_limit import MemoryLimit
from roofscale.runners.supervise import SilentListener
from roofscale.train.malloc import training_settings

CHILD = Path(__file__).with_name("fake_training.py")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
Run = Callable[..., Measurement]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: Path) -> Run:
    monkeypatch.setenv("PYTHONPATH", str(root / "src"))

    def go(how: str, config: RunConfig | None = None, **options: object) -> Measurement:
        options = {"use_cgroup": False, **options}
        return LocalRunner(tmp_path, command=[sys.executable, str(CHILD), how], **options)(config or RunConfig())

    return go


@pytest.fixture
def needs_cgroup() -> None:
    with MemoryLimit(2**30, cgroup.own_memory()) as limit:
        if limit.group is None:
            pytest.skip(f"no memory cgroup can be made here ({limit.description})")


class Recorder(SilentListener):
    def __init__(self, on_event: Callable[[Event], None] = lambda event: None) -> None:
        self.events: list[Event] = []
        self.samples: list[object] = []
        self.on_event = on_event

    def event(self, event: Event) -> None:
        self.events.append(event)
        self.on_event(event)

    def resources(self, sample: object) -> None:
        self.samples.append(sample)


def when_noted(act: Callable[[list[int]], None]) -> Recorder:
    """A listener that acts once on the process ids which the child notes down."""

    def on_event(event: Event) -> None:
        if event["event"] == "note":
            act([int(word) for word in event["text"].split()])

    return Recorder(on_event)


def test_ok_yields_a_whole_measurement(run: Run, tmp_path: Path) -> None:
    listener = Recorder()
    measured = run("ok", RunConfig(threads=1), listener=listener)
    assert measured.outcome is Outcome.OK
    assert measured == Measurement.load(tmp_path / "measurement.json")
    assert [event["event"] for event in listener.events] == ["start", *["step"] * 4, "validation", "metrics", "end"]
    assert listener.samples
    assert 100 < measured.metric("memory/peak_mib") < 160
    assert measured.metric("val/rid/iou_roof") == 0.5
    assert measured.metric("speed/data_stall") == 0.02
    assert measured.metric("train/final_loss") == pytest.approx(1 / 4)
    assert measured.fingerprint == RunConfig(threads=1).fingerprint
    assert measured.facts["device"] == "cpu"
    assert measured.facts["memory_limit"].startswith("watchdog")
    assert f"threads 1, {training_settings()}, cores" in (tmp_path / "stdout.log").read_text()
    assert json.loads((tmp_path / "config.json").read_text()) == RunConfig(threads=1).as_dict()


@LINUX
def test_run_is_held_to_the_cores_of_its_compute(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from roofscale import compute

    one = compute.Compute("tiny", vcpus=1, memory_gib=2)
    monkeypatch.setattr(compute, "get", lambda name: one)
    assert run("ok").outcome is Outcome.OK
    said = (tmp_path / "stdout.log").read_text()
    assert said.startswith("threads 1,")
    assert said.endswith("cores 1\n")


def test_unknown_compute_is_refused_before_anything_starts(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean"):
        run("ok", RunConfig(compute="ml.m5.xlarg"))
    assert not list(tmp_path.glob("*.jsonl"))


@LINUX
@pytest.mark.usefixtures("needs_cgroup")
@pytest.mark.parametrize("how", ["eat", "eat_in_worker"])
def test_host_oom_by_the_kernel(run: Run, how: str) -> None:
    measured = run(how, RunConfig(compute="local:0.2"), use_cgroup=True)
    assert measured.outcome is Outcome.HOST_OOM
    assert "cgroup" in measured.detail
    assert "batch_size" in measured.detail
    assert measured.metric("memory/peak_mib") == pytest.approx(0.2 * 1024, rel=0.05)
    assert measured.metric("memory/share") == pytest.approx(1, rel=0.05)
    assert measured.metric("train/final_loss") == pytest.approx(1 / 4)
    own = cgroup.own_memory()
    assert own
    assert not list(own.path.glob(f"roofscale-{os.getpid()}-*"))


@LINUX
@pytest.mark.parametrize("how", ["eat", "eat_in_worker"])
def test_host_oom_by_the_watchdog(run: Run, how: str) -> None:
    measured = run(how, RunConfig(compute="local:0.2"))
    assert measured.outcome is Outcome.HOST_OOM
    assert "watchdog at 90%" in measured.detail
    assert measured.metric("memory/peak_mib") > 0.9 * 0.2 * 1024
    assert measured.metric("train/final_loss") == pytest.approx(1 / 4)


def test_somebody_elses_oom_kill_is_not_held_against_a_run_that_ended_well(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MemoryLimit, "oom_kills", lambda self: 1)
    assert run("ok").outcome is Outcome.OK
    assert run("exception").outcome is Outcome.HOST_OOM


@LINUX
@pytest.mark.parametrize("use_cgroup", [True, False])
def test_peak_of_a_known_allocation(run: Run, use_cgroup: bool) -> None:
    assert run("ok", use_cgroup=use_cgroup).metric("memory/peak_mib") == pytest.approx(108, abs=15)


@LINUX
def test_shm_full(run: Run) -> None:
    measured = run("shm_full")
    if measured.outcome is Outcome.OK:
        pytest.skip("a private /dev/shm cannot be mounted here")
    assert measured.outcome is Outcome.SHM_FULL
    assert "num_workers" in measured.detail


@pytest.mark.parametrize(
    ("how", "outcome", "said"),
    [
        ("cuda_oom", Outcome.CUDA_OOM, "Tried to allocate 2.00 GiB"),
        ("data_error", Outcome.DATA_ERROR, "rid/images/17.tif"),
        ("diverged", Outcome.DIVERGED, "step 5"),
        ("segfault", Outcome.CRASHED, "SIGSEGV"),
        ("exception", Outcome.CRASHED, "something nobody thought of"),
        ("silent", Outcome.CRASHED, "reported no outcome"),
        ("worker_killed", Outcome.CRASHED, "DataLoader worker"),
    ],
)
def test_outcomes_of_its_own_making(run: Run, how: str, outcome: Outcome, said: str) -> None:
    measured = run(how)
    assert measured.outcome is outcome
    assert said in measured.detail
    assert "\n" not in measured.detail


def test_a_command_that_cannot_be_started_is_a_crash(tmp_path: Path) -> None:
    measured = LocalRunner(tmp_path, command=["/nowhere/python"], use_cgroup=False)(RunConfig())
    assert measured.outcome is Outcome.CRASHED
    assert "/nowhere/python" in measured.detail or "No such file" in measured.detail


def test_timeout_leaves_time_for_a_checkpoint(run: Run, tmp_path: Path) -> None:
    measured = run("wait", RunConfig(timeout_seconds=1))
    assert measured.outcome is Outcome.TIMEOUT
    assert "timeout_seconds=1" in measured.detail
    assert (tmp_path / "checkpoint.pt").exists()
    assert measured.metric("train/steps") == 4


def test_timeout_kills_what_does_not_listen_with_all_its_processes(run: Run) -> None:
    pids: list[int] = []
    measured = run("deaf", RunConfig(timeout_seconds=1), grace_seconds=0.3, listener=when_noted(pids.extend))
    assert measured.outcome is Outcome.TIMEOUT
    assert len(pids) == 2
    wait_until(lambda: not any(map(alive, pids)))


def test_interrupted_from_another_thread(run: Run, tmp_path: Path) -> None:
    runner = LocalRunner(tmp_path, command=[sys.executable, str(CHILD), "wait"], use_cgroup=False)
    runner.listener = when_noted(lambda _: runner.stop_request.request())
    results: list[Measurement] = []
    thread = threading.Thread(target=lambda: results.append(runner(RunConfig())))
    thread.start()
    thread.join(timeout=60)
    assert results[0].outcome is Outcome.INTERRUPTED
    assert (tmp_path / "checkpoint.pt").exists()


def test_what_the_caller_needs_after_a_run_is_imported_in_the_meantime(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needed_after_a_run.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    run("ok", needed_after=("needed_after_a_run",))
    wait_until(lambda: "needed_after_a_run" in sys.modules, seconds=120)  # SciPy is imported before it


def test_a_second_interrupt_ends_it_at_once(run: Run, tmp_path: Path) -> None:
    runner = LocalRunner(tmp_path, command=[sys.executable, str(CHILD), "deaf"], use_cgroup=False)
    runner.listener = when_noted(lambda _: [runner.stop_request.request(), runner.stop_request.request()])
    assert runner(RunConfig()).outcome is Outcome.INTERRUPTED


@pytest.mark.parametrize("how", ["wait", "plain"])
def test_interrupted_by_a_signal_to_the_child(run: Run, how: str) -> None:
    measured = run(how, listener=when_noted(lambda pids: os.kill(pids[0], signal.SIGTERM)))
    assert measured.outcome is Outcome.INTERRUPTED


def test_killed_from_outside_is_a_crash_that_names_the_signal(run: Run) -> None:
    measured = run("plain", listener=when_noted(lambda pids: os.kill(pids[0], signal.SIGKILL)))
    assert measured.outcome is Outcome.CRASHED
    assert "SIGKILL" in measured.detail


def test_a_listener_that_raises_leaves_no_process_behind(run: Run) -> None:
    seen: list[int] = []

    def fail(pids: list[int]) -> None:
        seen.extend(pids)
        raise RuntimeError("the listener broke")

    with pytest.raises(RuntimeError, match="the listener broke"):
        run("deaf", listener=when_noted(fail))
    wait_until(lambda: not any(map(alive, seen)))


@pytest.fixture
def parent(tmp_path: Path, root: Path) -> Iterator[Callable[[str], tuple[subprocess.Popen[bytes], list[int]]]]:
    """Starts a runner in a process of its own; yields it with the process ids that its child noted down."""
    started: list[subprocess.Popen[bytes]] = []

    def start(how: str) -> tuple[subprocess.Popen[bytes], list[int]]:
        code = (
            "import sys; from pathlib import Path; from roofscale.config import RunConfig;"
            "from roofscale.runners.local import LocalRunner;"
            "LocalRunner(Path(sys.argv[1]), command=sys.argv[2:], use_cgroup=False)(RunConfig())"
        )
        command = [sys.executable, "-c", code, str(tmp_path), sys.executable, str(CHILD), how]
        started.append(subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(root / "src")}))
        file = tmp_path / "events.jsonl"
        wait_until(lambda: file.exists() and '"note"' in file.read_text() and file.read_text().endswith("\n"))
        note = json.loads(file.read_text().splitlines()[-1])
        return started[-1], [int(word) for word in note["text"].split()]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_parent_is_passed_on(parent: Callable, tmp_path: Path, number: signal.Signals) -> None:
    process, pids = parent("wait")
    process.send_signal(number)
    assert process.wait(timeout=60) == 0
    measured = Measurement.load(tmp_path / "measurement.json")
    assert measured.outcome is Outcome.INTERRUPTED
    assert measured.metric("train/final_loss") == pytest.approx(1 / 4)
    assert (tmp_path / "checkpoint.pt").exists()
    assert not any(map(alive, pids))


@LINUX
def test_the_child_dies_with_a_killed_parent(parent: Callable) -> None:
    process, pids = parent("plain")
    process.kill()
    process.wait()
    wait_until(lambda: not alive(pids[0]))


def test_a_resumed_run_counts_its_earlier_steps(run: Run, tmp_path: Path) -> None:
    step = {
        "event": "step",
        "epoch": 0,
        "dataset": "rid",
        "grad_norm": 1.0,
        "lr": 1e-3,
        "seconds": 0.01,
        "wait_seconds": 0.0,
        "time": 1.0,
    }
    earlier = [{**step, "step": n, "samples": 2 * n, "loss": 9.0} for n in (1, 2, 3)]
    (tmp_path / "events.jsonl").write_text("\n".join([*map(json.dumps, earlier), '{"event": "st']))
    listener = Recorder()
    measured = run("resumed", listener=listener)
    assert [event["event"] for event in listener.events] == ["start", "resumed", "step", "step", "end"]
    assert [s.loss for s in measured.steps] == [9, 9, 1 / 3, 1 / 4]
    assert measured.facts["resumed_at_step"] == "2"


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(true: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
