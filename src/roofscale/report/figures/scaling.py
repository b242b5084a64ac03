"""Which runs of a climb may stand in one figure: those that differ in the knob that it is about, and in no other."""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from roofscale.config import RunConfig, affecting
from roofscale.measurement import Measurement, Outcome
from roofscale.phases.criteria import CRITERIA
from roofscale.phases.criteria.evidence import largest
from roofscale.phases.criteria.speed import BatchPoint, knee
from roofscale.phases.judge import Verdict
from roofscale.phases.results import PhaseResult
from roofscale.report.figures import style
from roofscale.runners.build_measurement import without_first_steps
from roofscale.stats.intervals import CONFIDENCE, Interval, interval, log_pace

_COSTLY = affecting("memory", "step", "loader")


@dataclass(frozen=True)
class RunPoint:
    """One training run, a repeat under another seed included."""

    x: float  # the knob's value
    measurement: Measurement
    verdict: Verdict  # of its step
    alike: bool  # whether it differs from most others in nothing but the knob

    @property
    def was_run(self) -> bool:
        """Whether it was run at all, and not ruled out by another run that had run out of memory."""
        return bool(self.measurement.metrics)

    @property
    def ended_well(self) -> bool:
        """Whether the run came to its end."""
        return self.measurement.outcome is Outcome.OK

    def metric(self, name: str) -> float:
        """The run's metric, NaN where it has none."""
        return self.measurement.metric(name)


def runs_by_knob(climb: PhaseResult, knob: str) -> list[RunPoint]:
    """Every run over a knob; none where the runs that are otherwise alike do not have two values of it."""
    runs = list(climb.all_runs())
    common = Counter(_rest(run.config, knob) for run in runs).most_common(1)
    found = [
        RunPoint(getattr(run.config, knob), measurement, run.verdict.verdict, _rest(run.config, knob) == common[0][0])
        for run in runs
        for measurement in run.measurements
    ]
    return found if len({point.x for point in found if point.alike}) > 1 else []


def group_by_value(found: Iterable[RunPoint]) -> dict[float, list[Measurement]]:
    """The measurements at each value, smallest first."""
    grouped: dict[float, list[Measurement]] = {}
    for point in sorted(found, key=lambda point: point.x):
        grouped.setdefault(point.x, []).append(point.measurement)
    return grouped


def mean(runs: Sequence[Measurement], metric: str) -> float:
    """The runs' mean, NaN as soon as one lacks it."""
    return math.fsum(run.metric(metric) for run in runs) / len(runs)


def _rest(config: RunConfig, knob: str) -> tuple[str, ...]:
    return tuple(value for key, value in config.to_strings().items() if key != knob and key in _COSTLY)


_FIT_FROM = 3  # different batches: a line through two of them fits anything
_SHARES = (  # metric, what to call it, line, colour
    ("speed/data_stall", "data stall: what a cached batch saves", "o-", style.MEASURED),
    ("speed/loader_wait", "waiting for the loader", "s--", style.WAITING),
    ("cpu/utilisation", "CPU utilisation", "^:", style.BESIDE),
)


@dataclass(frozen=True)
class Memory:
    """One kind of memory, by the names of its metrics and of the outcome where there is too little of it."""

    name: str
    peak: str
    share: str
    exhausted: Outcome

    def limit(self, runs: Sequence[Measurement]) -> float:
        """The memory that there was, MiB: a run's peak over its share; NaN where no run has both."""
        limits = (run.metric(self.peak) / (run.metric(self.share) or math.nan) for run in runs)
        return next((limit for limit in limits if math.isfinite(limit)), math.nan)


HOST = Memory("Host memory", "memory/peak_mib", "memory/share", Outcome.HOST_OOM)
GPU = Memory("GPU memory", "gpu/memory_peak_mib", "gpu/memory_share", Outcome.CUDA_OOM)


def memory_by_batch(climb: PhaseResult, memory: Memory) -> Figure | None:
    """Peak memory against the batch size: each run a point, the limit with the memory margin, and a straight line."""
    found = [point for point in runs_by_knob(climb, "batch_size") if point.was_run]
    held = [point for point in found if point.ended_well and math.isfinite(point.metric(memory.peak))]
    burst = [point.x for point in found if point.measurement.outcome is memory.exhausted]
    batches = sorted({*burst, *(point.x for point in held)})
    limit = memory.limit([point.measurement for point in found])
    if len(batches) < 2 or math.isnan(limit):
        return None
    figure, axes = style.new_axes(f"{memory.name} by batch size", "batch size, samples", "peak, MiB")
    _mark_by_verdict(axes, held, memory.peak)
    if burst:  # how much it would have taken is not known: more than there was
        red = style.VERDICT_COLOUR[Verdict.FAILED]
        axes.plot(burst, [limit] * len(burst), "X", ms=12, color=red, zorder=4, label="ran out of memory")
    _draw_fit(axes, [(point.x, point.metric(memory.peak)) for point in held if point.alike], batches[-1])
    highest = limit if burst else max(point.metric(memory.peak) for point in held)
    _draw_limit(axes, limit, _limit_of(climb, "memory_margin", "max_share"), highest)
    axes.set(ylim=(0, None), xticks=batches)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.legend(frameon=False)
    return figure


def _mark_by_verdict(axes: Any, held: Sequence[RunPoint], metric: str) -> None:
    """Points with the colour and mark of their step's verdict; hollow where a run differs in other knobs as well."""
    for verdict, alike in itertools.product(Verdict, (True, False)):
        chosen = [point for point in held if (point.verdict, point.alike) == (verdict, alike)]
        if chosen:
            colour = style.VERDICT_COLOUR[verdict]
            axes.plot(
                [point.x for point in chosen],
                [point.metric(metric) for point in chosen],
                style.VERDICT_MARK[verdict],
                markersize=9,
                color=colour,
                markerfacecolor=colour if alike else "white",
                label=verdict.label + ("" if alike else ", other knobs changed too"),
                zorder=3,
            )


def _draw_fit(axes: Any, pairs: Sequence[tuple[float, float]], up_to: float) -> None:
    """A least-squares line, where there are enough different batches to speak of one."""
    if len({batch for batch, _ in pairs}) < _FIT_FROM:
        return
    batches, memory = np.array(pairs).T
    slope, base = np.polyfit(batches, memory, deg=1)
    ends = np.array([0.0, up_to])
    label = f"fit: {base:,.0f} MiB + {slope:,.0f} MiB a sample"
    axes.plot(ends, base + slope * ends, "-", color=style.BESIDE, zorder=2, label=label)


def _draw_limit(axes: Any, limit: float, margin: float, highest: float) -> None:
    """The memory that there was and its margin; said and not drawn where it would press the points flat."""
    line, label = margin * limit, f"{100 * margin:g} % of it"
    if highest > 0.3 * limit:
        axes.axhline(limit, color=style.LINE, lw=1.2, label=f"limit {limit:,.0f} MiB")
        axes.axhline(line, color=style.LINE, lw=1.2, ls="--", label=f"{label}, {line:,.0f} MiB")
    else:
        axes.plot([], [], " ", label=f"far above: limit {limit:,.0f} MiB, {label} {line:,.0f} MiB")


def throughput_by_batch(climb: PhaseResult) -> Figure | None:
    """Samples a second against the batch size with its interval, and the knee."""
    grouped = group_by_value(point for point in runs_by_knob(climb, "batch_size") if point.alike and point.ended_well)
    rates = {batch: rate for batch, runs in grouped.items() if (rate := _rate(runs))}
    if len(rates) < 2:
        return None
    figure, axes = style.new_axes("Throughput by batch size", "batch size, samples", "samples/s")
    _draw_rates(axes, rates)
    shares = {batch: largest(map(_fullest, grouped[batch])) for batch in rates}
    most, tolerance = (_limit_of(climb, "knee", name) for name in ("max_share", "tolerance"))
    found = knee([BatchPoint(int(b), rate.centre, shares[b]) for b, rate in rates.items()], tolerance, most)
    if found:
        _draw_knee(axes, found.batch_size, f"knee: the smallest within {100 * tolerance:g} % of the best")
    top = 1.15 * max(rate.high for rate in rates.values())  # room for the legend
    axes.set(ylim=(0, top), xticks=list(rates))
    axes.legend(frameon=False, loc="upper left")
    return figure


def _draw_knee(axes: Any, batch: int, said: str) -> None:
    axes.axvline(batch, color=style.LINE, ls="--", lw=1.2, zorder=1)
    on_the_left = batch > sum(axes.get_xlim()) / 2
    where = axes.get_xaxis_transform()  # x in samples, y in shares of the height
    axes.text(batch, 0.04, f" {said} ", transform=where, ha="right" if on_the_left else "left")


def _draw_rates(axes: Any, rates: Mapping[float, Interval]) -> None:
    batches, centres = list(rates), [rate.centre for rate in rates.values()]
    reach = [(rate.centre - rate.low, rate.high - rate.centre) for rate in rates.values()]
    label = f"mean and {100 * CONFIDENCE:g} % interval"
    axes.errorbar(batches, centres, np.transpose(reach), fmt="o-", color=style.MEASURED, capsize=5, label=label)


def _rate(runs: Sequence[Measurement]) -> Interval | None:
    """Samples a second, each epoch's first step left out; None where too few steps were timed."""
    pace = log_pace([without_first_steps(run.steps) for run in runs])
    if pace is None:
        return None
    seconds = interval(pace).exp()
    return Interval(1 / seconds.centre, 1 / seconds.high, 1 / seconds.low)


def _fullest(run: Measurement) -> float:
    """The larger memory share of host and GPU; NaN where the host's is not known."""
    return max(run.metric("memory/share"), run.metrics.get("gpu/memory_share", 0.0))


def stall_by_workers(climb: PhaseResult) -> Figure | None:
    """Data stall, the wait for the loader and CPU utilisation against the number of loader processes."""
    grouped = group_by_value(point for point in runs_by_knob(climb, "num_workers") if point.alike and point.ended_well)
    if len(grouped) < 2:
        return None
    figure, axes = style.new_axes("Loader and CPU by workers", "loader processes", "share, %")
    for metric, label, line, colour in _SHARES:
        means = {workers: 100 * mean(runs, metric) for workers, runs in grouped.items()}
        known = {workers: value for workers, value in means.items() if math.isfinite(value)}
        axes.plot(list(known), list(known.values()), line, color=colour, markersize=8, label=label)
    allowed = _limit_of(climb, "data_stall", "max_share")
    label = f"a stall and a wait both over {100 * allowed:g} % fail"
    axes.axhline(100 * allowed, color=style.LINE, lw=1.2, ls="--", label=label)
    axes.set(ylim=(0, 105), xticks=list(grouped))
    axes.legend(frameon=False)
    return figure


def _limit_of(climb: PhaseResult, criterion: str, limit: str) -> float:
    """What the phase allows; the criterion's default where no step asks for it."""
    specs = (spec for step in climb.phase.steps for spec in step.criteria if spec.name == criterion)
    return next((spec.limits[limit] for spec in specs), CRITERIA[criterion].limits[limit].default)
