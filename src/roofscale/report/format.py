"""Tables and the words in them: on the terminal, in the strategy document, in the notebook and in MLflow."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from roofscale.measurement import METRICS
from roofscale.phases.expectation import Expectation
from roofscale.phases.judge import Verdict
from roofscale.phases.results import Cause, StepResult

# What a reader has to know of where and on what a run was made; names of a measurement's facts.
FACTS = (
    "data",
    "data_fingerprint",
    "leaks",
    "compute",
    "compute_note",
    "device",
    "precision",
    "memory_limit",
    "memory_source",
)
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
            verdict = Text(criterion.verdict.label, style=_STYLE[criterion.verdict])
            table.add_row(name, criterion.name, verdict, criterion.evidence)
        for found in result.verdict.comparisons:
            said = f"{found.evidence}{f'; {found.reason}' if found.reason else ''}"
            table.add_row("", Text(found.expectation.metric, style="dim"), Text(found.words, style="dim"), said)
        table.add_section()
    return table


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, its cells not padded to columns: MLflow cuts long descriptions off."""
    cells = [headers, *([one_line(cell).replace("|", "\\|") for cell in row] for row in rows)]
    head, *body = (" ".join(f"| {cell}".rstrip() for cell in row) + " |" for row in cells)
    return "\n".join([head, "|---" * len(headers) + "|", *body])


def one_line(text: str) -> str:
    """A text from elsewhere on one line, where nothing passes for HTML or for a marker."""
    return " ".join(text.split()).replace("<", "&lt;")


def code(text: str) -> str:
    """A text as code; an empty one stays empty."""
    return f"`{text}`" if text else ""


def format_number(value: float) -> str:
    """A measured value to three or four significant digits; a dash where it was not measured."""
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def metric_heading(name: str) -> str:
    """A metric's name with its unit."""
    unit = METRICS[name].unit if name in METRICS else ""
    return f"{name} ({unit})" if unit else name


def expectation_words(expected: Expectation) -> str:
    """What is expected of a metric, such as '2 x previous +-40%'."""
    of = "" if expected.of == "absolute" else f" x {expected.of}"
    return f"{expected.value:g}{of} +-{expected.tolerance:.0%}"


def limits_words(limits: Mapping[str, float]) -> str:
    """A criterion's limits, such as 'max_share=0.8'."""
    return " ".join(f"{name}={value:g}" for name, value in limits.items())


def cause_words(cause: Cause) -> str:
    """A cause as a person would write it."""
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
