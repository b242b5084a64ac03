"""Results of a phase: plain data that the phase runner makes, ``history`` reads from MLflow, and the report shows."""

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

from roofscale.config import RunConfig
from roofscale.measurement import Measurement
from roofscale.phases.criteria import Comparison
from roofscale.phases.judge import CriterionResult, StepVerdict, Verdict
from roofscale.phases.phase_file import Phase, Step


class Cause(enum.StrEnum):
    """Why a step did not pass, as read from its outcome and its criteria."""

    HOST_OOM = "host_oom"
    CUDA_OOM = "cuda_oom"
    OVER_MARGIN = "over_margin"  # it fitted, without the margin that the criterion requires
    WORKERS_MEMORY = "workers_memory"  # too much memory after the step raised num_workers or prefetch_factor
    SHM_FULL = "shm_full"
    DIVERGED = "diverged"
    LEAK = "leak"
    DATA_ERROR = "data_error"
    TIMEOUT = "timeout"
    CRASHED = "crashed"
    FORGETTING = "forgetting"
    NOT_LEARNING = "not_learning"
    LOADER_BOUND = "loader_bound"  # training waited for the loader
    UNEVEN_STEPS = "uneven_steps"  # single slow steps after the step raised num_workers: they compete for the cores
    FEW_STEPS = "few_steps"  # too few to judge the loss; more seeds with as many steps do not help
    FEW_VALIDATION_SAMPLES = "few_validation_samples"  # too few to judge; more seeds on the same samples do not help
    CRITERIA = "criteria"  # it ran well and failed a criterion of speed or balance


@dataclass(frozen=True)
class Fallback:
    """A change of the step's config after a run that did not pass."""

    retry_of: str  # the MLflow run that did not pass
    cause: Cause
    changed: str  # as an override: 'batch_size=12', 'schedule=mixed'


@dataclass(frozen=True)
class StepResult:
    """One judged step: the run that decides it, and its other runs."""

    step: Step
    config: RunConfig  # of the deciding run, under its first seed
    measurement: Measurement
    verdict: StepVerdict
    run_id: str
    folder: Path
    repeats: tuple[Measurement, ...] = ()  # the same config under other seeds
    fallback: Fallback | None = None  # None: the deciding run has the step's own config
    cause: Cause | None = None  # None if the run passed or only more seeds can add evidence
    tries: tuple["StepResult", ...] = ()  # the step's other runs, in the order in which they were made

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """Measurements of the deciding config under every seed, the first seed first."""
        return (self.measurement, *self.repeats)

    @property
    def runs(self) -> tuple["StepResult", ...]:
        """All runs of this step: the tries in the order in which they were made, then the deciding one."""
        return (*self.tries, self)


@dataclass(frozen=True)
class PhaseResult:
    """Result of one attempt at a phase."""

    phase: Phase
    attempt: Path
    run_id: str  # MLflow's parent run
    results: tuple[StepResult, ...]
    interrupted: bool
    experiment: str = ""  # in MLflow
    created: str = ""  # ISO 8601, UTC
    commit: str = ""  # of the code that ran; empty if unknown
    notes: tuple[str, ...] = ()  # remarks shown with the verdict, such as a plan that was changed
    skipped: Mapping[str, str] = field(default_factory=dict)  # step -> reason why its condition did not hold

    @property
    def verdict(self) -> Verdict:
        """Verdict on the phase's question.

        Failed if a step is not sound: a health check or a success criterion failed, and no fallback helped. Passed if
        every step is sound and one passed, so that there is a last good config. A finding, such as a batch that is no
        faster, is an answer and does not fail the phase. In all other cases the evidence is insufficient.
        """
        verdicts = {result.verdict.without_findings for result in self.results}
        if Verdict.FAILED in verdicts:
            return Verdict.FAILED
        passed = self.complete and verdicts == {Verdict.PASSED} and self.last_good is not None
        return Verdict.PASSED if passed else Verdict.INSUFFICIENT_EVIDENCE

    @property
    def complete(self) -> bool:
        """Whether every step was judged or skipped."""
        return len(self.results) + len(self.skipped) == len(self.phase.steps) and not self.interrupted

    @property
    def left_out(self) -> list[Step]:
        """The steps that were neither judged nor skipped."""
        known = {*(result.step.name for result in self.results), *self.skipped}
        return [step for step in self.phase.steps if step.name not in known]

    @property
    def last_good(self) -> StepResult | None:
        """The step whose config the next phase starts from; see ``select_last_good``."""
        return select_last_good(self.phase, self.results)

    @property
    def comparisons(self) -> list[Comparison]:
        """Every expectation of every step with its measured value, in the order of the runs.

        A fallback has none: the expectations of a step hold for the step's own config.
        """
        return [comparison for run in self.all_runs() for comparison in run.verdict.comparisons]

    def all_runs(self) -> Iterator[StepResult]:
        """Yield every run of every step, step by step; within a step the deciding run is last."""
        for result in self.results:
            yield from result.runs


def select_last_good(phase: Phase, results: Sequence[StepResult]) -> StepResult | None:
    """Select the passed step whose config the next phase starts from; None if no step passed.

    This is the newest one. In a phase with a ``least_batch`` it is the smallest batch of at least that size, or of the
    knee's size if that is larger; if none of these passed, the largest that did.
    """
    passed = [result for result in results if result.verdict.verdict is Verdict.PASSED]
    if not passed or not phase.least_batch:
        return passed[-1] if passed else None
    knee = newest_knee(results)
    minimum = max(phase.least_batch, int(knee.numbers["batch_size"]) if knee else 0)
    large_enough = [result for result in passed if result.config.batch_size >= minimum]
    by_batch = attrgetter("config.batch_size")
    return min(large_enough, key=by_batch) if large_enough else max(passed, key=by_batch)


def newest_knee(results: Sequence[StepResult]) -> CriterionResult | None:
    """Find the newest result of the criterion ``knee``; None if there is none, or if it was not certain."""
    knees = [c for result in results for run in result.runs for c in run.verdict.criteria if c.name == "knee"]
    return knees[-1] if knees and knees[-1].verdict is Verdict.PASSED else None
