"""Where code comes from: the commit that a run was started on."""

import subprocess
from pathlib import Path


def git_state(folder: Path) -> dict[str, str]:
    """Commit and whether the tree differs from it, as tags; empty where ``folder`` is no git checkout."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return {}
    # A phase rewrites its own record in the working tree; that is no change of the code.
    dirty = bool(_git(folder, "status", "--porcelain", "--", ".", ":!experiments/STRATEGY.md"))
    return {"git_commit": commit, "git_dirty": str(dirty).lower(), "mlflow.source.git.commit": commit}


def _git(folder: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
