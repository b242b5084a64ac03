"""Files of an attempt at a phase: with them the same command resumes the attempt after a kill.

``runs/<experiment>/<attempt>/attempt.json`` names the plan and the MLflow run; each step has a folder next to it with
the run folder's files, ``run.json`` (its MLflow run) and, once judged, ``verdict.json``. No attempt is ever
overwritten.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from roofscale.config import RunConfig
from roofscale.errors import EnvironmentFault
from roofscale.files import read_record, write_json
from roofscale.measurement import Measurement, Outcome
from roofscale.phases.judge import StepVerdict

_LONGEST_DIFF = 60  # lines of up to about 80 characters; a longer change is as good as another plan


class PhaseLocked(EnvironmentFault):
    """Another process is running this phase."""


@dataclass(frozen=True)
class StepFolder:
    """The folder of one run of one step."""

    path: Path

    @property
    def run_id(self) -> str | None:
        """Id of the step's MLflow run; None if it has not been opened."""
        file = self.path / "run.json"
        return read_record(file, lambda content: str(content["run_id"])) if file.exists() else None

    @property
    def config(self) -> RunConfig | None:
        """Config of the run; None if it has not begun."""
        file = self.path / "run.json"
        if not file.exists():
            return None
        return read_record(file, lambda content: RunConfig().with_overrides(content["config"]))

    def set_run(self, run_id: str, config: RunConfig) -> None:
        """Create the folder and record the MLflow run and the config, with which a resumed step goes on."""
        self.path.mkdir(exist_ok=True)
        write_json(self.path / "run.json", {"run_id": run_id, "config": config.as_dict()})

    @property
    def verdict(self) -> StepVerdict | None:
        """Verdict of the step; None if it has not been judged."""
        file = self.path / "verdict.json"
        return read_record(file, StepVerdict.from_dict) if file.exists() else None

    def set_verdict(self, verdict: StepVerdict) -> None:
        """Record the verdict, which ends the step."""
        write_json(self.path / "verdict.json", verdict.as_dict())

    @property
    def measurement(self) -> Measurement:
        """Measurement of the run."""
        return Measurement.load(self.path / "measurement.json")

    @property
    def finished_measurement(self) -> Measurement | None:
        """Measurement of a run that ended, also one without a verdict (the launcher was killed); else None."""
        ended = (self.path / "measurement.json").exists() and self.measurement.outcome is not Outcome.INTERRUPTED
        return self.measurement if ended else None


@dataclass(frozen=True)
class Attempt:
    """One attempt at a phase."""

    path: Path

    @property
    def content(self) -> dict[str, Any]:
        """``plan`` (fingerprint), ``run_id``, ``created``, ``steps`` (names), ``source`` (the phase file), ``notes``,
        ``skipped`` (step -> reason), and ``verdict`` once it is finished.

        Raises:
            RecordError: the file is damaged.
        """
        return read_record(self.path / "attempt.json", _whole_attempt)

    def update(self, **fields: Any) -> None:
        """Add or replace fields."""
        write_json(self.path / "attempt.json", {**self.content, **fields})

    def add_notes(self, notes: Sequence[str]) -> tuple[str, ...]:
        """Add remarks to be shown with the verdict; return all of this attempt."""
        all_notes = tuple(dict.fromkeys([*self.content.get("notes", ()), *notes]))
        self.update(notes=list(all_notes))
        return all_notes

    def step(self, number: int, name: str, fallback: int = 0, repeat: int = 0) -> StepFolder:
        """Return the folder of a step's first run, or of its n-th fallback and repeat."""
        suffix = (f"-fallback{fallback}" if fallback else "") + (f"-repeat{repeat}" if repeat else "")
        return StepFolder(self.path / f"{number:02d}-{name}{suffix}")

    def search(self, number: int, name: str) -> Path:
        """Return the folder of a step's search; the search makes it."""
        return self.path / f"{number:02d}-{name}.search"

    @property
    def has_verdicts(self) -> bool:
        """Whether any step was judged."""
        return any(self.path.glob("*/verdict.json"))


class Attempts:
    """All attempts at one phase: ``runs/<experiment>``.

    Args:
        runs: the folder of all runs.
        experiment: the name in MLflow.
        last_good_of: the experiment whose last good config these attempts replace; empty: their own.
    """

    def __init__(self, runs: Path, experiment: str, last_good_of: str = "") -> None:
        self.experiment = experiment
        self.path = runs / experiment
        self._last_good = runs / (last_good_of or experiment) / "last_good.json"

    def all(self) -> list[Attempt]:
        """Return the attempts, oldest first."""
        return [Attempt(file.parent) for file in sorted(self.path.glob("*/attempt.json"))]

    def unfinished(self, plan: str) -> Attempt | None:
        """Return the newest attempt if it has this plan and is not finished; else None."""
        newest = self.all()[-1:]
        return next((a for a in newest if a.content["plan"] == plan and not a.content.get("verdict")), None)

    def is_finished(self, plan: str) -> bool:
        """Return whether the newest attempt has this plan and is finished."""
        return any(a.content["plan"] == plan and bool(a.content.get("verdict")) for a in self.all()[-1:])

    @property
    def next_folder(self) -> Path:
        """Folder of the next attempt."""
        numbers = [int(folder.name) for folder in self.path.glob("[0-9]*") if folder.name.isdecimal()]
        return self.path / f"{max(numbers, default=0) + 1:03d}"

    def new(self, plan: str, run_id: str, created: str, steps: list[str], phase_file: Mapping[str, Any]) -> Attempt:
        """Create the next attempt at a plan (its fingerprint) of a phase file (its content)."""
        folder = self.next_folder
        folder.mkdir(parents=True)
        content = {"plan": plan, "run_id": run_id, "created": created, "steps": steps, "source": phase_file}
        write_json(folder / "attempt.json", content)
        return Attempt(folder)

    @property
    def last_good_file(self) -> Path:
        """File with the resolved config of the last good step."""
        return self._last_good

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the phase for this process; the operating system releases the lock however the process ends.

        Raises:
            PhaseLocked: another process holds it.
        """
        for folder in (self.path, self.last_good_file.parent):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            held = FileLock(self.path / ".lock").acquire(blocking=False)
        except Timeout:
            raise PhaseLocked(
                f"{self.path}: another process is climbing this phase; wait for it, or stop it first, or work in "
                "another folder."
            ) from None
        with held:
            yield


def _whole_attempt(content: dict[str, Any]) -> dict[str, Any]:
    """Check the types in the content of an attempt's file."""
    kinds = {"plan": str, "run_id": str, "created": str, "steps": list, "source": dict}
    for name, kind in kinds.items():
        if not isinstance(content[name], kind):
            raise TypeError(f"{name} is a {type(content[name]).__name__}")
    return content


def plan_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the diff of two phase files: YAML lines behind '-' or '+', each under the keys that it belongs to.

    It is empty if only the order of keys differs, and ends after ``_LONGEST_DIFF`` lines: it has to fit an MLflow tag.
    """
    if before == after:
        return []
    old, new = (_yaml_lines(phase) for phase in (before, after))
    kept: list[str] = []
    depth = 0  # indentation of the line kept last: from the end backwards, a line indented less is a key above it
    for line in [*difflib.unified_diff(old, new, n=max(len(old), len(new)), lineterm="")][:2:-1]:  # without its heading
        indentation = len(line[1:]) - len(line[1:].lstrip())
        if line[0] != " " or indentation < depth:
            kept.append(line)
            depth = indentation
    kept.reverse()
    more = len(kept) - _LONGEST_DIFF
    return [*kept[:_LONGEST_DIFF], f"... and {more} more lines"] if more > 0 else kept


def _yaml_lines(phase: Mapping[str, Any]) -> list[str]:
    """Return a phase file as YAML with its steps by name, so that each line of a step is under the step's name."""
    steps = {step["name"]: {k: v for k, v in step.items() if k != "name"} for step in phase.get("steps", ())}
    text = yaml.safe_dump({**phase, "steps": steps}, default_flow_style=None, sort_keys=False, allow_unicode=True)
    return str(text).splitlines()
