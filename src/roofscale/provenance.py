"""Where code comes from: the commit that a run was started on."""

import subprocess
from pathlib import Path

# A climb rewrites its own record in the working tree; that is no change of the code.
_RECORDS = ("STRATEGY.md", "launch.ipynb", "results")


def git_state(folder: Path) -> dict[str, str]:
    """Commit and whether the tree differs from it, as tags; empty where ``folder`` is no git checkout."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return {}
    dirty = bool(_git(folder, "status", "--porcelain", "--", ".", *(f":!experiments/{name}" for name in _RECORDS)))
    return {"git_commit": commit, "git_dirty": str(dirty).lower(), "mlflow.source.git.commit": commit}


def _git(folder: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
