"""Figures of a climb."""

import math
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from roofscale.measurement import Measurement, Outcome
from roofscale.phases.criteria import COMPARED
from roofscale.phases.judge import Verdict
from roofscale.phases.results import PhaseResult, StepResult
from roofscale.report.figures import style
from roofscale.report.figures.run import highest_loss, running_median
from roofscale.report.figures.scaling import GPU, HOST, memory_by_batch, stall_by_workers, throughput_by_batch

CAPTIONS: Mapping[str, str] = types.MappingProxyType(  # by file name
    {
        "ladder.png": "Every run, the first at the bottom; the shorter bars are fallbacks.",
        "expected.png": "Measured over expected; the grey bar is the tolerance that was stated beforehand.",
        "memory_by_batch.png": "Peak host memory of each run; the line is fitted to the runs that ended well.",
        "gpu_memory_by_batch.png": "Peak GPU memory of each run; the line is fitted to the runs that ended well.",
        "throughput_by_batch.png": "Samples a second; the knee is the smallest batch close to the best.",
        "stall_by_workers.png": "What the loader costs, and how busy the CPU is, by the number of loader processes.",
        "loss_by_dataset.png": "Loss by data set; a vertical line is a switch to the next one.",
    }
)


def phase_figures(climb: PhaseResult) -> dict[str, Figure]:
    """Return the figures that the climb has data for, by file name, in the order of CAPTIONS."""
    drawn = {
        "ladder.png": ladder_figure([climb]),
        "expected.png": expected_figure(climb),
        "memory_by_batch.png": memory_by_batch(climb, HOST),
        "gpu_memory_by_batch.png": memory_by_batch(climb, GPU),
        "throughput_by_batch.png": throughput_by_batch(climb),
        "stall_by_workers.png": stall_by_workers(climb),
        "loss_by_dataset.png": loss_by_dataset(climb),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


_ROW_HEIGHT = 0.34  # inches
_WIDTH, _FALLBACK_WIDTH = 0.5, 0.3  # of the bar of a run, share of the panel
_OUT_OF_MEMORY = (Outcome.HOST_OOM, Outcome.CUDA_OOM)


@dataclass(frozen=True)
class _Row:
    """One row of the figure of all runs: a run, a step that was not reached, or the heading of a phase."""

    label: str
    run: StepResult | None = None
    heading: bool = False

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """Return the measurements of all seeds."""
        return self.run.measurements if self.run else ()


def ladder_figure(climbs: Sequence[PhaseResult]) -> Figure | None:
    """Plot every run as a bar in the colour of its verdict, the first at the bottom, with its time and peak memory.

    None if there is no run.
    """
    rows = [row for climb in climbs for row in _rows(climb)]
    if not any(row.run for row in rows):
        return None
    figure = Figure(figsize=(style.WIDTH, 1.1 + _ROW_HEIGHT * len(rows)), dpi=style.DPI, layout="constrained")
    bars, time, memory = figure.subplots(1, 3, sharey=True, width_ratios=(3.2, 1, 1))
    bars.set_yticks(range(len(rows)), [row.label for row in rows])
    bars.set_ylim(-0.6, len(rows) - 0.4)
    for label, row in zip(bars.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if row.heading else "normal")
    _draw_runs(bars, rows)
    _draw_time(time, rows)
    _draw_memory(memory, rows)
    for axes in (bars, time, memory):
        style.strip_frame(axes)
        axes.spines["left"].set_visible(False)
        axes.tick_params(left=False)
    return figure


def _rows(climb: PhaseResult) -> Iterator[_Row]:
    for result in climb.results:
        for run in sorted(result.runs, key=lambda run: run.fallback is not None):  # the run as planned comes first
            yield _Row(f"↳ {run.fallback.changed}" if run.fallback else result.step.name, run)
    for step in climb.phase.steps[len(climb.results) :]:
        yield _Row(step.name)
    yield _Row(f"Phase {climb.phase.number}: {climb.phase.name}", heading=True)


def _draw_runs(axes: Any, rows: Sequence[_Row]) -> None:
    for y, row in enumerate(rows):
        if row.heading:
            continue
        width = _FALLBACK_WIDTH if row.run and row.run.fallback else _WIDTH
        if row.run:
            axes.barh(y, width, height=0.5, color=style.VERDICT_COLOUR[row.run.verdict.verdict])
        else:
            axes.barh(y, width, height=0.5, fill=False, edgecolor=style.BESIDE, linestyle=":")
        axes.text(width + 0.015, y, _verdict_text(row.run) if row.run else "not reached", va="center", fontsize=9)
    axes.set(xlim=(0, 1), xticks=[])
    axes.spines["bottom"].set_visible(False)


def _verdict_text(run: StepResult) -> str:
    """Return the verdict with the number of seeds, and on a second line the outcome or criteria that decided it."""
    verdict = run.verdict.verdict
    words = verdict.label + (f", {len(run.measurements)} seeds" if run.repeats else "")
    if verdict is Verdict.PASSED:
        return words
    if run.measurement.outcome is not Outcome.OK:
        ruled_out = "" if run.measurement.metrics else ", ruled out"
        return f"{words}\n{run.measurement.outcome}{ruled_out}"
    first, *others = run.verdict.named(verdict)
    return f"{words}\n{first}" + (f" and {len(others)} more" if others else "")


def _draw_time(axes: Any, rows: Sequence[_Row]) -> None:
    """Draw the minutes of each run with its repeats."""
    minutes = [math.fsum(m.metric("speed/run_seconds") for m in row.measurements) / 60 for row in rows]
    timed = {y: value for y, value in enumerate(minutes) if value > 0}
    axes.barh(list(timed), list(timed.values()), height=0.3, color=style.BESIDE)
    for y, value in timed.items():
        _label_bar(axes, y, value, f"{value:.1f}")
    axes.set_xlabel("time, min")
    axes.set_xlim(0, 1.35 * max(timed.values(), default=1))


def _draw_memory(axes: Any, rows: Sequence[_Row]) -> None:
    """Draw the largest peak over the seeds as a share of the limit, of host or GPU, whichever share is larger."""
    for y, row in enumerate(rows):
        shares = [m.metric(name) for m in row.measurements for name in ("memory/share", "gpu/memory_share")]
        share = max(filter(math.isfinite, shares), default=math.nan)
        if any(m.outcome in _OUT_OF_MEMORY for m in row.measurements):
            axes.plot(100, y, "X", color=style.VERDICT_COLOUR[Verdict.FAILED], markersize=9, clip_on=False)
        elif math.isfinite(share):
            axes.barh(y, 100 * share, height=0.3, color=style.BESIDE)
            _label_bar(axes, y, 100 * share, f"{share:.0%}")
    for margin in {row.run.step.memory_margin for row in rows if row.run}:
        axes.axvline(100 * margin, color=style.LINE, ls="--", lw=1.2)
    axes.set(xlim=(0, 125), xticks=(0, 40, 80), xlabel="peak memory, %")


def _label_bar(axes: Any, y: int, end: float, text: str) -> None:
    """Write a number at the end of a bar, on white so that it is readable over a line."""
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    axes.annotate(text, (end, y), (4, 0), textcoords="offset points", va="center", fontsize=9, bbox=box)


def expected_figure(climb: PhaseResult) -> Figure | None:
    """Plot each measured value over its expected one, with its interval and tolerance; None if nothing was measured."""
    compared = [row for row in climb.comparisons if math.isfinite(row.measured)][
        ::-1
    ]  # matplotlib draws the first at the bottom
    if not compared:
        return None
    figure, axes = style.new_axes(
        "Measured against expected", "measured over expected", "", height=1.2 + _ROW_HEIGHT * len(compared)
    )
    for y, row in enumerate(compared):
        low, middle, high = (value / row.expectation.value for value in (row.low, row.measured, row.high))
        colour, tolerance = style.VERDICT_COLOUR[row.verdict], row.expectation.tolerance
        axes.barh(y, 2 * tolerance, left=1 - tolerance, height=0.62, color="0.88")
        axes.plot([low, high], [y, y], "-", color=colour, lw=2.5)
        axes.plot(middle, y, style.VERDICT_MARK[row.verdict], color=colour, markersize=9)
    axes.axvline(1, color=style.LINE, lw=1)
    axes.use_sticky_edges = False  # else the widest tolerance looks truncated
    axes.set_yticks(range(len(compared)), [f"{row.step}: {row.expectation.metric}" for row in compared])
    axes.tick_params(left=False)
    axes.grid(axis="y", visible=False)
    figure.legend(handles=_legend(row.verdict for row in compared), loc="outside lower right", ncols=4, frameon=False)
    return figure


def _legend(verdicts: Iterable[Verdict]) -> list[Any]:
    """Return the legend: the verdicts that occur, and the tolerance."""
    marks = [
        Line2D([], [], ls="", marker=style.VERDICT_MARK[v], color=style.VERDICT_COLOUR[v], ms=8, label=COMPARED[v])
        for v in dict.fromkeys(sorted(verdicts))
    ]
    return [Patch(color="0.88", label="tolerance"), *marks]


_PANEL_HEIGHT = 2.7  # inches


def loss_by_dataset(climb: PhaseResult) -> Figure | None:
    """Plot the loss of every run on several data sets, one panel per run; None if there is no such run."""
    chosen = {
        result.step.name: _with_mixed_batches(result)
        for result in climb.results
        if len(result.config.datasets) > 1 and len(result.measurement.steps) > 1
    }
    if not chosen:
        return None
    figure, rows = style.new_rows("Loss by data set", len(chosen), height=1.3 + _PANEL_HEIGHT * len(chosen))
    for axes, (name, measurement) in zip(rows, chosen.items(), strict=True):
        axes.set_title(name, loc="left", fontsize=10)
        axes.set_ylabel("BCE + Dice")
        _draw_training(axes, measurement)
        _draw_validations(axes, measurement)
    rows[-1].set_ylim(0, max(map(highest_loss, chosen.values())))
    rows[-1].set_xlabel("optimiser step")
    figure.legend(handles=_dataset_legend(list(chosen.values())), loc="outside lower left", ncols=4, frameon=False)
    return figure


def _with_mixed_batches(run: StepResult) -> Measurement:
    """Return the measurement; of a mixed schedule, whose batches come from all data sets, with steps named 'mixed'."""
    if run.config.schedule != "mixed":
        return run.measurement
    steps = tuple(replace(step, dataset="mixed") for step in run.measurement.steps)
    return replace(run.measurement, steps=steps)


def _draw_training(axes: Any, measurement: Measurement) -> None:
    """Draw each batch's loss, its running median over each segment on one data set, and the switches of data set."""
    for dataset, group in groupby(measurement.steps, key=lambda step: step.dataset):
        segment = list(group)
        steps, losses = [step.step for step in segment], [step.loss for step in segment]
        axes.plot(steps, losses, ".", color=style.dataset_colour(dataset), alpha=0.4, markersize=4)
        axes.plot(steps, running_median(losses), "-", color=style.dataset_colour(dataset))
        if steps[0] > measurement.steps[0].step:
            axes.axvline(steps[0] - 0.5, color=style.LINE, lw=1)
            transform = axes.get_xaxis_transform()  # x in steps, y as a share of the panel's height
            axes.text(steps[0] - 0.5, 0.97, f" {dataset} begins", transform=transform, va="top", fontsize=9)


def _draw_validations(axes: Any, measurement: Measurement) -> None:
    for dataset in dict.fromkeys(validation.dataset for validation in measurement.validations):
        validations = [v for v in measurement.validations if v.dataset == dataset]
        axes.plot(
            [v.step for v in validations],
            [v.metrics.get("loss", math.nan) for v in validations],
            "o--",
            color=style.dataset_colour(dataset),
            markeredgecolor="white",
            markersize=9,
            zorder=3,
        )


def _dataset_legend(measurements: list[Measurement]) -> list[Line2D]:
    trained = (step.dataset for measurement in measurements for step in measurement.steps)
    validated = (validation.dataset for measurement in measurements for validation in measurement.validations)
    datasets = dict.fromkeys((*trained, *validated))
    lines = [Line2D([], [], color=style.dataset_colour(name), lw=3, label=name) for name in datasets]
    training = Line2D([], [], color=style.LINE, marker=".", ls="-", label="training, each batch and running median")
    validation = Line2D([], [], color=style.LINE, marker="o", ls="--", label="validation")
    return [*lines, training, validation]
