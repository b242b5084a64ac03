"""Input of the criteria, and what they share: pooling of runs, and when other work has disturbed the times."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from roofscale.config import RunConfig, affecting
from roofscale.measurement import Measurement
from roofscale.runners.build_measurement import without_first_steps
from roofscale.stats.curves import Finding, Verdict, combine
from roofscale.stats.intervals import MAX_OTHER_LOAD, Estimate, log_pace

MAX_PACE_DRIFT = 1.2  # slowest over fastest pace: 10 % either way, half a shipped phase file's tightest tolerance
MIN_PASS_STEPS = 5  # timed steps of a pass, from which its median step is compared with another pass's

# Runs that agree in these knobs do the same work on each sample; batch size and loader processes may differ.
SAME_WORK = affecting("step", "loader") - {"batch_size", "num_workers", "prefetch_factor"}


@dataclass(frozen=True)
class Limit:
    """A number of a criterion that a phase file may set."""

    default: float
    meaning: str  # with unit and source
    is_memory_margin: bool = False  # a share, 0 to 1; if unset, it is ``Step.memory_margin``, not ``default``


@dataclass(frozen=True)
class EarlierStep:
    """An earlier step of the phase: its deciding config with the measurements under each seed."""

    config: RunConfig
    runs: tuple[Measurement, ...]


@dataclass(frozen=True)
class Evidence:
    """Input of a criterion: the measurements of a step and of the steps that it is compared with."""

    measurement: Measurement
    previous: tuple[Measurement, ...] = ()  # the step before, under all seeds
    base: tuple[Measurement, ...] = ()  # the first step of the phase, likewise
    repeats: tuple[Measurement, ...] = ()  # the same step under other seeds
    config: RunConfig | None = None  # of the measurement; None if unknown
    history: tuple[EarlierStep, ...] = ()  # the earlier steps of the phase, in order

    @property
    def runs(self) -> tuple[Measurement, ...]:
        """The measurement and its repeats."""
        return (self.measurement, *self.repeats)

    def config_of(self, run: Measurement) -> RunConfig | None:
        """Return the run config of one of these runs, None if unknown."""
        if any(run is own for own in self.runs):  # by identity: measurements of two runs may be equal
            return self.config
        return next((step.config for step in self.history if any(run is other for other in step.runs)), None)


@dataclass(frozen=True)
class Criterion:
    """One entry of CRITERIA."""

    meaning: str
    judge: Callable[[Evidence, Mapping[str, float]], Finding]
    limits: Mapping[str, Limit] = field(default_factory=dict)
    finding: bool = False  # it measures what a change gains; a run that fails it is sound all the same


def insufficient(text: str) -> Finding:
    """Return a finding of insufficient evidence, with the reason."""
    return Finding(Verdict.INSUFFICIENT_EVIDENCE, text)


def judge_each_run(evidence: Evidence, judge: Callable[[Measurement], Finding]) -> Finding:
    """Judge each run; return a failed finding if there is one, else a passed one, else insufficient evidence."""
    findings = [judge(run) for run in evidence.runs]
    decided = [f for f in findings if f.verdict is not Verdict.INSUFFICIENT_EVIDENCE]
    worst = next((f for f in decided if f.verdict is Verdict.FAILED), (decided or findings)[0])
    if len(findings) == 1:
        return worst
    return Finding(worst.verdict, f"{worst.evidence}; {len(findings)} seeds, {len(decided)} decided", worst.numbers)


def all_of(findings: Mapping[str, Finding]) -> Finding:
    """Combine findings that must all pass; names are shown only if there are several."""
    if len(findings) == 1:
        return next(iter(findings.values()))
    return Finding(
        combine([f.verdict for f in findings.values()]),
        "; ".join(f"{name}: {f.evidence}" for name, f in findings.items()),
        {f"{name}/{key}": value for name, f in findings.items() for key, value in f.numbers.items()},
    )


def all_of_merged(findings: Sequence[Finding]) -> Finding:
    """Combine findings that must all pass: the evidence in one line, the numbers under their own names."""
    return Finding(
        combine([f.verdict for f in findings]),
        "; ".join(f.evidence for f in findings),
        {name: value for f in findings for name, value in f.numbers.items()},
    )


def worst_metric(evidence: Evidence, name: str) -> float:
    """Return the largest value over the runs; NaN if a run has no finite one."""
    return largest(run.metric(name) for run in evidence.runs)


def largest(values: Iterable[float]) -> float:
    """Return the largest of some values; NaN if one is not finite, or if there are none."""
    known = list(values)
    return max(known) if known and all(map(math.isfinite, known)) else math.nan


def unless_disturbed(finding: Finding, evidence: Evidence, reference: Sequence[Measurement] = ()) -> Finding:
    """Return a failed finding as insufficient evidence if ``disturbed`` gives a reason; any other unchanged."""
    return as_insufficient(finding, disturbed(evidence, reference)) if finding.verdict is Verdict.FAILED else finding


def disturbed(evidence: Evidence, reference: Sequence[Measurement] = ()) -> str:
    """Return why the times of a step and its reference are no evidence; empty if they are."""
    runs = [*evidence.runs, *reference]
    others = max((run.metric("cpu/others") for run in runs), default=math.nan)
    if others > MAX_OTHER_LOAD:
        return f"{others:.0%} of the machine went to other work (over {MAX_OTHER_LOAD:.0%} proves nothing)"
    drift = max(map(pass_drift, runs))
    if drift > MAX_PACE_DRIFT:
        return (
            f"a step took {drift:.2f} x as long in one pass as in another of the same run "
            f"(over {MAX_PACE_DRIFT:g} proves nothing)"
        )
    return pace_drift(evidence, runs)


def as_insufficient(finding: Finding, why: str) -> Finding:
    """Return a finding as insufficient evidence for the reason ``why``; unchanged if ``why`` is empty."""
    if not why:
        return finding
    return Finding(Verdict.INSUFFICIENT_EVIDENCE, f"{finding.evidence}; but {why}", finding.numbers)


def pass_drift(run: Measurement) -> float:
    """Return the slowest over the fastest pass of a run over the same data; 1 with fewer than two comparable passes.

    A pass counts by its median seconds a sample, without the wait for the loader and the first step. Passes over the
    same data do the same work, so a difference is that of the machine, such as other users of its host, which the
    load that is measured in this machine does not show.
    """
    paces: dict[str, dict[int, list[float]]] = {}
    for step, size in without_first_steps(run.steps):
        passes = paces.setdefault(step.dataset, {})
        passes.setdefault(step.epoch, []).append((step.seconds - step.wait_seconds) / size)
    medians = [
        [statistics.median(steps) for steps in passes.values() if len(steps) >= MIN_PASS_STEPS]
        for passes in paces.values()
    ]
    return max((max(paced) / min(paced) for paced in medians if paced and min(paced) > 0), default=1.0)


def pace_drift(evidence: Evidence, runs: Sequence[Measurement]) -> str:
    """Return why the times of runs cannot be compared; empty if they can.

    The pace is that of a cached batch: it does not depend on the loader or the data set, but other users of a shared
    host change it. It is compared only between runs with the same work per batch, so not across batch sizes.
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


def log_seconds_per_sample(runs: Sequence[Measurement]) -> Estimate | None:
    """Return the logarithm of the seconds per sample of one config's runs; None if too few steps were timed.

    The first step of each epoch is left out; see ``log_pace``.
    """
    return log_pace([without_first_steps(run.steps) for run in runs])
