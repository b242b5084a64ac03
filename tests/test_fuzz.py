"""A sample of ``benchmarks.fuzz``: no reader ends in a traceback over a damaged file."""

from pathlib import Path

import pytest
from benchmarks.fuzz import TARGETS, contents, fuzz, verdict_of


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_damaged_file_is_taken_or_refused_by_name(name: str, tmp_path: Path) -> None:
    found = fuzz(name, 60, 1, tmp_path)
    assert found["bad"] == []
    assert sum(found["counts"].values()) == 60


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_the_sound_file_is_taken(name: str, tmp_path: Path) -> None:
    contents(TARGETS[name], 1, 0, tmp_path)
    sound = tmp_path / "box" / TARGETS[name].file
    assert verdict_of(TARGETS[name], sound.read_bytes(), tmp_path) == "taken"
