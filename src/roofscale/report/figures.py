"""Figures of one run, drawn from its measurement; none is drawn without evidence.

Each returns a matplotlib figure, or None where the run did not get far enough to show anything.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from roofscale.data.sample import CHANNELS
from roofscale.measurement import Measurement

_SIZE = (8.0, 4.5)
_MEMORY_LINE = 0.80  # the share of the compute's memory that a run should stay under


def loss_figure(measurement: Measurement) -> Figure | None:
    """Training loss of each batch, its running median, and the validation loss of each data set."""
    if len(measurement.steps) < 2:
        return None
    figure, axes = _axes("Loss", "optimiser step", "BCE + Dice")
    steps = np.array([record.step for record in measurement.steps])
    losses = np.array([record.loss for record in measurement.steps])
    width = max(1, len(losses) // 10)
    median = [np.median(losses[max(0, i - width) : i + width + 1]) for i in range(len(losses))]
    axes.plot(steps, losses, ".", color="0.75", label="training, each batch")
    axes.plot(steps, median, color="tab:blue", label="training, running median")
    for place, name in enumerate(dict.fromkeys(v.dataset for v in measurement.validations), 1):
        found = [v for v in measurement.validations if v.dataset == name]
        axes.plot(
            [v.step for v in found],
            [v.metrics["loss"] for v in found],
            "o-",
            color=f"C{place}",
            label=f"validation, {name}",
        )
        axes.axhline(
            float(np.mean(found[-1].constant_losses)), ls=":", color=f"C{place}", label=f"best constant, {name}"
        )
    # The untrained net's validation loss can be so far off that nothing else would be seen.
    axes.set_ylim(0, 1.1 * max(float(np.nanmax(losses)), *(v.metrics["loss"] for v in measurement.validations[1:]), 0))
    axes.legend()
    return figure


def memory_figure(measurement: Measurement, limit_mib: float) -> Figure | None:
    """Host memory of the process tree over the run, with the compute's limit and 80 % of it."""
    if len(measurement.memory) < 2:
        return None
    figure, axes = _axes("Host memory", "seconds since the start", "MiB")
    start = measurement.memory[0].time
    axes.plot([point.time - start for point in measurement.memory], [point.mib for point in measurement.memory])
    peak = measurement.metric("memory/peak_mib")
    axes.axhline(peak, ls=":", color="tab:blue", label=f"peak {peak:,.0f} MiB")
    # A limit far above would press the curve flat; then it is said, not drawn.
    if peak > 0.3 * limit_mib:
        axes.axhline(limit_mib, color="tab:red", label=f"limit {limit_mib:,.0f} MiB")
        axes.axhline(_MEMORY_LINE * limit_mib, color="tab:orange", label="80 % of it")
    else:
        axes.plot([], [], " ", label=f"limit {limit_mib:,.0f} MiB, 80 % of it {_MEMORY_LINE * limit_mib:,.0f} MiB")
    axes.set_ylim(0)
    axes.legend()
    return figure


def throughput_figure(measurement: Measurement) -> Figure | None:
    """Samples a second of each step, and the part of its time spent waiting for the loader."""
    records = measurement.steps
    if len(records) < 2:
        return None
    figure, axes = _axes("Throughput", "optimiser step", "samples/s")
    sizes = np.diff([0, *(record.samples for record in records)])
    steps = [record.step for record in records]
    axes.plot(steps, [n / r.seconds for n, r in zip(sizes, records, strict=True)], ".-", label="samples/s")
    axes.set_ylim(0)
    waiting = axes.twinx()
    waiting.fill_between(steps, [r.wait_seconds / r.seconds for r in records], color="tab:orange", alpha=0.3)
    waiting.set(ylim=(0, 1), ylabel="share of the step spent waiting for the loader")
    axes.legend()
    return figure


def sheet_figure(sheet: Mapping[str, Any]) -> Figure:
    """Image, target and prediction of the labelled channels side by side, a row a sample.

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


def _cell(axes: Any, picture: Any, title: str, row: int) -> None:
    axes.imshow(picture, **({"cmap": "gray", "vmin": 0, "vmax": 1} if picture.ndim == 2 else {}))
    axes.set_axis_off()
    if row == 0 or picture.ndim == 3:
        axes.set_title(title, fontsize=9)


def _axes(title: str, x: str, y: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return figure, axes


def run_figures(measurement: Measurement) -> dict[str, Figure]:
    """All figures that the measurement can carry, by file name."""
    share, peak = measurement.metric("memory/share"), measurement.metric("memory/peak_mib")
    limit = peak / share if share and not math.isnan(share) else math.nan
    drawn = {
        "loss.png": loss_figure(measurement),
        "memory.png": memory_figure(measurement, limit),
        "throughput.png": throughput_figure(measurement),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}
