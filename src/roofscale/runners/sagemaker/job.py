"""The name of a job and what is remembered of it in the run folder, so that the same command finds it again."""

import json
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from roofscale.measurement import write_json

FILE = "job.json"
_LONGEST_KEY = 58  # of a name's 63 characters; four are left for '-' and the number


@dataclass(frozen=True)
class Job:
    """One job of a run; the jobs of one run share its key, and with it the run folder in S3."""

    key: str
    number: int = 1
    over: bool = False  # its result has been taken
    usd: float = 0.0  # what all jobs of the run have cost so far

    @property
    def name(self) -> str:
        """What SageMaker knows it by."""
        return f"{self.key}-{self.number}"

    def save(self, run_dir: Path) -> None:
        """Remember it; written before the job is submitted, so that a kill between the two loses nothing."""
        write_json(run_dir / FILE, vars(self))


def of_run(run_dir: Path) -> Job:
    """The run's job to wait for, or the next one to submit."""
    file = run_dir / FILE
    if not file.exists():
        return Job(new_key(run_dir))
    known = Job(**json.loads(file.read_text(encoding="utf-8")))
    return Job(known.key, known.number + 1, usd=known.usd) if known.over else known


def new_key(run_dir: Path) -> str:
    """A name for a run: where it stands in whose attempt, and six hex digits, as names are unique in an account."""
    words = re.sub(r"[^a-zA-Z0-9]+", "-", "-".join(_place(run_dir))).removeprefix("roofscale-")
    return f"{f'roofscale-{words}'[: _LONGEST_KEY - 7].strip('-')}-{secrets.token_hex(3)}"


def places(run_dir: Path) -> dict[str, str]:
    """Tags that say where a run belongs, from its folder: ``<experiment>/<attempt>/<step>``, or fewer of these."""
    found = dict(zip(("experiment", "attempt", "step"), _place(run_dir), strict=False))
    phase = re.fullmatch(r"roofscale-phase(\d)", found["experiment"])
    return {**found, "phase": phase[1]} if phase else found


def _place(run_dir: Path) -> tuple[str, ...]:
    """The last parts of a folder's path, from the experiment's on."""
    parts = run_dir.absolute().parts
    begins = max((i for i, part in enumerate(parts) if part.startswith("roofscale-")), default=len(parts) - 1)
    return parts[begins:]


def spent_usd(run_dir: Path) -> float:
    """What all jobs of a run's attempt have cost so far: of a phase all its steps and trials, of a training its own."""
    place = _place(run_dir)
    attempt = run_dir.absolute().parents[len(place) - 3] if len(place) > 2 else run_dir
    return sum(float(json.loads(file.read_text(encoding="utf-8"))["usd"]) for file in attempt.rglob(FILE))
