"""The same scenarios in one's own account at AWS, for money: ``make test-sagemaker-real``."""

import os
from pathlib import Path

import pytest
from tests.sagemaker.environment import Place

from roofscale import compute
from roofscale.runners.sagemaker import settings

# Every scenario's jobs, counted generously, by instance. None runs for longer than this, whatever happens to it; on the
# simulator each takes under two minutes.
_JOBS = {"ml.m5.xlarge": 30, "ml.m5.large": 1}
_LONGEST_SECONDS = 900
_AGREED = "ROOFSCALE_REAL_BUDGET_USD"


def most_usd() -> float:
    """What all jobs together cost if each runs for as long as it may."""
    prices = {name: compute.get(name).usd_per_hour or 0.0 for name in _JOBS}
    return sum(number * prices[name] * _LONGEST_SECONDS / 3600 for name, number in _JOBS.items())


def agreed(environment: dict[str, str]) -> bool:
    """Whether whoever pays has said that it may cost that much."""
    return float(environment.get(_AGREED, "0")) >= most_usd()


def prepared(folder: Path) -> Place:
    """A place with the settings of the user, whose jobs are paid for."""
    if not agreed(dict(os.environ)):
        pytest.exit(
            f"These tests run up to {sum(_JOBS.values())} training jobs in your AWS account, which may cost up to "
            f"{most_usd():.2f} USD, S3 and MLflow not counted. Set {_AGREED}={most_usd():.2f} to agree.",
            returncode=1,
        )
    mine = settings.load()
    named = {
        "ROOFSCALE_SAGEMAKER": str(Path(os.environ.get(settings.FILE_VARIABLE, settings.FILE)).absolute()),
        "ROOFSCALE_SAGEMAKER_MAX_RUNTIME_SECONDS": str(_LONGEST_SECONDS),
        "OMP_NUM_THREADS": "1",
    }
    tracked = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    return Place(folder, {**tracked, **os.environ, **named}, bucket=mine.bucket, real=True)
