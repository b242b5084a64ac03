"""What a climb came to: plain data that the ladder makes, ``record`` reads back from MLflow, and the report shows."""

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from roofscale.config import RunConfig
from roofscale.measurement import Measurement
from roofscale.phases.judge import StepVerdict, Verdict
from roofscale.phases.plan import Phase, Step


class Stopped(Exception):
    """A run was stopped, by somebody or by a full disk; nothing of it was judged. Says why."""


class Cause(enum.StrEnum):
    """Why a step failed, as far as its outcome and its evidence tell."""

    HOST_OOM = "host_oom"
    CUDA_OOM = "cuda_oom"
    OVER_MARGIN = "over_margin"  # it fitted, but not with the margin that the criterion asks for
    WORKERS_MEMORY = "workers_memory"  # memory, where the step gave the loader more processes or more to prepare
    SHM_FULL = "shm_full"
    DIVERGED = "diverged"
    LEAK = "leak"
    DATA_ERROR = "data_error"
    TIMEOUT = "timeout"
    CRASHED = "crashed"
    FORGETTING = "forgetting"
    CRITERIA = "criteria"  # it ran well; a criterion of speed, balance, learning or expectation was not met


@dataclass(frozen=True)
class Retreat:
    """Why a run takes a smaller increment than its step asks for."""

    retry_of: str  # the MLflow run that failed
    cause: Cause
    changed: str  # what was made smaller, as an override: 'batch_size=12'


@dataclass(frozen=True)
class StepResult:
    """One judged step: the run that decides it, and the other runs that led there."""

    step: Step
    config: RunConfig  # of the deciding run, under its first seed
    measurement: Measurement
    verdict: StepVerdict
    run_id: str
    folder: Path
    repeats: tuple[Measurement, ...] = ()  # the same config under other seeds
    retreat: Retreat | None = None  # None: the deciding run is at the step's own config
    cause: Cause | None = None  # of a failure
    tries: tuple["StepResult", ...] = ()  # the runs at other increments, in the order in which they were made

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """Of the deciding config under every seed, the first first."""
        return (self.measurement, *self.repeats)

    @property
    def runs(self) -> tuple["StepResult", ...]:
        """All runs at this step in the order in which they were made, the deciding one last."""
        return (*self.tries, self)


@dataclass(frozen=True)
class ClimbResult:
    """How far an attempt at a phase came."""

    phase: Phase
    attempt: Path
    run_id: str  # MLflow's parent run
    results: tuple[StepResult, ...]
    interrupted: bool
    experiment: str = ""  # MLflow's
    created: str = ""  # ISO 8601, UTC
    commit: str = ""  # of the code that ran; empty where that is not known
    notes: tuple[str, ...] = ()  # what a reader of the verdict has to know, such as a plan that was changed

    @property
    def verdict(self) -> Verdict:
        """Failed if a step failed; passed if all steps passed; else insufficient evidence."""
        found = [result.verdict.verdict for result in self.results]
        if Verdict.FAILED in found:
            return Verdict.FAILED
        return Verdict.PASSED if self.complete and set(found) == {Verdict.PASSED} else Verdict.INSUFFICIENT_EVIDENCE

    @property
    def complete(self) -> bool:
        """Whether every step was judged, well or not."""
        return len(self.results) == len(self.phase.steps) and not self.interrupted

    @property
    def last_good(self) -> StepResult | None:
        """The newest passed step, whose config is the last good."""
        return next((r for r in reversed(self.results) if r.verdict.verdict is Verdict.PASSED), None)

    def all_runs(self) -> Iterator[StepResult]:
        """Every run of every step in the order in which they were made."""
        for result in self.results:
            yield from result.runs
