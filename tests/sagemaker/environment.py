"""Where a launcher runs, what it is told there, and small configs to run."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from roofscale import config
from roofscale.measurement import Measurement

TOP = Path(__file__).resolve().parents[2]
LONGEST_SECONDS = 900  # of one command; two machines on a busy one take minutes where a quiet one takes seconds
SMALL = ("encoder=test_resnet", "image_size=64", "val_samples=6", "threads=1", "num_workers=0", "max_samples=10",
         "precision=fp32", "compute=ml.m5.xlarge")  # fmt: skip
# Long enough to be interrupted; of a small net, for the simulator copies a checkpoint that grows in many parts.
LONG = (*SMALL, "encoder=mobilenetv3_small_050", "epochs=25", "seed=7")


@dataclass(frozen=True)
class Place:
    """Where the launcher runs, as a user would run it."""

    folder: Path
    environment: dict[str, str]
    bucket: str = "sim-bucket"
    mlflow: str = ""  # the address of the server behind the ARN that runs are tracked by
    real: bool = False  # at AWS, not in the simulator

    def agree(self, there: list[float], here: list[float]) -> bool:
        """Whether losses are the same; to the last bit where the same processor has computed them."""
        return there == (pytest.approx(here, rel=1e-3) if self.real else here)

    def start(self, *words: str, stderr: "IO[str] | int" = subprocess.PIPE, **settings: str) -> "subprocess.Popen[str]":
        """A command of Roofscale under way; settings win over those of the file."""
        named = {f"ROOFSCALE_SAGEMAKER_{name.upper()}": value for name, value in settings.items()}
        return subprocess.Popen(
            [sys.executable, "-m", "roofscale", *words],
            cwd=self.folder,
            env={**self.environment, **named},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )

    def train(self, *words: str, runner: str = "sagemaker", **settings: str) -> tuple[Measurement, int]:
        """One training, to its end."""
        command = self.start("train", "--json", "--runner", runner, *words, **settings)
        out, err = command.communicate(timeout=LONGEST_SECONDS)
        assert out, err
        return Measurement.load(self.folder / json.loads(out)["folder"] / "measurement.json"), command.returncode

    def to_its_end(self, *words: str) -> Measurement:
        """The same command until it does not end for a fault of the simulator, as a user would do it."""
        for _ in range(4):
            found, _code = self.train(*words)
            if "a fault of the service" not in found.detail:
                break
        return found

    def job(self, *words: str) -> str:
        """The name of the job that a training is waiting for; returns once it has made a step."""
        pattern = f"runs/roofscale-train/{config.load(None, words).fingerprint}-*/job.json"
        until = time.monotonic() + LONGEST_SECONDS / 3
        while time.monotonic() < until:
            for file in self.folder.glob(pattern):
                known, events = json.loads(file.read_text(encoding="utf-8")), file.with_name("events.jsonl")
                if not known["over"] and events.exists() and '"step"' in events.read_text(encoding="utf-8"):
                    return f"{known['key']}-{known['number']}"
            time.sleep(0.2)
        raise AssertionError("no job has made a step")


def losses(measurement: Measurement) -> list[float]:
    return [step.loss for step in measurement.steps]


def ended(command: "subprocess.Popen[str]") -> tuple[int, str]:
    out, err = command.communicate(timeout=LONGEST_SECONDS)
    return command.returncode, out + err
