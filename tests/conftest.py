"""What every test shares: a calm machine, and where the real samples lie."""

import os

# Before torch or albumentations is imported. Two OpenMP threads thrash on a busy two-core machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# Not those of the user who runs the tests: an empty file each.
os.environ |= dict.fromkeys(("SAGEMAKER_USER_CONFIG_OVERRIDE", "SAGEMAKER_ADMIN_CONFIG_OVERRIDE"), os.devnull)

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings
from tests.flaky_mlflow_server import line, mlflow_server  # noqa: F401  # fixtures

ROOT = Path(__file__).resolve().parents[1]

# How long an example takes says how busy the machine is, and nothing of the code.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")

# Processes that tests start find the package, installed or not, and the tests' own modules.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH")]))


@pytest.fixture(scope="session")
def root() -> Path:
    """The top of the working tree."""
    return ROOT


@pytest.fixture(scope="session")
def real_samples() -> Path:
    """The folder of real samples beside the working tree; the test is skipped where there is none."""
    folder = ROOT.parent / "shared" / "samples"
    if not folder.is_dir():
        pytest.skip("real samples are not on this machine (../shared/samples)")
    return folder


@pytest.fixture(autouse=True)
def _own_tracking_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may write to the user's MLflow store, nor to a run that an outer `mlflow run` opened."""
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MLflow database with its tables and nothing in them: making one takes seconds, copying it does not."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    make = "from mlflow import MlflowClient; MlflowClient().search_experiments()"
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{file}"}
    subprocess.run([sys.executable, "-c", make], env=environment, check=True, capture_output=True)
    return file


@pytest.fixture
def tracking_store(empty_store: Path, tmp_path: Path) -> None:
    """Where this test's MLflow store will be looked for, put a ready one."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
