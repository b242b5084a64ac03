"""What goes wrong from outside, really done to the real command line: kills, a full disk, two at once, no server."""

import contextlib
import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from click.testing import CliRunner
from mlflow import MlflowClient
from tests import fake_trainer
from tests.command_line import WITH_FAKE_TRAINER, roofscale
from tests.flaky_mlflow_server import Line

from roofscale.cli import main
from roofscale.measurement import Measurement, Outcome

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
PHASE = """
phase: 1
name: tiny
question: Does it survive?
base: {{image_size: 64, encoder: test_resnet, val_samples: 2, threads: 1, max_samples: 8, {base}}}
watch: [memory/peak_mib]
on_insufficient: continue
on_failure: continue
steps:
{steps}
"""
EXPERIMENT = "roofscale-phase1"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    words = ["generate", "made", "--datasets", "rid", "--train", "8", "--val", "2", "--test", "1", "--image-px", "64"]
    assert roofscale(folder, "data", *words).returncode == 0
    return folder / "made"


@dataclass
class Ladder:
    """A phase in a folder of its own, climbed through the real command line."""

    folder: Path
    words: list[str]
    fake: bool = True  # its training processes train nothing

    @classmethod
    def prepare(cls, folder: Path, data: Path, base: str, steps: dict[str, str]) -> "Ladder":
        """Write the phase file: what all steps share, and what each sets."""
        lines = (f"  - {{name: {name}, set: {{{knobs}}}, criteria: {{completes: }}}}" for name, knobs in steps.items())
        file = folder / "phase.yaml"
        file.write_text(PHASE.format(base=base, steps="\n".join(lines)))
        words = ["phase", "1", "--file", str(file), "--set", f"data_root={data}", "--json"]
        return cls(folder, words)

    def begin(self, **environment: str) -> "subprocess.Popen[str]":
        """Start to climb in a process of its own."""
        command = WITH_FAKE_TRAINER if self.fake else (sys.executable, "-m", "roofscale")
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([*command, *self.words], cwd=self.folder, env={**os.environ, **environment}, **pipes)

    def climb(self) -> "subprocess.CompletedProcess[str]":
        """Climb to the end in this process."""
        return roofscale(self.folder, *self.words, fake=self.fake, uri=os.environ["MLFLOW_TRACKING_URI"])

    def step(self, name: str) -> Path:
        """The folder of a step."""
        return self.folder / "runs" / EXPERIMENT / "001" / name

    def wait_for_step(self, name: str, climbing: "subprocess.Popen[str]") -> None:
        """Wait until a step trains."""
        events = self.step(name) / "events.jsonl"

        def trains() -> bool:
            assert climbing.poll() is None, climbing.communicate()
            return events.exists() and '"event": "step"' in events.read_text()

        wait_until(trains)


def wait_until(true: Callable[[], Any], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def training(ladder: "subprocess.Popen[str]") -> psutil.Process:
    """The training process of a ladder."""
    trainers = {"roofscale.train", fake_trainer.__file__}
    (process,) = (p for p in psutil.Process(ladder.pid).children() if trainers & set(p.cmdline()))
    return process


@LINUX
def test_a_kill_is_named_what_was_measured_is_kept_and_the_phase_judges_it(
    data: Path, tracking_store: None, tmp_path: Path
) -> None:
    ladder = Ladder.prepare(tmp_path, data, "epochs: 1000", {"killed": "num_workers: 0"})
    with ladder.begin() as first:
        try:
            ladder.wait_for_step("01-killed", first)
            second = ladder.climb()
            training(first).kill()
            stdout, _ = first.communicate(timeout=120)
        finally:
            first.kill()
    assert first.returncode == 1
    check_crashed(ladder, stdout, "01-killed", "signal SIGKILL")

    assert second.returncode == 4
    assert "another process is climbing this phase" in second.stderr
    assert "Traceback" not in second.stderr
    assert len(list((tmp_path / "runs" / EXPERIMENT).glob("0*"))) == 1


@LINUX
@pytest.mark.slow
def test_the_kill_of_a_loader_process_is_named(data: Path, tracking_store: None, tmp_path: Path) -> None:
    ladder = Ladder.prepare(tmp_path, data, "epochs: 1000", {"killed": "num_workers: 1"})
    ladder.fake = False
    with ladder.begin() as climbing:
        try:
            ladder.wait_for_step("01-killed", climbing)
            wait_until(lambda: training(climbing).children())
            training(climbing).children()[0].kill()
            stdout, _ = climbing.communicate(timeout=120)
        finally:
            climbing.kill()
    assert climbing.returncode == 1
    check_crashed(ladder, stdout, "01-killed", "loader process")


def check_crashed(ladder: Ladder, stdout: str, folder: str, says: str) -> None:
    (step,) = json.loads(stdout)["steps"]
    assert (step["outcome"], step["verdict"]) == ("crashed", "failed")
    measured = Measurement.load(ladder.step(folder) / "measurement.json")
    assert measured.outcome is Outcome.CRASHED
    assert says in measured.detail
    assert measured.steps
    assert measured.metric("memory/peak_mib") > 10
    run = MlflowClient().get_run(step["run_id"])
    assert run.info.status == "FAILED"
    assert run.data.tags["outcome_detail"] == measured.detail
    assert run.data.metrics["train/loss"] > 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], None]]:
    """A file system of its own under ``runs``: call with its size in MiB; it can grow."""
    libc = ctypes.CDLL(None, use_errno=True)
    place = str(tmp_path / "runs").encode()

    def mount(mib: int) -> None:
        again = Path(os.fsdecode(place)).is_mount()
        Path(os.fsdecode(place)).mkdir(exist_ok=True)
        flags = 0x20 if again else 0  # MS_REMOUNT
        if libc.mount(b"none", place, b"tmpfs", flags, f"size={mib}m".encode()) != 0:
            pytest.skip("no file system can be mounted here")

    yield mount
    with contextlib.suppress(OSError):
        libc.umount2(place, 0x2)  # MNT_DETACH


@LINUX
@pytest.mark.slow
def test_a_full_disk_leaves_the_checkpoint_before_and_the_same_command_goes_on(
    data: Path, tmp_path: Path, tracking_store: None, small_disk: Callable[[int], None]
) -> None:
    small_disk(40)  # room for one checkpoint of 26 MiB, not for a second beside it
    ladder = Ladder.prepare(tmp_path, data, "checkpoint_seconds: 0", {"base": "num_workers: 0"})
    ladder.fake = False
    first = ladder.climb()
    assert first.returncode == 130, first.stderr
    assert "the disk is full" in json.loads(first.stdout)["notes"][-1]
    assert "make room" in json.loads(first.stdout)["notes"][-1]
    folder = ladder.step("01-base")
    assert Measurement.load(folder / "measurement.json").outcome is Outcome.INTERRUPTED
    kept = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert kept["progress"]["step"] == 1
    assert not list(folder.glob(".*.partial"))

    small_disk(150)
    second = ladder.climb()
    assert second.returncode == 0, second.stderr
    measured = Measurement.load(folder / "measurement.json")
    assert measured.facts["resumed_at_step"] == "1"
    assert [step.step for step in measured.steps] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "words",
    [
        ["train", "lr=nan"],
        ["train", "--config", "nan.yaml"],
        ["phase", "1", "--file", "phase.yaml", "--set", "lr=nan"],
        ["phase", "1", "--file", "nan-phase.yaml"],
    ],
    ids=" ".join,
)
def test_nan_in_a_config_is_refused_before_anything_runs(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    (tmp_path / "nan.yaml").write_text("lr: .nan\n")
    Ladder.prepare(tmp_path, data, "epochs: 1", {"base": "num_workers: 0"})
    good = (tmp_path / "phase.yaml").read_text()
    (tmp_path / "nan-phase.yaml").write_text(good.replace("epochs: 1", "lr: .nan"))
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2
    assert "lr" in done.stderr
    assert "nan" in done.stderr
    assert isinstance(done.exception, SystemExit)
    assert not (tmp_path / "runs").exists()


def losses(run_id: str) -> list[int]:
    """The steps of every point of the training loss that the server has, doubles too."""
    return sorted(point.step for point in MlflowClient().get_metric_history(run_id, "train/loss"))


def sync(*words: str) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(main, ["sync", "--json", *words])
    return done.exit_code, json.loads(done.stdout)


@LINUX
@pytest.mark.slow
def test_a_tracking_server_that_goes_away_in_the_middle_loses_nothing(line: Line, data: Path, tmp_path: Path) -> None:
    """First for a moment, then for good: the step is judged, the ladder stops, ``sync`` sends what was kept."""
    steps = {"comes-back": "num_workers: 0", "gone": "batch_size: 1", "later": "epochs: 1"}
    ladder = Ladder.prepare(tmp_path, data, "epochs: 20", steps)
    ladder.fake = False
    outbox = tmp_path / "runs" / "outbox"
    with ladder.begin(ROOFSCALE_TRACKING_PATIENCE="5") as climbing:
        try:
            ladder.wait_for_step("01-comes-back", climbing)
            line.cut()
            wait_until(lambda: list(outbox.glob("*/operations.jsonl")))
            line.mend()
            ladder.wait_for_step("02-gone", climbing)
            line.cut()
            _, said = climbing.communicate(timeout=120)
        finally:
            climbing.kill()
    assert climbing.returncode == 4
    assert "the tracking server does not answer" in said
    assert f"kept in {outbox.relative_to(tmp_path)}" in said
    assert "`roofscale sync` sends it" in said
    assert "Traceback" not in said
    assert json.loads((ladder.step("02-gone") / "verdict.json").read_text())["verdict"] == "passed"
    assert not (ladder.step("03-later") / "run.json").exists()

    code, found = sync()
    assert (code, found["sent"], "does not answer" in found["error"]) == (4, [], True)
    line.mend()
    code, found = sync("--dry-run")
    assert (code, len(found["kept"]), found["sent"]) == (0, 1, [])
    code, found = sync()
    assert (code, len(found["sent"]), found["kept"]) == (0, 1, [])
    assert sync() == (0, {"server": line.uri, "sent": [], "kept": [], "in_use": [], "error": ""})
    assert not outbox.exists()

    ids = [json.loads((ladder.step(name) / "run.json").read_text())["run_id"] for name in ("01-comes-back", "02-gone")]
    assert losses(ids[0]) == list(range(1, 81))
    assert losses(ids[1]) == list(range(1, 161))
    for run_id in ids:
        run = MlflowClient().get_run(run_id)
        assert (run.info.status, run.data.tags["verdict"], run.data.tags["outcome"]) == ("FINISHED", "passed", "ok")
        assert "measurement.json" in {item.path for item in MlflowClient().list_artifacts(run_id)}
        assert run.outputs.model_outputs

    skip_complete = ladder.climb()
    assert skip_complete.returncode == 0, skip_complete.stderr
    found = json.loads(skip_complete.stdout)
    assert [step["run_id"] for step in found["steps"]][:2] == ids
    assert losses(found["steps"][2]["run_id"]) == list(range(1, 5))


def test_a_phase_does_not_begin_without_its_tracking_server(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somebody:hunter2@127.0.0.1:9")
    done = Ladder.prepare(tmp_path, data, "epochs: 1", {"base": "num_workers: 0"}).climb()
    assert done.returncode == 4
    assert done.stdout == ""
    assert "http://***@127.0.0.1:9: the tracking server does not answer (Connection refused). Start it" in done.stderr
    assert "Traceback" not in done.stderr
    assert "hunter2" not in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["phase.yaml"]
