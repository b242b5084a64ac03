"""The name of a job and what is remembered of it in the run folder, so that the same command finds it again."""

import re
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

from roofscale.files import read_record, write_json

FILE = "job.json"
FOLDER_TAG = "folder"
PREFIX = "roofscale-"  # of every job's name, which deploy/iam counts on
_LONGEST_KEY = 58  # of a name's 63 characters; four are left for '-' and the number


@dataclass(frozen=True)
class Job:
    """One job of a run; the jobs of one run share its key, and with it the run folder in S3."""

    key: str
    number: int = 1
    over: bool = False  # its result has been taken
    usd: float = 0.0  # what all jobs of the run have cost so far
    at_most_usd: float = 0.0  # what this one may cost, where there is a budget

    @property
    def name(self) -> str:
        """What SageMaker knows it by."""
        return f"{self.key}-{self.number}"

    def save(self, run_dir: Path) -> None:
        """Remember it; written before the job is submitted, so that a kill between the two loses nothing."""
        write_json(run_dir / FILE, vars(self))


def load_or_new(run_dir: Path) -> Job:
    """The run's job to wait for, or the next one to submit."""
    known = _read(run_dir / FILE)
    if known is None:
        return Job(new_key(run_dir))
    return Job(known.key, known.number + 1, usd=known.usd) if known.over else known


def running_job(run_dir: Path) -> Job | None:
    """The run's job whose result was not taken yet; None where there is none."""
    known = _read(run_dir / FILE)
    return None if known is None or known.over else known


def _read(file: Path) -> Job | None:
    return read_record(file, lambda content: Job(**content)) if file.exists() else None


def new_key(run_dir: Path) -> str:
    """A name for a run: where it stands in whose attempt, and six hex digits, as names are unique in an account."""
    return f"{key_prefix(run_dir)}-{secrets.token_hex(3)}"


def key_prefix(run_dir: Path) -> str:
    """How the key of every run in this folder begins, here and wherever else there is a folder of this name."""
    words = re.sub(r"[^a-zA-Z0-9]+", "-", "-".join(_place(run_dir))).removeprefix(PREFIX)
    return f"{PREFIX}{words}"[: _LONGEST_KEY - 7].strip("-")


def tags_of(run_dir: Path) -> dict[str, str]:
    """Where a run belongs, and whose it is."""
    return {**location_tags(run_dir), FOLDER_TAG: owner_tag(run_dir)}


def owner_tag(run_dir: Path) -> str:
    """A tag of this machine's and this folder's alone."""
    return f"{socket.gethostname()}:{run_dir.absolute()}"[-256:]  # most characters of a tag


def from_name(name: str) -> Job:
    """A job by the name that SageMaker knows it by."""
    key, _, number = name.rpartition("-")
    return Job(key, int(number))


def location_tags(run_dir: Path) -> dict[str, str]:
    """Tags that say where a run belongs, from its folder: ``<experiment>/<attempt>/<step>``, or fewer of these."""
    found = dict(zip(("experiment", "attempt", "step"), _place(run_dir), strict=False))
    phase = re.fullmatch(r"roofscale-phase(\d)", found["experiment"])
    return {**found, "phase": phase[1]} if phase else found


def _place(run_dir: Path) -> tuple[str, ...]:
    """The last parts of a folder's path, from the experiment's on."""
    parts = run_dir.absolute().parts
    begins = max((i for i, part in enumerate(parts) if part.startswith(PREFIX)), default=len(parts) - 1)
    return parts[begins:]


@dataclass(frozen=True)
class Spending:
    """What the jobs of an attempt cost."""

    usd: float = 0.0  # of those that are over, as far as they were billed
    at_most_usd: float = 0.0  # of those under way
    under_way: int = 0


def spending(run_dir: Path) -> Spending:
    """What a run's attempt costs without the run's own next job: a phase's steps and trials, a training by itself."""
    place = _place(run_dir)
    folder = run_dir.absolute()
    attempt = folder.parents[len(place) - 3] if len(place) > 2 else folder
    jobs = {file.parent: job for file in attempt.rglob(FILE) if (job := _read(file))}
    under_way = [job for other, job in jobs.items() if not job.over and other != folder]
    return Spending(sum(job.usd for job in jobs.values()), sum(job.at_most_usd for job in under_way), len(under_way))
