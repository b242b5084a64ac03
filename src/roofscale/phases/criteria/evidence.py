"""What a criterion looks at, and what all of them share: how runs pool, and when the machine is to blame."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from roofscale.config import RunConfig, affecting
from roofscale.measurement import Measurement
from roofscale.phases.expectation import Expectation
from roofscale.stats.curves import Finding, Verdict, combine
from roofscale.stats.intervals import MAX_OTHER_LOAD

MAX_PACE_DRIFT = 1.2  # ratio of paces; half the tightest tolerance of a shipped phase file (0.20), either way

# Runs that agree in these did the same work on each sample, in batches of whatever size, loaded by however many.
SAME_WORK = affecting("step", "loader") - {"batch_size", "num_workers", "prefetch_factor"}


@dataclass(frozen=True)
class Limit:
    """A number that a phase file may set."""

    default: float
    meaning: str  # unit and source included
    is_memory_margin: bool = False  # if unset, the step's Step.memory_margin


@dataclass(frozen=True)
class EarlierStep:
    """An earlier step of the phase: the config that decided it, and what it yielded under each seed."""

    config: RunConfig
    runs: tuple[Measurement, ...]


@dataclass(frozen=True)
class Evidence:
    """All that a criterion may look at."""

    measurement: Measurement
    previous: tuple[Measurement, ...] = ()  # the step before, under all seeds
    base: tuple[Measurement, ...] = ()  # the first step of the phase, likewise
    repeats: tuple[Measurement, ...] = ()  # the same step under other seeds
    expect: tuple[Expectation, ...] = ()
    config: RunConfig | None = None  # of the measurement; None where nobody knows it
    history: tuple[EarlierStep, ...] = ()  # the earlier steps of the phase, in order

    @property
    def runs(self) -> tuple[Measurement, ...]:
        """The measurement and its repeats."""
        return (self.measurement, *self.repeats)

    def config_of(self, run: Measurement) -> RunConfig | None:
        """The run config of one of these runs, None where nobody knows it."""
        if any(run is one for one in self.runs):
            return self.config
        return next((rung.config for rung in self.history if any(run is one for one in rung.runs)), None)


@dataclass(frozen=True)
class Criterion:
    """One entry of CRITERIA."""

    meaning: str
    judge: Callable[[Evidence, Mapping[str, float]], Finding]
    limits: Mapping[str, Limit] = field(default_factory=dict)
    finding: bool = False  # it tells what a change is worth; a run that does not meet it is sound all the same


def insufficient(text: str) -> Finding:
    """Not enough evidence, and of what."""
    return Finding(Verdict.INSUFFICIENT_EVIDENCE, text)


def judge_each_run(evidence: Evidence, judge: Callable[[Measurement], Finding]) -> Finding:
    """The finding that decides among those of the runs; one run's lack of evidence is made up by another's."""
    findings = [judge(run) for run in evidence.runs]
    decided = [f for f in findings if f.verdict is not Verdict.INSUFFICIENT_EVIDENCE]
    worst = next((f for f in decided if f.verdict is Verdict.FAILED), (decided or findings)[0])
    if len(findings) == 1:
        return worst
    return Finding(worst.verdict, f"{worst.evidence}; {len(findings)} seeds, {len(decided)} decided", worst.numbers)


def all_of(findings: Mapping[str, Finding]) -> Finding:
    """All must pass; names are shown only where there are several."""
    if len(findings) == 1:
        return next(iter(findings.values()))
    return Finding(
        combine([f.verdict for f in findings.values()]),
        "; ".join(f"{name}: {f.evidence}" for name, f in findings.items()),
        {f"{name}/{key}": value for name, f in findings.items() for key, value in f.numbers.items()},
    )


def all_of_merged(findings: Sequence[Finding]) -> Finding:
    """All must pass; the evidence in one line, the numbers under their own names."""
    return Finding(
        combine([f.verdict for f in findings]),
        "; ".join(f.evidence for f in findings),
        {name: value for f in findings for name, value in f.numbers.items()},
    )


def worst_metric(evidence: Evidence, name: str) -> float:
    """The largest value over the runs; NaN as soon as one run lacks it."""
    return largest(run.metric(name) for run in evidence.runs)


def largest(values: Iterable[float]) -> float:
    """The largest of some values; NaN where one is not finite, or where there is none."""
    known = list(values)
    return max(known) if known and all(map(math.isfinite, known)) else math.nan


def unless_disturbed(finding: Finding, evidence: Evidence, reference: Sequence[Measurement] = ()) -> Finding:
    """A failure by time is no evidence where the machine gave much of its time to other work, or changed its pace."""
    return as_insufficient(finding, disturbed(evidence, reference)) if finding.verdict is Verdict.FAILED else finding


def disturbed(evidence: Evidence, reference: Sequence[Measurement] = ()) -> str:
    """Why the times of a step and of what it is compared with prove nothing; empty where they do."""
    runs = [*evidence.runs, *reference]
    others = max((run.metric("cpu/others") for run in runs), default=math.nan)
    if others > MAX_OTHER_LOAD:
        return f"{others:.0%} of the machine went to other work (over {MAX_OTHER_LOAD:.0%} proves nothing)"
    return pace_drift(evidence, runs)


def as_insufficient(finding: Finding, why: str) -> Finding:
    """The same finding, but no evidence; unchanged where there is no reason why."""
    if not why:
        return finding
    return Finding(Verdict.INSUFFICIENT_EVIDENCE, f"{finding.evidence}; but {why}", finding.numbers)


def pace_drift(evidence: Evidence, runs: Sequence[Measurement]) -> str:
    """Why the runs' times cannot be compared, empty where they can.

    The pace is that of the cached batch: no loader and no data set can change it, but a neighbour on a shared host can.
    It tells something only between runs whose cached batch is the same one, so not across batch sizes.
    """
    paces: dict[object, list[float]] = {}
    for run in runs:
        config = evidence.config_of(run)
        same = config and tuple(getattr(config, knob) for knob in affecting("step"))
        paces.setdefault(same, []).append(run.metric("speed/cached_seconds_per_sample"))
    drift = max((max(p) / min(p) for p in paces.values() if all(pace > 0 for pace in p)), default=math.nan)
    if not drift > MAX_PACE_DRIFT:
        return ""
    return (
        f"a cached batch took {drift:.2f} x as long in one run as in another (over {MAX_PACE_DRIFT:g} proves nothing)"
    )
