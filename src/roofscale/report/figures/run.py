"""Figures of one run.

Each function returns a matplotlib figure, or None if the run ended too early for its figure.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from roofscale.data.sample import CHANNELS
from roofscale.forecast.allocator import MIB
from roofscale.forecast.results import GpuForecast
from roofscale.measurement import Measurement
from roofscale.memory_margin import MEMORY_MARGIN
from roofscale.report.figures import style

if TYPE_CHECKING:
    from roofscale.forecast.gpu_memory import MemoryState  # imports PyTorch


def loss_figure(measurement: Measurement) -> Figure | None:
    """Plot the training loss of each batch, its running median, and the validation loss of each data set."""
    if len(measurement.steps) < 2:
        return None
    figure, axes = style.new_axes("Loss", "optimiser step", "BCE + Dice")
    steps, losses = zip(*((record.step, record.loss) for record in measurement.steps), strict=True)
    axes.plot(steps, losses, ".", color="0.75", label="training, each batch")
    axes.plot(steps, running_median(losses), color=style.MEASURED, label="training, running median")
    for name in dict.fromkeys(v.dataset for v in measurement.validations):
        validations = [v for v in measurement.validations if v.dataset == name]
        colour, validated = style.dataset_colour(name), [v.metrics["loss"] for v in validations]
        axes.plot([v.step for v in validations], validated, "o-", color=colour, label=f"validation, {name}")
        constant = float(np.mean(validations[-1].constant_losses))
        axes.axhline(constant, ls=":", color=colour, label=f"best constant, {name}")
    axes.set_ylim(0, highest_loss(measurement))
    axes.legend(frameon=False)
    return figure


def highest_loss(measurement: Measurement) -> float:
    """Return the upper end for an axis of losses. The untrained net's validation loss is not considered: it can be so
    large that nothing else would be visible."""
    trained = (v.metrics.get("loss", math.nan) for v in measurement.validations if v.step > 0)
    finite = [loss for loss in (*(step.loss for step in measurement.steps), *trained) if math.isfinite(loss)]
    return 1.1 * max(finite, default=1.0)


def running_median(values: Sequence[float]) -> list[float]:
    """Return the running median; its window is each value and a tenth of all values on either side."""
    width = max(1, len(values) // 10)
    return [float(np.median(values[max(0, i - width) : i + width + 1])) for i in range(len(values))]


def memory_figure(measurement: Measurement, limit_mib: float, max_share: float) -> Figure | None:
    """Plot the host memory of the process tree over the run, with the compute's limit and the memory margin."""
    if len(measurement.memory) < 2:
        return None
    figure, axes = style.new_axes("Host memory", "seconds since the start", "MiB")
    start = measurement.memory[0].time
    times, levels = zip(*((point.time - start, point.mib) for point in measurement.memory), strict=True)
    axes.plot(times, levels, color=style.MEASURED)
    peak = measurement.metric("memory/peak_mib")
    axes.axhline(peak, ls=":", color=style.MEASURED, label=f"peak {peak:,.0f} MiB")
    margin = f"{100 * max_share:g} % of it"
    # A limit far above would flatten the curve; then it is only in the legend.
    if peak > 0.3 * limit_mib:
        axes.axhline(limit_mib, color=style.LINE, label=f"limit {limit_mib:,.0f} MiB")
        axes.axhline(max_share * limit_mib, color=style.LINE, ls="--", label=margin)
    else:
        axes.plot([], [], " ", label=f"limit {limit_mib:,.0f} MiB, {margin} {max_share * limit_mib:,.0f} MiB")
    axes.set_ylim(0)
    axes.legend(frameon=False)
    return figure


def throughput_figure(measurement: Measurement) -> Figure | None:
    """Plot samples per second of each step, and the share of its time spent waiting for the loader."""
    records = measurement.steps
    if len(records) < 2:
        return None
    figure, axes = style.new_axes("Throughput", "optimiser step", "samples/s")
    sizes = np.diff([0, *(record.samples for record in records)])
    steps = [record.step for record in records]
    axes.plot(steps, [n / r.seconds for n, r in zip(sizes, records, strict=True)], ".-", color=style.MEASURED)
    axes.set_ylim(0)
    waiting = axes.twinx()
    waiting.fill_between(steps, [r.wait_seconds / r.seconds for r in records], color=style.WAITING, alpha=0.25, lw=0)
    waiting.set(ylim=(0, 1), ylabel="share of the step spent waiting for the loader")
    return figure


def sheet_figure(sheet: Mapping[str, Any]) -> Figure:
    """Return a sheet with one row per sample: its image, and target and prediction of each labelled channel.

    Args:
        sheet: ``image`` (N,H,W,3) uint8, ``target`` (N,K,H,W) uint8, ``probability`` (N,K,H,W), ``ids`` (N,),
            ``labelled`` (K,) bool.
    """
    rows, labelled = len(sheet["ids"]), sheet["labelled"]
    columns = 1 + 2 * sum(labelled)
    figure = Figure(figsize=(2.6 * columns, 2.6 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for row, name in enumerate(sheet["ids"]):
        cells = iter(grid[row])
        _cell(next(cells), sheet["image"][row], str(name), row)
        for channel, known in enumerate(labelled):
            if known:
                _cell(next(cells), sheet["target"][row, channel], f"target: {CHANNELS[channel]}", row)
                _cell(next(cells), sheet["probability"][row, channel].astype(float), "prediction", row)
    return figure


def _cell(axes: Any, image: Any, title: str, row: int) -> None:
    axes.imshow(image, **({"cmap": "gray", "vmin": 0, "vmax": 1} if image.ndim == 2 else {}))
    axes.set_axis_off()
    if row == 0 or image.ndim == 3:
        axes.set_title(title, fontsize=9)


def run_figures(measurement: Measurement, max_share: float = MEMORY_MARGIN) -> dict[str, Figure]:
    """Return all figures that the measurement has the data for, by file name."""
    share, peak = measurement.metric("memory/share"), measurement.metric("memory/peak_mib")
    limit = peak / share if share and not math.isnan(share) else math.nan
    drawn = {
        "loss.png": loss_figure(measurement),
        "memory.png": memory_figure(measurement, limit, max_share),
        "throughput.png": throughput_figure(measurement),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


_CREATOR = "roofscale"
_HEAD_BYTES = 4096  # the metadata of PNG and SVG is within them


def gpu_memory_figure(found: GpuForecast, timeline: Sequence["MemoryState"]) -> Figure:
    """Plot allocated and reserved memory at each birth and death of a tensor in two training steps, with the margin."""
    title = f"GPU memory, forecast: {found.name}, batch {found.batch}"
    figure, axes = style.new_axes(title, "births and deaths of tensors over two training steps", "MiB")
    events = range(len(timeline))
    axes.fill_between(events, [p.allocated / MIB for p in timeline], color=style.MEASURED, lw=0, label="allocated")
    axes.plot(events, [p.reserved / MIB for p in timeline], color=style.WAITING, label="reserved")
    axes.axhline(
        MEMORY_MARGIN * found.usable_mib, color=style.LINE, ls="--", label=f"{MEMORY_MARGIN:.0%} of what is usable"
    )
    axes.set_ylim(0)
    axes.legend(frameon=False)
    return figure


def write_figure(figure: Figure, file: Path) -> None:
    """Write a figure as .svg or .png, with 'roofscale' in its metadata."""
    figure.savefig(file, metadata={"Software" if file.suffix.lower() == ".png" else "Creator": _CREATOR})


def is_figure(file: Path) -> bool:
    """Return whether a file was written by ``write_figure``."""
    with file.open("rb") as stream:
        return _CREATOR.encode() in stream.read(_HEAD_BYTES)
