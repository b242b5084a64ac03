"""Self-contained HTML report of a climb: images and styles are embedded, and it can be printed."""

import base64
import io
import math
from collections.abc import Iterable
from functools import cache
from typing import Any

import matplotlib
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from matplotlib.figure import Figure

from roofscale.phases.judge import Verdict
from roofscale.phases.phase_file import Phase
from roofscale.phases.results import PhaseResult, StepResult
from roofscale.report import format
from roofscale.report.figures import style
from roofscale.report.figures.phase import CAPTIONS, phase_figures
from roofscale.report.phase_status import config_words, facts, format_changes, outcome_words, step_words, watched
from roofscale.report.recommendations import recommend
from roofscale.stats.intervals import CONFIDENCE

REPORT = "report.html"  # in MLflow
UI = "http://127.0.0.1:5000"  # where `make ui` serves MLflow
_PNG_DPI = 150  # dots per inch: 1200 px wide


def phase_html(climb: PhaseResult, following: Phase | None = None, ui: str = UI) -> str:
    """Return the report of a climb as HTML.

    Args:
        climb: the attempt.
        following: the phase after it; None after the last.
        ui: address of the MLflow server that the run ids link to.
    """
    runs = list(climb.all_runs())
    return _template().render(
        climb=climb,
        phase=climb.phase,
        runs=runs,
        outcome=outcome_words(climb),
        headline=_headline(climb),
        left_out=climb.left_out,
        setbacks=[run for run in runs if run.fallback or run.verdict.verdict is not Verdict.PASSED],
        compared=climb.comparisons,
        advice=recommend(climb, following),
        watched=watched(climb),
        facts=facts(climb),
        figures={name: _data_uri(figure) for name, figure in phase_figures(climb).items()},
        captions=CAPTIONS,
        colours={verdict.value: colour for verdict, colour in style.VERDICT_COLOUR.items()},
        confidence=CONFIDENCE,
        ui=ui.rstrip("/"),
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("roofscale.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": format.format_number,
        "heading": format.metric_heading,
        "cause": format.cause_words,
        "expectation": format.expectation_words,
        "limits": format.limits_words,
        "config": config_words,
        "at": format_changes,
        "step": step_words,
        "minutes": _minutes,
        "percent": _percent,
        "worst": _worst,
        "over_seeds": format.over_seeds,
    }
    return environment.get_template("phase.html.jinja")


def _headline(climb: PhaseResult) -> str:
    """Return how many steps passed, how many of them after a fallback, and the runs and minutes that took."""
    passed = [result for result in climb.results if result.verdict.verdict is Verdict.PASSED]
    with_remedy = sum(result.fallback is not None for result in passed)
    runs = sum(len(run.measurements) for run in climb.all_runs())
    summary = f"{len(passed)} of {len(climb.phase.steps)} steps passed"
    summary += f", {with_remedy} of them with a remedy" if with_remedy else ""
    return f"{summary}. It took {runs} run{'' if runs == 1 else 's'} and {_minutes(climb.all_runs())} min."


def _minutes(runs: Iterable[StepResult]) -> str:
    seconds = (seed.metric("speed/run_seconds") for run in runs for seed in run.measurements)
    return f"{math.fsum(filter(math.isfinite, seconds)) / 60:.1f}"


def _percent(share: float) -> str:
    return "" if math.isnan(share) else f"{share:.0%}"


def _worst(run: StepResult, metric: str) -> float:
    """Return the largest value over all seeds; NaN if there is none."""
    return max((m.metric(metric) for m in run.measurements if metric in m.metrics), default=math.nan)


def _data_uri(figure: Figure) -> str:
    """Return the figure as a data URI, SVG or PNG, whichever is smaller: PNG wins for a figure of many points."""
    images = {}
    with matplotlib.rc_context({"svg.hashsalt": "roofscale"}):  # the same climb gives the same page
        kinds: dict[str, dict[str, Any]] = {"svg+xml": {"metadata": {"Date": None}}, "png": {"dpi": _PNG_DPI}}
        for kind, options in kinds.items():
            stream = io.BytesIO()
            figure.savefig(stream, format=kind.removesuffix("+xml"), transparent=True, **options)
            images[kind] = stream.getvalue()
    kind = min(images, key=lambda kind: len(images[kind]))
    return f"data:image/{kind};base64,{base64.b64encode(images[kind]).decode()}"
