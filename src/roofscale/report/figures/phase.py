"""All figures of a climb, by file name; one that lacks its evidence is not among them."""

import math
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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

CAPTIONS: Mapping[str, str] = types.MappingProxyType(  # file name: what a reader sees there
    {
        "ladder.png": "Every run, the first at the bottom. Short rungs are tries with a remedy.",
        "expected.png": "Measured over expected; the grey bar is the tolerance that was stated beforehand.",
        "memory_by_batch.png": "Peak host memory of each run; the line is fitted to the runs that ended well.",
        "gpu_memory_by_batch.png": "Peak GPU memory of each run; the line is fitted to the runs that ended well.",
        "throughput_by_batch.png": "Samples a second; the knee is the smallest batch close to the best.",
        "stall_by_workers.png": "What the loader costs, and how busy the CPU is, by the number of loader processes.",
        "loss_by_dataset.png": "Loss by data set; a vertical line is a switch to the next one.",
    }
)


def phase_figures(climb: PhaseResult) -> dict[str, Figure]:
    """The figures that the climb carries evidence for, by file name, in the order of CAPTIONS."""
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


_ROW = 0.34  # inches of height
_WIDTH, _RETREAT_WIDTH = 0.5, 0.3  # of a rung as the step asks and with a remedy, share of the panel
_OUT_OF_MEMORY = (Outcome.HOST_OOM, Outcome.CUDA_OOM)


@dataclass(frozen=True)
class _Rung:
    """One row of the ladder: a run, a step that was not reached, or the heading of a phase."""

    label: str
    run: StepResult | None = None
    heading: bool = False

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """Of all seeds."""
        return self.run.measurements if self.run else ()


def ladder_figure(climbs: Sequence[PhaseResult]) -> Figure | None:
    """Every run as a rung in the colour of its verdict, lowest first, with its time and its peak memory beside it."""
    rungs = [rung for climb in climbs for rung in _rungs(climb)]
    if not any(rung.run for rung in rungs):
        return None
    figure = Figure(figsize=(style.WIDTH, 1.1 + _ROW * len(rungs)), dpi=style.DPI, layout="constrained")
    ladder, time, memory = figure.subplots(1, 3, sharey=True, width_ratios=(3.2, 1, 1))
    ladder.set_yticks(range(len(rungs)), [rung.label for rung in rungs])
    ladder.set_ylim(-0.6, len(rungs) - 0.4)
    for label, rung in zip(ladder.get_yticklabels(), rungs, strict=True):
        label.set_fontweight("bold" if rung.heading else "normal")
    _draw_rungs(ladder, rungs)
    _draw_time(time, rungs)
    _draw_memory(memory, rungs)
    for axes in (ladder, time, memory):
        style.strip_frame(axes)
        axes.spines["left"].set_visible(False)
        axes.tick_params(left=False)
    return figure


def _rungs(climb: PhaseResult) -> Iterator[_Rung]:
    for result in climb.results:
        for run in sorted(result.runs, key=lambda run: run.fallback is not None):  # what the step asks for comes first
            yield _Rung(f"↳ {run.fallback.changed}" if run.fallback else result.step.name, run)
    for step in climb.phase.steps[len(climb.results) :]:
        yield _Rung(step.name)
    yield _Rung(f"Phase {climb.phase.number}: {climb.phase.name}", heading=True)


def _draw_rungs(axes: Any, rungs: Sequence[_Rung]) -> None:
    for place, rung in enumerate(rungs):
        if rung.heading:
            continue
        width = _RETREAT_WIDTH if rung.run and rung.run.fallback else _WIDTH
        if rung.run:
            axes.barh(place, width, height=0.5, color=style.VERDICT_COLOUR[rung.run.verdict.verdict])
        else:
            axes.barh(place, width, height=0.5, fill=False, edgecolor=style.BESIDE, linestyle=":")
        axes.text(width + 0.015, place, _said(rung.run) if rung.run else "not reached", va="center", fontsize=9)
    axes.set(xlim=(0, 1), xticks=[])
    axes.spines["bottom"].set_visible(False)


def _said(run: StepResult) -> str:
    """The verdict and how many seeds it took; on a second line what it hangs on."""
    verdict = run.verdict.verdict
    words = verdict.label + (f", {len(run.measurements)} seeds" if run.repeats else "")
    if verdict is Verdict.PASSED:
        return words
    if run.measurement.outcome is not Outcome.OK:
        ruled_out = "" if run.measurement.metrics else ", ruled out"
        return f"{words}\n{run.measurement.outcome}{ruled_out}"
    first, *others = run.verdict.named(verdict)
    return f"{words}\n{first}" + (f" and {len(others)} more" if others else "")


def _draw_time(axes: Any, rungs: Sequence[_Rung]) -> None:
    """Minutes, those of the repeats included."""
    minutes = [math.fsum(m.metric("speed/run_seconds") for m in rung.measurements) / 60 for rung in rungs]
    known = {place: value for place, value in enumerate(minutes) if value > 0}
    axes.barh(list(known), list(known.values()), height=0.3, color=style.BESIDE)
    for place, value in known.items():
        _write_beside(axes, place, value, f"{value:.1f}")
    axes.set_xlabel("time, min")
    axes.set_xlim(0, 1.35 * max(known.values(), default=1))


def _draw_memory(axes: Any, rungs: Sequence[_Rung]) -> None:
    """Largest peak over the seeds, share of what there was, host or GPU, whichever is fuller."""
    for place, rung in enumerate(rungs):
        shares = [m.metric(name) for m in rung.measurements for name in ("memory/share", "gpu/memory_share")]
        share = max(filter(math.isfinite, shares), default=math.nan)
        if any(m.outcome in _OUT_OF_MEMORY for m in rung.measurements):
            axes.plot(100, place, "X", color=style.VERDICT_COLOUR[Verdict.FAILED], markersize=9, clip_on=False)
        elif math.isfinite(share):
            axes.barh(place, 100 * share, height=0.3, color=style.BESIDE)
            _write_beside(axes, place, 100 * share, f"{share:.0%}")
    for margin in {rung.run.step.memory_margin for rung in rungs if rung.run}:
        axes.axvline(100 * margin, color=style.LINE, ls="--", lw=1.2)
    axes.set(xlim=(0, 125), xticks=(0, 40, 80), xlabel="peak memory, %")


def _write_beside(axes: Any, place: int, end: float, said: str) -> None:
    """A number at the end of a bar, readable where it lies over a line."""
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    axes.annotate(said, (end, place), (4, 0), textcoords="offset points", va="center", fontsize=9, bbox=paper)


def expected_figure(climb: PhaseResult) -> Figure | None:
    """Every expectation that was measured: the measurement over the expected value, in the bar of its tolerance."""
    found = [row for row in climb.comparisons if math.isfinite(row.measured)][::-1]  # the first row comes out on top
    if not found:
        return None
    figure, axes = style.new_axes(
        "Measured against expected", "measured over expected", "", height=1.2 + _ROW * len(found)
    )
    for height, row in enumerate(found):
        low, middle, high = (value / row.expectation.value for value in (row.low, row.measured, row.high))
        colour, tolerance = style.VERDICT_COLOUR[row.verdict], row.expectation.tolerance
        axes.barh(height, 2 * tolerance, left=1 - tolerance, height=0.62, color="0.88")
        axes.plot([low, high], [height, height], "-", color=colour, lw=2.5)
        axes.plot(middle, height, style.VERDICT_MARK[row.verdict], color=colour, markersize=9)
    axes.axvline(1, color=style.LINE, lw=1)
    axes.use_sticky_edges = False  # or the widest tolerance would look cut off
    axes.set_yticks(range(len(found)), [f"{row.step}: {row.expectation.metric}" for row in found])
    axes.tick_params(left=False)
    axes.grid(axis="y", visible=False)
    figure.legend(handles=_legend(row.verdict for row in found), loc="outside lower right", ncols=4, frameon=False)
    return figure


def _legend(verdicts: Iterable[Verdict]) -> list[Any]:
    """The verdicts that are shown, and the tolerance."""
    marks = [
        Line2D([], [], ls="", marker=style.VERDICT_MARK[v], color=style.VERDICT_COLOUR[v], ms=8, label=COMPARED[v])
        for v in dict.fromkeys(sorted(verdicts))
    ]
    return [Patch(color="0.88", label="tolerance"), *marks]


_PANEL = 2.7  # inches of height


def loss_by_dataset(climb: PhaseResult) -> Figure | None:
    """Loss over the steps of every run that saw several data sets, one panel a run; None where no run did."""
    chosen = {
        result.step.name: result.measurement
        for result in climb.results
        if len(result.config.datasets) > 1 and len(result.measurement.steps) > 1
    }
    if not chosen:
        return None
    figure, rows = style.new_rows("Loss by data set", len(chosen), height=1.3 + _PANEL * len(chosen))
    for axes, (name, measurement) in zip(rows, chosen.items(), strict=True):
        axes.set_title(name, loc="left", fontsize=10)
        axes.set_ylabel("BCE + Dice")
        _draw_training(axes, measurement)
        _draw_validations(axes, measurement)
    rows[-1].set_ylim(0, max(map(highest_loss, chosen.values())))
    rows[-1].set_xlabel("optimiser step")
    figure.legend(handles=_dataset_legend(list(chosen.values())), loc="outside lower left", ncols=4, frameon=False)
    return figure


def _draw_training(axes: Any, measurement: Measurement) -> None:
    """Each batch, the running median of each stretch on one data set, and where the next one begins."""
    for dataset, group in groupby(measurement.steps, key=lambda step: step.dataset):
        stretch = list(group)
        steps, losses = [step.step for step in stretch], [step.loss for step in stretch]
        axes.plot(steps, losses, ".", color=style.dataset_colour(dataset), alpha=0.4, markersize=4)
        axes.plot(steps, running_median(losses), "-", color=style.dataset_colour(dataset))
        if steps[0] > measurement.steps[0].step:
            axes.axvline(steps[0] - 0.5, color=style.LINE, lw=1)
            where = axes.get_xaxis_transform()  # x in steps, y in shares of the panel's height
            axes.text(steps[0] - 0.5, 0.97, f" {dataset} begins", transform=where, va="top", fontsize=9)


def _draw_validations(axes: Any, measurement: Measurement) -> None:
    for dataset in dict.fromkeys(validation.dataset for validation in measurement.validations):
        found = [v for v in measurement.validations if v.dataset == dataset]
        axes.plot(
            [v.step for v in found],
            [v.metrics.get("loss", math.nan) for v in found],
            "o--",
            color=style.dataset_colour(dataset),
            markeredgecolor="white",
            markersize=9,
            zorder=3,
        )


def _dataset_legend(shown: list[Measurement]) -> list[Line2D]:
    trained = (step.dataset for measurement in shown for step in measurement.steps)
    validated = (validation.dataset for measurement in shown for validation in measurement.validations)
    datasets = dict.fromkeys((*trained, *validated))
    lines = [Line2D([], [], color=style.dataset_colour(name), lw=3, label=name) for name in datasets]
    training = Line2D([], [], color=style.LINE, marker=".", ls="-", label="training, each batch and running median")
    validation = Line2D([], [], color=style.LINE, marker="o", ls="--", label="validation")
    return [*lines, training, validation]
