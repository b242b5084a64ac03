"""The verdict table of a phase: on the terminal, and as the description of its MLflow run."""

import math
import re
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
    for heading in ("step", "criterion", "verdict"):
        table.add_column(heading)
    table.add_column("evidence", ratio=1, overflow="fold")  # takes what the others leave
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
    return markdown(("step", "criterion", "verdict", "evidence"), rows)


def measured_markdown(results: Sequence[StepResult], metrics: Sequence[str]) -> str:
    """What was measured: a row a metric, a column a step."""
    rows = [[_heading(name), *(number(r.measurement.metric(name)) for r in results)] for name in metrics]
    return markdown(["measured", *(r.step.name for r in results)], rows)


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown without the padding that would double its length: MLflow cuts long descriptions off."""
    table = tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)
    return re.sub(r"-{4,}", "---", re.sub(r" {2,}", " ", table))


def number(value: float) -> str:
    """A measured value to three or four significant digits; a dash where it was not measured."""
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _heading(name: str) -> str:
    unit = METRICS[name].unit if name in METRICS else ""
    return f"{name} ({unit})" if unit else name
