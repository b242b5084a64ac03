"""The commit of a run, and whether the code differs from it."""

import subprocess
from pathlib import Path

from roofscale.provenance import git_state


def git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=Nobody", "-c", "user.email=nobody@example.org"]
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def test_what_a_climb_writes_up_is_no_change_of_the_code(tmp_path: Path) -> None:
    assert git_state(tmp_path) == {}
    records = [tmp_path / "experiments" / name for name in ("STRATEGY.md", "launch.ipynb", "results/phase1.json")]
    records[-1].parent.mkdir(parents=True)
    code = tmp_path / "code.py"
    for file in (*records, code):
        file.write_text("as committed")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "all")
    for file in (*records, tmp_path / "experiments" / "results" / "phase2.json"):
        file.write_text("written anew")
    assert git_state(tmp_path)["git_dirty"] == "false"
    code.write_text("changed")
    assert git_state(tmp_path)["git_dirty"] == "true"
    assert len(git_state(tmp_path)["git_commit"]) == 40
