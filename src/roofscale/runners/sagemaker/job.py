"""Names, tags and costs of jobs; job.json in the run folder, by which the same command finds its job again."""

import re
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

from roofscale.files import read_record, write_json

FILE = "job.json"
FOLDER_TAG = "folder"
PREFIX = "roofscale-"  # of every job's name, which deploy/iam counts on
_LONGEST_KEY = 58  # of a name's 63 characters; the rest is for '-' and the number


@dataclass(frozen=True)
class Job:
    """One job of a run; all jobs of a run share its key, and with it the run folder in S3."""

    key: str
    number: int = 1
    over: bool = False  # its measurement is in the run folder
    usd: float = 0.0  # cost of all ended jobs of the run, this one included
    at_most_usd: float = 0.0  # cost of this job at its maximum runtime

    @property
    def name(self) -> str:
        """Return the job's name at SageMaker: ``<key>-<number>``."""
        return f"{self.key}-{self.number}"

    def save(self, run_dir: Path) -> None:
        """Write job.json; before the job is submitted, so that a kill between the two loses no job."""
        write_json(run_dir / FILE, vars(self))


def load_or_new(run_dir: Path) -> Job:
    """Return the run's job that is not over, else the next one to submit."""
    job = load(run_dir)
    if job is None:
        return new_job(run_dir)
    return Job(job.key, job.number + 1, usd=job.usd) if job.over else job


def load(run_dir: Path) -> Job | None:
    """Return the run's newest job; None if it has none."""
    file = run_dir / FILE
    return read_record(file, lambda content: Job(**content)) if file.exists() else None


def new_job(run_dir: Path) -> Job:
    """Return a first job; six random hex digits in its key, because job names are unique in an account and region."""
    return Job(f"{key_prefix(run_dir)}-{secrets.token_hex(3)}")


def key_prefix(run_dir: Path) -> str:
    """Return the prefix of the keys of all runs in this folder; equal for a folder of the same name elsewhere."""
    words = re.sub(r"[^a-zA-Z0-9]+", "-", "-".join(_location(run_dir))).removeprefix(PREFIX)
    return f"{PREFIX}{words}"[: _LONGEST_KEY - 7].strip("-")


def tags_of(run_dir: Path) -> dict[str, str]:
    """Return the tags of a run: ``experiment``, ``attempt``, ``step`` (or fewer) and ``phase`` from the folder's path.

    ``FOLDER_TAG`` identifies the folder and its machine: ``<host>:<absolute path>``, cut from the left.
    """
    tags = dict(zip(("experiment", "attempt", "step"), _location(run_dir), strict=False))
    if phase := re.fullmatch(r"roofscale-phase(\d)", tags["experiment"]):
        tags["phase"] = phase[1]
    return {**tags, FOLDER_TAG: f"{socket.gethostname()}:{run_dir.absolute()}"[-256:]}  # AWS's limit of a tag value


def from_name(name: str) -> Job:
    """Return the job of a name at SageMaker; only key and number are set."""
    key, _, number = name.rpartition("-")
    return Job(key, int(number))


def _location(run_dir: Path) -> tuple[str, ...]:
    """Return the parts of the folder's path from the experiment's (``roofscale-...``) on; else the last part."""
    parts = run_dir.absolute().parts
    first = max((i for i, part in enumerate(parts) if part.startswith(PREFIX)), default=len(parts) - 1)
    return parts[first:]


@dataclass(frozen=True)
class Spending:
    """The cost of the jobs of an attempt."""

    usd: float = 0.0  # billed for those that are over
    at_most_usd: float = 0.0  # limit of those under way
    under_way: int = 0


def spending(run_dir: Path) -> Spending:
    """Return the spending of a run's attempt, without the run's own next job.

    The attempt is all steps and trials of a phase; a training outside a phase is an attempt of its own.
    """
    location = _location(run_dir)
    folder = run_dir.absolute()
    attempt = folder.parents[len(location) - 3] if len(location) > 2 else folder
    jobs = {file.parent: job for file in attempt.rglob(FILE) if (job := load(file.parent))}
    running = [job for job_folder, job in jobs.items() if not job.over and job_folder != folder]
    return Spending(sum(job.usd for job in jobs.values()), sum(job.at_most_usd for job in running), len(running))
