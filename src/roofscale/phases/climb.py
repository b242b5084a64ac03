"""What a climb came to: plain data that the ladder makes, ``record`` reads back from MLflow, and the report shows."""

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from roofscale.config import RunConfig
from roofscale.measurement import Measurement
from roofscale.phases.criteria import Comparison
from roofscale.phases.judge import CriterionResult, StepVerdict, Verdict
from roofscale.phases.phase_file import Phase, Step


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
    NOT_LEARNING = "not_learning"
    LOADER_BOUND = "loader_bound"  # training waited for the loader
    FEW_STEPS = "few_steps"  # too few to tell how the loss goes; more seeds of as many would not help
    FEW_VALIDATION_SAMPLES = "few_validation_samples"  # too few to tell; more seeds of the same would not help
    CRITERIA = "criteria"  # it ran well; a criterion of speed or balance was not met


@dataclass(frozen=True)
class Retreat:
    """Why a run departs from what its step asks for: the remedy that it tries."""

    retry_of: str  # the MLflow run that did not pass
    cause: Cause
    changed: str  # the remedy as an override: 'batch_size=12', 'schedule=mixed'


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
    tries: tuple["StepResult", ...] = ()  # the step's other runs, in the order in which they were made

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
    skipped: Mapping[str, str] = field(default_factory=dict)  # step -> why its condition did not hold

    @property
    def verdict(self) -> Verdict:
        """What the phase's question came to, in this one place.

        Failed where a step is not sound: a health check or a success criterion failed, and no remedy helped. Passed
        where every step is, and one passed to go on from. A finding, such as a batch that is no faster, is an answer,
        so that a step which lacks nothing else does not fail its phase. Else the evidence is insufficient.
        """
        sound = [result.verdict.sound for result in self.results]
        if Verdict.FAILED in sound:
            return Verdict.FAILED
        told = self.complete and set(sound) == {Verdict.PASSED} and self.last_good is not None
        return Verdict.PASSED if told else Verdict.INSUFFICIENT_EVIDENCE

    @property
    def complete(self) -> bool:
        """Whether every step was judged, well or not, or its condition did not hold."""
        return len(self.results) + len(self.skipped) == len(self.phase.steps) and not self.interrupted

    @property
    def left_out(self) -> list[Step]:
        """The steps that were neither judged nor skipped."""
        known = {*(result.step.name for result in self.results), *self.skipped}
        return [step for step in self.phase.steps if step.name not in known]

    @property
    def last_good(self) -> StepResult | None:
        """The passed step whose config is the last good; see ``hand_on``."""
        return hand_on(self.phase, self.results)

    @property
    def comparisons(self) -> list[Comparison]:
        """Every expectation of every step with what was measured of it, in the order of the runs.

        A run with a remedy has none: what was expected of the increment asked for says nothing of another.
        """
        return [found for run in self.all_runs() for found in run.verdict.comparisons]

    def all_runs(self) -> Iterator[StepResult]:
        """Every run of every step in the order in which they were made."""
        for result in self.results:
            yield from result.runs


def hand_on(phase: Phase, results: Sequence[StepResult]) -> StepResult | None:
    """The passed step whose config is handed on; None where none passed.

    It is the newest. In a phase with a ``least_batch`` it is the smallest batch of at least that size, or of the knee's
    where that is larger; where none of these held, the largest that did.
    """
    passed = [result for result in results if result.verdict.verdict is Verdict.PASSED]
    if not passed or not phase.least_batch:
        return passed[-1] if passed else None
    knee = find_knee(results)
    least = max(phase.least_batch, int(knee.numbers["batch_size"]) if knee else 0)
    enough = [result for result in passed if result.config.batch_size >= least]
    return min(enough, key=_batch_size) if enough else max(passed, key=_batch_size)


def find_knee(results: Sequence[StepResult]) -> CriterionResult | None:
    """The newest word of the criterion ``knee``; None where it could not be told."""
    told = [found for r in results for run in r.runs for found in run.verdict.criteria if found.name == "knee"]
    return told[-1] if told and told[-1].verdict is Verdict.PASSED else None


def _batch_size(result: StepResult) -> int:
    return result.config.batch_size
