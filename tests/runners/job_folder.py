"""Process 1 of a job on a folder that stands for /opt/ml, with a stand-in for the training process."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from roofscale.config import RunConfig
from roofscale.measurement import Measurement

CHILD = Path(__file__).with_name("fake_training.py")
# A path that a shell, or JSON put together by hand, would break; what the launcher's own data root may look like.
AWKWARD = RunConfig(compute="local", data_root='s3://roofs/it\'s "a" $HOME `x`\n;ü 屋根')
# The same process as in a job, but for what trains.
STANDING_IN = f"""
import sys
from functools import partial
from pathlib import Path
from roofscale import training_job
from roofscale.runners.local import LocalRunner
how, top, *words = sys.argv[1:]
training_job.LocalRunner = partial(LocalRunner, command=(sys.executable, {str(CHILD)!r}, how), use_cgroup=False)
sys.exit(training_job.main(words, Path(top)))
"""


def hand_over(top: Path, config: dict[str, Any]) -> None:
    (top / "input/data/config/config.json").write_text(json.dumps(config), encoding="utf-8")


def start(how: str, top: Path) -> "subprocess.Popen[str]":
    words = [how, str(top), "--fingerprint", AWKWARD.fingerprint]
    return subprocess.Popen([sys.executable, "-c", STANDING_IN, *words], stdout=subprocess.PIPE, text=True)


def left(top: Path) -> Measurement:
    return Measurement.load(top / "output/data/measurement.json")
