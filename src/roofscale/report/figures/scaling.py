"""Figures of a metric over one knob, such as the batch size, from runs that differ in no other costly knob."""

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
    """One training run, or its repeat under another seed, as a point of a figure."""

    x: float  # the knob's value
    measurement: Measurement
    verdict: Verdict  # of its step
    alike: bool  # whether it has the most common values of the other costly knobs

    @property
    def was_run(self) -> bool:
        """Return whether the run was made, and not skipped because a smaller one had run out of memory."""
        return bool(self.measurement.metrics)

    @property
    def ended_well(self) -> bool:
        """Return whether the run completed without a failure."""
        return self.measurement.outcome is Outcome.OK

    def metric(self, name: str) -> float:
        """Return a metric of the run; NaN if it has none."""
        return self.measurement.metric(name)


def runs_by_knob(climb: PhaseResult, knob: str) -> list[RunPoint]:
    """Return every run by the value of a knob; none unless the runs that are otherwise alike have two values of it."""
    runs = list(climb.all_runs())
    common = Counter(_rest(run.config, knob) for run in runs).most_common(1)
    points = [
        RunPoint(getattr(run.config, knob), measurement, run.verdict.verdict, _rest(run.config, knob) == common[0][0])
        for run in runs
        for measurement in run.measurements
    ]
    return points if len({point.x for point in points if point.alike}) > 1 else []


def group_by_value(found: Iterable[RunPoint]) -> dict[float, list[Measurement]]:
    """Return the measurements at each value of the knob, smallest value first."""
    grouped: dict[float, list[Measurement]] = {}
    for point in sorted(found, key=lambda point: point.x):
        grouped.setdefault(point.x, []).append(point.measurement)
    return grouped


def mean(runs: Sequence[Measurement], metric: str) -> float:
    """Return the mean of a metric over runs; NaN if one of them has no value."""
    return math.fsum(run.metric(metric) for run in runs) / len(runs)


def _rest(config: RunConfig, knob: str) -> tuple[str, ...]:
    return tuple(value for key, value in config.to_strings().items() if key != knob and key in _COSTLY)


_FIT_FROM = 3  # different batch sizes: a line always fits two
_SHARES = (  # metric, what to call it, line, colour
    ("speed/data_stall", "data stall: what a cached batch saves", "o-", style.MEASURED),
    ("speed/loader_wait", "waiting for the loader", "s--", style.WAITING),
    ("cpu/utilisation", "CPU utilisation", "^:", style.BESIDE),
)


@dataclass(frozen=True)
class Memory:
    """Host or GPU memory: the names of its metrics, and the outcome of a run that exhausts it."""

    name: str
    peak: str
    share: str
    exhausted: Outcome

    def limit(self, runs: Sequence[Measurement]) -> float:
        """Return the memory limit, MiB: the peak of a run over its share; NaN if no run has both."""
        limits = (run.metric(self.peak) / (run.metric(self.share) or math.nan) for run in runs)
        return next((limit for limit in limits if math.isfinite(limit)), math.nan)


HOST = Memory("Host memory", "memory/peak_mib", "memory/share", Outcome.HOST_OOM)
GPU = Memory("GPU memory", "gpu/memory_peak_mib", "gpu/memory_share", Outcome.CUDA_OOM)


def memory_by_batch(climb: PhaseResult, memory: Memory) -> Figure | None:
    """Plot peak memory over the batch size with a linear fit, the limit and the memory margin.

    None if fewer than two batch sizes have a peak or ran out of memory, or the limit is not known.
    """
    points = [point for point in runs_by_knob(climb, "batch_size") if point.was_run]
    completed = [point for point in points if point.ended_well and math.isfinite(point.metric(memory.peak))]
    exhausted = [point.x for point in points if point.measurement.outcome is memory.exhausted]
    batches = sorted({*exhausted, *(point.x for point in completed)})
    limit = memory.limit([point.measurement for point in points])
    if len(batches) < 2 or math.isnan(limit):
        return None
    figure, axes = style.new_axes(f"{memory.name} by batch size", "batch size, samples", "peak, MiB")
    _mark_by_verdict(axes, completed, memory.peak)
    if exhausted:  # drawn at the limit: the memory needed is only known to be more
        red = style.VERDICT_COLOUR[Verdict.FAILED]
        axes.plot(exhausted, [limit] * len(exhausted), "X", ms=12, color=red, zorder=4, label="ran out of memory")
    _draw_fit(axes, [(point.x, point.metric(memory.peak)) for point in completed if point.alike], batches[-1])
    highest = limit if exhausted else max(point.metric(memory.peak) for point in completed)
    _draw_limit(axes, limit, _limit_of(climb, "memory_margin", "max_share"), highest)
    axes.set(ylim=(0, None), xticks=batches)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.legend(frameon=False)
    return figure


def _mark_by_verdict(axes: Any, points: Sequence[RunPoint], metric: str) -> None:
    """Draw points in the colour and mark of their step's verdict; hollow if a run differs in other knobs as well."""
    for verdict, alike in itertools.product(Verdict, (True, False)):
        chosen = [point for point in points if (point.verdict, point.alike) == (verdict, alike)]
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
    """Draw a least-squares line if there are at least ``_FIT_FROM`` different batch sizes."""
    if len({batch for batch, _ in pairs}) < _FIT_FROM:
        return
    batches, memory = np.array(pairs).T
    slope, base = np.polyfit(batches, memory, deg=1)
    ends = np.array([0.0, up_to])
    label = f"fit: {base:,.0f} MiB + {slope:,.0f} MiB a sample"
    axes.plot(ends, base + slope * ends, "-", color=style.BESIDE, zorder=2, label=label)


def _draw_limit(axes: Any, limit: float, margin: float, highest: float) -> None:
    """Draw the memory limit and the margin; only in the legend if they would flatten the points."""
    line, label = margin * limit, f"{100 * margin:g} % of it"
    if highest > 0.3 * limit:
        axes.axhline(limit, color=style.LINE, lw=1.2, label=f"limit {limit:,.0f} MiB")
        axes.axhline(line, color=style.LINE, lw=1.2, ls="--", label=f"{label}, {line:,.0f} MiB")
    else:
        axes.plot([], [], " ", label=f"far above: limit {limit:,.0f} MiB, {label} {line:,.0f} MiB")


def throughput_by_batch(climb: PhaseResult) -> Figure | None:
    """Plot samples per second with intervals over the batch size, and the knee; None for fewer than two batch sizes."""
    grouped = group_by_value(point for point in runs_by_knob(climb, "batch_size") if point.alike and point.ended_well)
    rates = {batch: rate for batch, runs in grouped.items() if (rate := _rate(runs))}
    if len(rates) < 2:
        return None
    figure, axes = style.new_axes("Throughput by batch size", "batch size, samples", "samples/s")
    _draw_rates(axes, rates)
    shares = {batch: largest(map(_fullest, grouped[batch])) for batch in rates}
    most, tolerance = (_limit_of(climb, "knee", name) for name in ("max_share", "tolerance"))
    best = knee([BatchPoint(int(b), rate.centre, shares[b]) for b, rate in rates.items()], tolerance, most)
    if best:
        _draw_knee(axes, best.batch_size, f"knee: the smallest within {100 * tolerance:g} % of the best")
    top = 1.15 * max(rate.high for rate in rates.values())  # room for the legend
    axes.set(ylim=(0, top), xticks=list(rates))
    axes.legend(frameon=False, loc="upper left")
    return figure


def _draw_knee(axes: Any, batch: int, label: str) -> None:
    axes.axvline(batch, color=style.LINE, ls="--", lw=1.2, zorder=1)
    on_the_left = batch > sum(axes.get_xlim()) / 2
    transform = axes.get_xaxis_transform()  # x in samples, y as a share of the height
    axes.text(batch, 0.04, f" {label} ", transform=transform, ha="right" if on_the_left else "left")


def _draw_rates(axes: Any, rates: Mapping[float, Interval]) -> None:
    batches, centres = list(rates), [rate.centre for rate in rates.values()]
    reach = [(rate.centre - rate.low, rate.high - rate.centre) for rate in rates.values()]
    label = f"mean and {100 * CONFIDENCE:g} % interval"
    axes.errorbar(batches, centres, np.transpose(reach), fmt="o-", color=style.MEASURED, capsize=5, label=label)


def _rate(runs: Sequence[Measurement]) -> Interval | None:
    """Return samples per second without the first step of each epoch; None if too few steps were timed."""
    pace = log_pace([without_first_steps(run.steps) for run in runs])
    if pace is None:
        return None
    seconds = interval(pace).exp()
    return Interval(1 / seconds.centre, 1 / seconds.high, 1 / seconds.low)


def _fullest(run: Measurement) -> float:
    """Return the larger memory share of host and GPU; NaN if that of the host is not known."""
    return max(run.metric("memory/share"), run.metrics.get("gpu/memory_share", 0.0))


def stall_by_workers(climb: PhaseResult) -> Figure | None:
    """Plot data stall, loader wait and CPU utilisation over the number of loader processes; None for fewer than two."""
    grouped = group_by_value(point for point in runs_by_knob(climb, "num_workers") if point.alike and point.ended_well)
    if len(grouped) < 2:
        return None
    figure, axes = style.new_axes("Loader and CPU by workers", "loader processes", "share, %")
    for metric, label, line, colour in _SHARES:
        means = {workers: 100 * mean(runs, metric) for workers, runs in grouped.items()}
        known = {workers: value for workers, value in means.items() if math.isfinite(value)}
        axes.plot(list(known), list(known.values()), line, color=colour, markersize=8, label=label)
    limit = _limit_of(climb, "data_stall", "max_share")
    label = f"a stall and a wait both over {100 * limit:g} % fail"
    axes.axhline(100 * limit, color=style.LINE, lw=1.2, ls="--", label=label)
    axes.set(ylim=(0, 105), xticks=list(grouped))
    axes.legend(frameon=False)
    return figure


def _limit_of(climb: PhaseResult, criterion: str, limit: str) -> float:
    """Return a limit of a criterion in this phase; its default if no step has the criterion."""
    specs = (spec for step in climb.phase.steps for spec in step.criteria if spec.name == criterion)
    return next((spec.limits[limit] for spec in specs), CRITERIA[criterion].limits[limit].default)
