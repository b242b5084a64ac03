"""Provenance: the git commit that a run was started on."""

import subprocess
from pathlib import Path

# A phase rewrites these documents in the working tree, which is no change of the code.
_RECORDS = ("STRATEGY.md", "launch.ipynb", "results")


def git_state(folder: Path) -> dict[str, str]:
    """Return the commit, and whether the working tree differs from it, as tags; empty if ``folder`` is no checkout."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return {}
    dirty = bool(_git(folder, "status", "--porcelain", "--", ".", *(f":!experiments/{name}" for name in _RECORDS)))
    return {"git_commit": commit, "git_dirty": str(dirty).lower(), "mlflow.source.git.commit": commit}


def _git(folder: Path, *words: str) -> str:
    try:
        process = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return process.stdout.strip() if process.returncode == 0 else ""
