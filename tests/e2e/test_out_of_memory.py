"""A step that really runs out of memory under a small limit: killed, classified, retried smaller, and written down."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
from mlflow import MlflowClient
from tests.command_line import roofscale as call

# U-Net with test_resnet, 256 px, fp32: 575 MiB at batch 2, 1170 at 11, over 1690 at 20, which are allowed.
REAL = "local:1.65"
# The fake trainer holds 64 MiB a sample at 256 px: 704 at batch 11, over 1024 at 20.
FAKE = "local:1"
PHASE = """
phase: 2
name: too-large
base:
  {image_size: 256, encoder: test_resnet, max_samples: 20, val_samples: 2, num_workers: 0, threads: 1, precision: fp32}
max_fallbacks: 1
steps:
  - name: small
    set: {batch_size: 2}
    criteria: {completes: , memory_margin: {max_share: 0.95}}
  - name: large
    set: {batch_size: 20}
    criteria: {completes: , memory_margin: {max_share: 0.95}}
"""


@pytest.mark.parametrize(("fake", "limit"), [(True, FAKE), pytest.param(False, REAL, marks=pytest.mark.slow)])
def test_a_batch_that_the_kernel_kills_is_retried_smaller_and_never_again(
    tmp_path: Path, empty_store: Path, fake: bool, limit: str
) -> None:
    roofscale = partial(call, fake=fake)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "phase2.yaml").write_text(PHASE)
    amounts = ["--datasets", "rid", "--train", "20", "--val", "2", "--test", "1", "--image-px", "64"]
    assert roofscale(tmp_path, "data", "generate", "made", *amounts).returncode == 0

    words = ["phase", "2", "--set", "data_root=made", "--compute", limit, "--json"]
    done = roofscale(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    small, large = json.loads(done.stdout)["steps"]
    assert small["verdict"] == "passed"
    assert (large["verdict"], large["changed"]) == ("passed", "batch_size=11")
    (killed,) = large["tries"]
    assert killed["cause"] == "host_oom"

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    dead, retried = client.get_run(killed["run_id"]), client.get_run(large["run_id"])
    assert (dead.info.status, dead.data.tags["outcome"], dead.data.params["batch_size"]) == ("FAILED", "host_oom", "20")
    told = {name: retried.data.tags[name] for name in ("retry_of", "cause", "changed")}
    assert told == {"retry_of": killed["run_id"], "cause": "host_oom", "changed": "batch_size=11"}
    if not fake:
        assert client.get_model_version_by_alias("roofscale", "phase2-last-good").run_id == large["run_id"]
    last_good = json.loads((tmp_path / "runs/roofscale-phase2/last_good.json").read_text())
    assert last_good["config"]["batch_size"] == 11

    again = roofscale(tmp_path, "phase", "2", "--set", "data_root=made seed=1", "--compute", limit, "--json")
    large = json.loads(again.stdout)["steps"][1]
    assert "not run" in client.get_run(large["tries"][0]["run_id"]).data.tags["outcome_detail"]
