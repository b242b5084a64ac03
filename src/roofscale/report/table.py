"""The verdict table of a phase: on the terminal, and as the description of its MLflow run."""

import math
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text
from tabulate import tabulate

from roofscale.measurement import METRICS
from roofscale.phases.judge import Verdict
from roofscale.phases.ladder import StepResult

_STYLE = {Verdict.PASSED: "green", Verdict.FAILED: "bold red", Verdict.INSUFFICIENT_EVIDENCE: "yellow"}


def verdict_table(title: str, results: Sequence[StepResult]) -> Table:
    """A row a criterion, grouped by step, with the evidence in words and numbers."""
    table = Table(title=title, title_justify="left", expand=True)
    for heading, ratio in (("step", 2), ("criterion", 2), ("verdict", 2), ("evidence", 8)):
        table.add_column(heading, ratio=ratio, overflow="fold")
    for result in results:
        rows = result.verdict.criteria
        for place, criterion in enumerate(rows):
            name = Text(result.step.name, style=_STYLE[result.verdict.verdict]) if place == 0 else ""
            verdict = Text(criterion.verdict.words, style=_STYLE[criterion.verdict])
            table.add_row(name, criterion.name, verdict, criterion.evidence, end_section=place == len(rows) - 1)
    return table


def verdict_markdown(results: Sequence[StepResult]) -> str:
    """The same table in Markdown."""
    rows = [
        (result.step.name if place == 0 else "", criterion.name, criterion.verdict.words, criterion.evidence)
        for result in results
        for place, criterion in enumerate(result.verdict.criteria)
    ]
    return tabulate(rows, headers=("step", "criterion", "verdict", "evidence"), tablefmt="github")


def measured_markdown(results: Sequence[StepResult], metrics: Sequence[str]) -> str:
    """What was measured: a row a metric, a column a step."""
    rows = [[_heading(name), *(number(r.measurement.metric(name)) for r in results)] for name in metrics]
    return tabulate(
        rows, headers=["measured", *(r.step.name for r in results)], tablefmt="github", disable_numparse=True
    )


def number(value: float) -> str:
    """A measured value to three or four significant digits; a dash where it was not measured."""
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _heading(name: str) -> str:
    unit = METRICS[name].unit if name in METRICS else ""
    return f"{name} ({unit})" if unit else name
