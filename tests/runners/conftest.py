"""Fixtures that several tests of runners share."""

from pathlib import Path

import pytest
from tests.runners.job_folder import AWKWARD, hand_over


@pytest.fixture
def top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """/opt/ml as the service makes it, with the channel of the config."""
    monkeypatch.chdir(tmp_path)  # and back, as a job goes to a folder of its own
    (tmp_path / "ml/input/data/config").mkdir(parents=True)
    (tmp_path / "ml/checkpoints").mkdir()
    hand_over(tmp_path / "ml", AWKWARD.as_dict())
    return tmp_path / "ml"
