"""A run that is stopped and resumed ends bit for bit where an uninterrupted one does."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from roofscale.config import RunConfig
from roofscale.data.synthetic import GenerateSpec, generate
from roofscale.train import checkpoint

SMALL = {
    "image_size": 64,
    "encoder": "test_resnet",
    "max_samples": 12,
    "val_samples": 4,
    "epochs": 2,
    "num_workers": 2,
    "checkpoint_seconds": 0.0,
    "threads": 1,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    spec = GenerateSpec(
        datasets=("rid", "roofline"), train=12, val=4, test=0, roofline_samples=20, image_px=64, roofline_px=64
    )
    generate(folder, spec)
    return folder


def start(folder: Path, config: RunConfig) -> "subprocess.Popen[bytes]":
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.as_dict()))
    return subprocess.Popen([sys.executable, "-m", "roofscale.train", str(folder)], stderr=subprocess.PIPE)


def events(folder: Path) -> list[dict[str, object]]:
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if line]


def stop_after(folder: Path, process: "subprocess.Popen[bytes]", step: int, how: signal.Signals) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        done = (folder / "events.jsonl").exists() and (folder / "events.jsonl").read_text().count('"event": "step"')
        if done and done >= step:
            process.send_signal(how)
            break
        time.sleep(0.01)
    process.wait(120)


@pytest.mark.parametrize(
    ("how", "ema"), [pytest.param(signal.SIGTERM, 0.0, marks=pytest.mark.slow), (signal.SIGKILL, 0.9)]
)
def test_a_resumed_run_ends_bit_for_bit_where_an_uninterrupted_one_does(
    root: Path, tmp_path: Path, how: signal.Signals, ema: float
) -> None:
    knobs = {"datasets": ["rid", "roofline"], "data_root": str(root), "ema": ema}
    config = RunConfig().with_overrides({**SMALL, **knobs})
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    first = start(whole, config)
    stop_after(broken, start(broken, config), 8, how)
    interrupted_at = max(e["step"] for e in events(broken) if e["event"] == "step")  # type: ignore[type-var]
    assert first.wait(300) == 0, first.stderr and first.stderr.read()
    again = start(broken, config)
    assert again.wait(300) == 0, again.stderr and again.stderr.read()

    resumed = next(e for e in events(broken) if e["event"] == "resumed")
    assert 0 < resumed["step"] <= interrupted_at  # type: ignore[operator]
    one, two = (torch.load(folder / checkpoint.BEST, weights_only=True)["model"] for folder in (whole, broken))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    losses = [{e["step"]: e["loss"] for e in events(folder) if e["event"] == "step"} for folder in (whole, broken)]
    assert losses[0] == losses[1]
    last = [[e["validation"] for e in events(folder) if e["event"] == "validation"][-1] for folder in (whole, broken)]
    assert last[0]["losses"] == last[1]["losses"]  # type: ignore[index]


def test_a_damaged_checkpoint_is_set_aside_and_training_begins_anew(root: Path, tmp_path: Path) -> None:
    config = RunConfig().with_overrides({**SMALL, "datasets": ["rid"], "data_root": str(root), "num_workers": 0})
    folder = tmp_path / "run"
    stop_after(folder, start(folder, config), 3, signal.SIGTERM)
    file = folder / checkpoint.CHECKPOINT
    damaged = file.read_bytes()[: file.stat().st_size // 2]
    file.write_bytes(damaged)
    again = start(folder, config)
    assert again.wait(300) == 0, again.stderr and again.stderr.read()
    assert (folder / "checkpoint.damaged").read_bytes() == damaged
    said = events(folder)
    assert any("training begins anew" in str(event.get("text")) for event in said)
    assert next(event for event in said if event["event"] == "resumed")["step"] == 0
    assert said[-1]["outcome"] == "ok"
