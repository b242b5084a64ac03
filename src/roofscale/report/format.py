"""Formatting of tables, numbers and names for the terminal, the strategy document, the notebook and MLflow."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from roofscale.measurement import METRICS
from roofscale.phases.criteria.expectations import Expectation
from roofscale.phases.judge import Verdict
from roofscale.phases.results import Cause, StepResult

_STYLE = {Verdict.PASSED: "green", Verdict.FAILED: "bold red", Verdict.INSUFFICIENT_EVIDENCE: "yellow"}


def verdict_table(title: str, results: Sequence[StepResult]) -> Table:
    """Return a table for the terminal: one row per criterion or expectation, grouped by step, with its evidence."""
    table = Table(title=title, title_justify="left", expand=True)
    for heading in ("step", "criterion", "verdict"):
        table.add_column(heading)
    table.add_column("evidence", ratio=1, overflow="fold")  # takes the remaining width
    for result in results:
        rows = result.verdict.criteria
        for index, criterion in enumerate(rows):
            name = Text(result.step.name, style=_STYLE[result.verdict.verdict]) if index == 0 else ""
            verdict = Text(criterion.verdict.label, style=_STYLE[criterion.verdict])
            table.add_row(name, criterion.name, verdict, criterion.evidence)
        for comparison in result.verdict.comparisons:
            evidence = "; ".join(filter(None, (comparison.evidence, comparison.reason)))
            metric, words = (Text(text, style="dim") for text in (comparison.expectation.metric, comparison.words))
            table.add_row("", metric, words, evidence)
        table.add_section()
    return table


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; cells are not padded to columns, because MLflow truncates long descriptions."""
    cells = [headers, *([one_line(cell).replace("|", "\\|") for cell in row] for row in rows)]
    head, *body = (" ".join(f"| {cell}".rstrip() for cell in row) + " |" for row in cells)
    return "\n".join([head, "|---" * len(headers) + "|", *body])


def one_line(text: str) -> str:
    """Return a foreign text on one line, with '<' escaped so that it contains no HTML and no marker of a block."""
    return " ".join(text.split()).replace("<", "&lt;")


def code(text: str) -> str:
    """Return a text as Markdown code; an empty text stays empty."""
    return f"`{text}`" if text else ""


def format_number(value: float) -> str:
    """Return a value with three or more significant digits; '-' if it is NaN, that is not measured."""
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def over_seeds(run: StepResult, metric: str) -> str:
    """Return a metric of a run, or over several seeds the smallest and the largest value; '-' if it is not known."""
    finite = sorted(value for seed in run.measurements if math.isfinite(value := seed.metric(metric)))
    return " to ".join(dict.fromkeys(format_number(value) for value in (finite[0], finite[-1]))) if finite else "-"


def metric_heading(name: str) -> str:
    """Return the name of a metric with its unit."""
    unit = METRICS[name].unit if name in METRICS else ""
    return f"{name} ({unit})" if unit else name


def expectation_words(expected: Expectation) -> str:
    """Return an expectation such as '2 x previous +-40%'."""
    of = "" if expected.of == "absolute" else f" x {expected.of}"
    return f"{expected.value:g}{of} +-{expected.tolerance:.0%}"


def limits_words(limits: Mapping[str, float]) -> str:
    """Return the limits of a criterion, such as 'max_share=0.8'."""
    return " ".join(f"{name}={value:g}" for name, value in limits.items())


def cause_words(cause: Cause) -> str:
    """Return the cause of a failure with spaces instead of underscores."""
    return cause.value.replace("_", " ")


def as_json(content: Any) -> str:
    """JSON for a script: NaN becomes null, because strict readers refuse it."""

    def clean(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): clean(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [clean(item) for item in value]
        return None if isinstance(value, float) and value != value else value

    return json.dumps(clean(content), indent=1, default=str)
