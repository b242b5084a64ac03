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
from pathlib import Path
from roofscale.runners.local import LocalRunner
from roofscale.runners.sagemaker import entry
from roofscale.runners.supervise import Listeners, StopRequest
how, top, *words = sys.argv[1:]
entry._run = lambda config, folder, asked, machines, log: LocalRunner(
    folder,
    Listeners(entry.LogListener(), log),
    command=(sys.executable, {str(CHILD)!r}, how),
    stop_request=StopRequest(len(asked)),
    use_cgroup=False,
)(config)
from roofscale.training_job import open_log
sys.exit(entry.main(words, Path(top), open_log))
"""


def hand_over(top: Path, config: dict[str, Any]) -> None:
    (top / "input/data/config/config.json").write_text(json.dumps(config), encoding="utf-8")


def start(how: str, top: Path) -> "subprocess.Popen[str]":
    words = [how, str(top), "--fingerprint", AWKWARD.fingerprint]
    return subprocess.Popen([sys.executable, "-c", STANDING_IN, *words], stdout=subprocess.PIPE, text=True)


def left(top: Path) -> Measurement:
    return Measurement.load(top / "output/data/measurement.json")
