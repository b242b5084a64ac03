"""Colours, marks and axes shared by all figures and the HTML report.

The colours are those of Okabe and Ito (Color Universal Design, 2008) and of P. Tol's muted scheme: readers with
red-green colour blindness can distinguish them. Each verdict has its own mark too: nothing is in colour alone.
"""

import types
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from roofscale.phases.judge import Verdict

WIDTH = 8.0  # inches; at 900 px the smallest text (9 pt) is 14 px high
HEIGHT = 4.5
DPI = 120

VERDICT_COLOUR: Mapping[Verdict, str] = types.MappingProxyType(
    {Verdict.PASSED: "#009e73", Verdict.FAILED: "#d55e00", Verdict.INSUFFICIENT_EVIDENCE: "#e69f00"}
)
VERDICT_MARK: Mapping[Verdict, str] = types.MappingProxyType(
    {Verdict.PASSED: "o", Verdict.FAILED: "X", Verdict.INSUFFICIENT_EVIDENCE: "D"}
)
DATASET_COLOUR: Mapping[str, str] = types.MappingProxyType({"rid": "#0072b2", "roofline": "#cc79a7", "airs": "#999933"})
MIXED = "#666666"  # batches of several data sets
MEASURED = "#332288"
WAITING = "#882255"
BESIDE = "0.55"  # secondary data: time and memory bars, fits
LINE = "0.2"  # limits


def new_axes(title: str, x: str, y: str, height: float = HEIGHT) -> tuple[Figure, Any]:
    """Return a figure of ``height`` inches with one pair of axes, labelled ``x`` and ``y``."""
    figure, (axes,) = new_rows(title, 1, height)
    axes.set(xlabel=x, ylabel=y)
    return figure, axes


def new_rows(title: str, rows: int, height: float) -> tuple[Figure, list[Any]]:
    """Return a figure of ``height`` inches with axes above each other that share both scales."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    grid = [row[0] for row in figure.subplots(rows, 1, squeeze=False, sharex=True, sharey=True)]
    for axes in grid:
        strip_frame(axes)
        axes.grid(alpha=0.3)
    return figure, grid


def strip_frame(axes: Any) -> None:
    """Hide the top and right spines."""
    axes.spines[["top", "right"]].set_visible(False)


def dataset_colour(name: str) -> str:
    """Return the colour of a data set; MIXED if the name is of several."""
    return DATASET_COLOUR.get(name, MIXED)
