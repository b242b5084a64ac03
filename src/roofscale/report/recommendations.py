"""Recommendations for what to do after a climb; each rule speaks only if the measurements support it."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from roofscale.phases.criteria import CRITERIA
from roofscale.phases.fallback import ADVICE
from roofscale.phases.judge import Verdict
from roofscale.phases.phase_file import Phase
from roofscale.phases.results import PhaseResult, StepResult, newest_knee
from roofscale.report.figures.scaling import group_by_value, mean, runs_by_knob
from roofscale.report.format import cause_words, code, format_number
from roofscale.report.phase_status import is_complete_base, step_words, unpassed_words
from roofscale.stats.intervals import MAX_OTHER_LOAD

_NEAR = CRITERIA["knee"].limits["tolerance"].default
_STALL = CRITERIA["data_stall"].limits["max_share"].default


@dataclass(frozen=True)
class Advice:
    """One recommendation with the measurement that supports it."""

    say: str
    because: str


def recommend(climb: PhaseResult, following: Phase | None = None) -> tuple[Advice, ...]:
    """Return all recommendations that follow from a climb, the most important first."""
    advice = [_go_on(climb, following)]
    for rule in _RULES:
        advice += rule(climb)
    return tuple(advice)


def _go_on(climb: PhaseResult, following: Phase | None) -> Advice:
    """Recommend the next command: the same phase again, or the one after it."""
    again = code(f"roofscale phase {climb.phase.number}")
    why = unpassed_words(climb) or "all steps passed"
    if climb.interrupted:
        done = f"{len(climb.results)} of {len(climb.phase.steps)} steps were judged"
        return Advice(f"Run {again} again; it goes on where it stopped.", done)
    if climb.last_good is None:
        return Advice(f"Do not go on: mend what the issues name, then run {again}.", f"no step passed ({why})")
    if not is_complete_base(climb):
        return Advice(f"Mend what the issues name, then run {again}.", f"{why}, and the phase stopped there")
    if following is None:
        return Advice("Nothing is left to climb.", f"{why}, and no phase file follows")
    onward = f"Go on with phase {following.number}, {following.name}: {code(f'roofscale phase {following.number}')}."
    return Advice(f"{onward} It starts from {step_words(climb.last_good)}.", why)


def _mend(climb: PhaseResult) -> Iterator[Advice]:
    """Recommend what a person can do about a failure that no fallback has mended."""
    for result in climb.results:
        if result.verdict.verdict is Verdict.FAILED and result.cause in ADVICE:
            failed = (c.evidence for c in result.verdict.criteria if c.verdict is Verdict.FAILED)
            seen = next(failed, result.measurement.detail)
            advice = ADVICE[result.cause]
            yield Advice(
                f"{advice[0].upper()}{advice[1:]}.", f"step {result.step.name}, {cause_words(result.cause)}: {seen}"
            )


def _knee(climb: PhaseResult) -> Iterator[Advice]:
    """Recommend the batch size at the knee of the throughput, if there is one."""
    if knee := newest_knee(climb.results):
        likes = f"This hardware likes `batch_size={knee.numbers['batch_size']:g}` best"
        onward = f"; at least {climb.phase.least_batch} is handed on, for the gate" if climb.phase.least_batch else ""
        yield Advice(f"{likes}{onward}.", knee.evidence)


def _workers(climb: PhaseResult) -> Iterator[Advice]:
    """Recommend the fewest loader processes within the knee's tolerance of the best throughput, of several counts."""
    tried = group_by_value(point for point in runs_by_knob(climb, "num_workers") if point.alike and point.ended_well)
    rates = {int(count): mean(runs, "speed/samples_per_s") for count, runs in tried.items()}
    if len(rates) > 1 and all(map(math.isfinite, rates.values())):
        fewest = next(count for count, rate in rates.items() if rate >= (1 - _NEAR) * max(rates.values()))
        listed = ", ".join(f"{count}: {format_number(rate)}" for count, rate in rates.items())
        because = f"{fewest} is the smallest within {_NEAR:.0%} of the best (samples/s by workers {listed})"
        kept = climb.last_good is not None and climb.last_good.config.num_workers == fewest
        yield Advice(f"{'Keep' if kept else 'Take'} `num_workers={fewest}` for what comes next.", because)


def _starved(climb: PhaseResult) -> Iterator[Advice]:
    """Recommend more loader processes if training waits for them and no other count was tried."""
    good = climb.last_good
    if good is None or runs_by_knob(climb, "num_workers"):
        return
    stall, wait = (good.measurement.metric(f"speed/{name}") for name in ("data_stall", "loader_wait"))
    if min(stall, wait) > _STALL:
        yield Advice(
            f"Raise `num_workers` (now {good.config.num_workers}).",
            f"step {good.step.name} spent {wait:.0%} of its time waiting, and a cached batch saves {stall:.0%}",
        )


def _headroom(climb: PhaseResult) -> Iterator[Advice]:
    """State whether twice the batch would stay within the memory margin, extrapolated from the last good run."""
    good = climb.last_good
    if good is None or any(run.config.batch_size > good.config.batch_size for run in climb.all_runs()):
        return  # a larger batch was measured
    run, batch = good.measurement, good.config.batch_size
    peak, share, each = (run.metric(f"memory/{name}") for name in ("peak_mib", "share", "mib_per_sample"))
    forecast = (peak + batch * each) * share / peak if peak else math.nan  # share of the limit
    if math.isfinite(forecast):
        margin = good.step.memory_margin
        yield Advice(
            f"Host memory {'leaves room for' if forecast < margin else 'does not allow'} `batch_size={2 * batch}`: "
            f"about {forecast:.0%} of what there is, by extrapolation (limit {margin:.0%}).",
            f"step {good.step.name} peaked at {format_number(peak)} MiB, {share:.0%}, with "
            f"{format_number(each)} MiB a sample",
        )


def _busy(climb: PhaseResult) -> Iterator[Advice]:
    """Recommend to repeat times that were measured while the machine did other work."""
    busy = {r.step.name: max(_all(r, "cpu/others"), default=0.0) for r in climb.results}
    busy = {name: share for name, share in busy.items() if share > MAX_OTHER_LOAD}
    if busy:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in busy.items())
        yield Advice(
            "Measure speed again on a quiet machine before relying on it.",
            f"share of the machine that went to other work: {shares} (over {MAX_OTHER_LOAD:.0%} "
            "proves nothing about time)",
        )


def _broken(climb: PhaseResult) -> Iterator[Advice]:
    """Recommend to mend samples that could not be read."""
    most = max((n for r in climb.results for n in _all(r, "train/skipped_samples")), default=0.0)
    if most:
        yield Advice(
            "Mend the data before training on more of it: `roofscale data check FOLDER` names every file.",
            f"up to {most:.0f} broken samples were left out of a run",
        )


def _all(result: StepResult, metric: str) -> list[float]:
    values = [run.metric(metric) for run in result.measurements]
    return [value for value in values if math.isfinite(value)]


_RULES: tuple[Callable[[PhaseResult], Iterator[Advice]], ...] = (
    _mend,
    _knee,
    _workers,
    _starved,
    _headroom,
    _busy,
    _broken,
)
