"""What an attempt at a phase leaves on disk, so that the same command goes on where a kill left it.

``runs/<experiment>/<attempt>/attempt.json`` names the plan and the MLflow run; each step has a folder beside it with
the run folder's files, ``run.json`` (its MLflow run) and, once judged, ``verdict.json``. Attempts are only ever added.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from roofscale.config import RunConfig
from roofscale.errors import EnvironmentFault
from roofscale.files import read_record, write_json
from roofscale.measurement import Measurement, Outcome
from roofscale.phases.judge import StepVerdict


class Busy(EnvironmentFault):
    """Another process is climbing this phase."""


@dataclass(frozen=True)
class StepFolder:
    """The folder of one run of one step."""

    path: Path

    @property
    def run_id(self) -> str | None:
        """The MLflow run that the step was begun under."""
        file = self.path / "run.json"
        return read_record(file, lambda said: str(said["run_id"])) if file.exists() else None

    @property
    def config(self) -> RunConfig | None:
        """The config that the run was begun with; None where it is still to begin."""
        file = self.path / "run.json"
        return read_record(file, lambda said: RunConfig().with_overrides(said["config"])) if file.exists() else None

    def begin(self, run_id: str, config: RunConfig) -> None:
        """Make the folder, and note the MLflow run and the config, so that a resumed step goes on with them."""
        self.path.mkdir(exist_ok=True)
        write_json(self.path / "run.json", {"run_id": run_id, "config": config.as_dict()})

    @property
    def verdict(self) -> StepVerdict | None:
        """The verdict, or None where the step is still to be run or under way."""
        file = self.path / "verdict.json"
        return read_record(file, StepVerdict.from_dict) if file.exists() else None

    def judge(self, verdict: StepVerdict) -> None:
        """Note the verdict; with it the step is done."""
        write_json(self.path / "verdict.json", verdict.as_dict())

    @property
    def measurement(self) -> Measurement:
        """What the run yielded."""
        return Measurement.load(self.path / "measurement.json")

    @property
    def measured(self) -> Measurement | None:
        """What a run yielded that came to its end, perhaps while nobody was there to judge it; None where none did."""
        ended = (self.path / "measurement.json").exists() and self.measurement.outcome is not Outcome.INTERRUPTED
        return self.measurement if ended else None


@dataclass(frozen=True)
class Attempt:
    """One attempt at a phase."""

    path: Path

    @property
    def content(self) -> dict[str, Any]:
        """``plan`` (fingerprint), ``run_id``, ``created``, ``steps`` (names), ``said`` (the phase file), ``notes``,
        ``skipped`` (step -> why), and ``verdict`` once it is over.

        Raises:
            RecordError: the file is damaged.
        """
        return read_record(self.path / "attempt.json", _whole_attempt)

    def update(self, **fields: Any) -> None:
        """Add or replace fields."""
        write_json(self.path / "attempt.json", {**self.content, **fields})

    def keep_notes(self, notes: Sequence[str]) -> tuple[str, ...]:
        """Note what a reader of the verdict has to know; return all that was noted since the attempt began."""
        kept = tuple(dict.fromkeys([*self.content.get("notes", ()), *notes]))
        self.update(notes=list(kept))
        return kept

    def step(self, number: int, name: str, retreat: int = 0, repeat: int = 0) -> StepFolder:
        """The folder of a step's first run, or of a further one (with a remedy, under another seed)."""
        further = (f"-retreat{retreat}" if retreat else "") + (f"-repeat{repeat}" if repeat else "")
        return StepFolder(self.path / f"{number:02d}-{name}{further}")

    def search(self, number: int, name: str) -> Path:
        """The folder of the search that a step begins with; made by the search."""
        return self.path / f"{number:02d}-{name}.search"

    @property
    def has_verdicts(self) -> bool:
        """Whether any step was judged."""
        return any(self.path.glob("*/verdict.json"))


class Attempts:
    """All attempts at one phase: ``runs/<experiment>``.

    Args:
        runs: the folder of all runs.
        experiment: MLflow's.
        last_good_of: the experiment whose last good config these attempts change; their own where empty.
    """

    def __init__(self, runs: Path, experiment: str, last_good_of: str = "") -> None:
        self.experiment = experiment
        self.path = runs / experiment
        self._last_good = runs / (last_good_of or experiment) / "last_good.json"

    def all(self) -> list[Attempt]:
        """The attempts, oldest first."""
        return [Attempt(file.parent) for file in sorted(self.path.glob("*/attempt.json"))]

    def unfinished(self, plan: str) -> Attempt | None:
        """The newest attempt, if it is at this very plan and was not brought to an end."""
        newest = self.all()[-1:]
        return next((a for a in newest if a.content["plan"] == plan and not a.content.get("verdict")), None)

    def is_finished(self, plan: str) -> bool:
        """Whether the newest attempt is at this very plan and was brought to an end."""
        return any(a.content["plan"] == plan and bool(a.content.get("verdict")) for a in self.all()[-1:])

    @property
    def coming(self) -> Path:
        """The folder that the next attempt would have."""
        numbers = [int(folder.name) for folder in self.path.glob("[0-9]*") if folder.name.isdecimal()]
        return self.path / f"{max(numbers, default=0) + 1:03d}"

    def new(self, plan: str, run_id: str, created: str, steps: list[str], said: Mapping[str, Any]) -> Attempt:
        """Begin the next attempt at a plan (its fingerprint) of a phase file (what it says)."""
        folder = self.coming
        folder.mkdir(parents=True)
        content = {"plan": plan, "run_id": run_id, "created": created, "steps": steps, "said": said}
        write_json(folder / "attempt.json", content)
        return Attempt(folder)

    @property
    def last_good_file(self) -> Path:
        """The resolved config of the newest passed step, which rollback returns to."""
        return self._last_good

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the phase for this process; the lock falls with it, however it ends.

        Raises:
            Busy: another process holds it.
        """
        for folder in (self.path, self.last_good_file.parent):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            held = FileLock(self.path / ".lock").acquire(blocking=False)
        except Timeout:
            raise Busy(
                f"{self.path}: another process is climbing this phase; wait for it, or stop it first, or work in "
                "another folder."
            ) from None
        with held:
            yield


def _whole_attempt(content: dict[str, Any]) -> dict[str, Any]:
    """The content of an attempt's file, whose parts are of the types that they were written with."""
    kinds = {"plan": str, "run_id": str, "created": str, "steps": list, "said": dict}
    for name, kind in kinds.items():
        if not isinstance(content[name], kind):
            raise TypeError(f"{name} is a {type(content[name]).__name__}")
    return content


def plan_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What differs between two phase files, as they were read: one line for each key or step."""
    steps = [{step["name"]: step for step in said.get("steps", ())} for said in (before, after)]
    lines = _differences((), *({k: v for k, v in said.items() if k != "steps"} for said in (before, after)))
    for name in dict.fromkeys([*steps[0], *steps[1]]):
        old, new = (said.get(name) for said in steps)
        if old is None or new is None:
            lines.append(f"step {name} was {'added' if old is None else 'taken out'}")
        else:
            lines += _differences((f"step {name}",), old, new)
    return lines


def _differences(path: tuple[str, ...], before: Any, after: Any) -> list[str]:
    """One line for each value that differs, at its place in nested mappings."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        keys = dict.fromkeys([*before, *after])
        return [line for key in keys for line in _differences((*path, key), before.get(key), after.get(key))]
    return [] if before == after else [f"{', '.join(path)}: {json.dumps(before)} became {json.dumps(after)}"]
