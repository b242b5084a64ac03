"""The loss over the switches from one data set to the next."""

import math
from itertools import groupby
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from roofscale.measurement import Measurement
from roofscale.phases.climb import ClimbResult
from roofscale.report import style
from roofscale.report.figures import highest_loss, running_median

_PANEL = 2.7  # inches of height


def loss_by_dataset(climb: ClimbResult) -> Figure | None:
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
    figure.legend(handles=_legend(list(chosen.values())), loc="outside lower left", ncols=4, frameon=False)
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


def _legend(shown: list[Measurement]) -> list[Line2D]:
    trained = (step.dataset for measurement in shown for step in measurement.steps)
    validated = (validation.dataset for measurement in shown for validation in measurement.validations)
    datasets = dict.fromkeys((*trained, *validated))
    lines = [Line2D([], [], color=style.dataset_colour(name), lw=3, label=name) for name in datasets]
    training = Line2D([], [], color=style.LINE, marker=".", ls="-", label="training, each batch and running median")
    validation = Line2D([], [], color=style.LINE, marker="o", ls="--", label="validation")
    return [*lines, training, validation]
