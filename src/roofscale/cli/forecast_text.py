"""Forecasts in words, for the terminal and for scripts."""

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from roofscale.forecast.roofline_model import StepEstimate
from roofscale.forecast.run_time import TimeForecast
from roofscale.stats.intervals import CONFIDENCE, REACH, Interval


def duration(seconds: Interval) -> str:
    """Format a time with its interval, in the largest unit of which there are two."""
    unit, size = next((unit, size) for unit, size in _UNITS if seconds.centre >= 2 * size or size == 1)
    centre, low, high = (_short(value / size) for value in (seconds.centre, seconds.low, seconds.high))
    return f"{centre} {unit} ({low} to {high})"


_UNITS = (("h", 3600), ("min", 60), ("s", 1))  # the largest of which there are two


def cost(usd: Interval | None) -> str:
    """Format a cost with its interval; empty if there is no price."""
    if usd is None:
        return ""
    centre, low, high = (
        f"{value:,.2f}" if value >= 0.1 else f"{value:.2g}" for value in (usd.centre, usd.low, usd.high)
    )
    return f"{centre} USD ({low} to {high})"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def step(estimate: StepEstimate) -> str:
    """Format the estimated time of a step with its interval, and its rate."""
    factor = math.exp(estimate.deviation * REACH)
    low, high = estimate.seconds / factor, estimate.seconds * factor
    return f"{estimate.seconds:.3g} s ({low:.3g} to {high:.3g}), {estimate.samples / estimate.seconds:.3g} samples/s"


def notes(forecast: TimeForecast) -> Iterator[str]:
    """Yield the notes that a forecast needs: what it is scaled from, over which knobs, how far to trust it."""
    if forecast.estimate:
        estimate = forecast.estimate
        yield (
            f"An estimate, not a measurement: {estimate.flops:.3g} FLOPs and {estimate.nbytes:.3g} bytes a step of "
            f"{estimate.samples} on a {estimate.gpu}. {estimate.evidence} It takes the loader to deliver "
            f"{1 / forecast.seconds_per_sample:.3g} samples/s; with a slower one the GPU waits."
        )
    if forecast.scaled:
        yield f"Scaled over: {', '.join(forecast.scaled)}. The interval is wider by what such a change may move."


def as_dict(forecast: TimeForecast | None) -> dict[str, Any] | None:
    """Convert to JSON for a script."""
    return {**asdict(forecast), "confidence": CONFIDENCE, "basis": basis(forecast)} if forecast else None


def basis(forecast: TimeForecast) -> str:
    """Name the basis of a forecast in two words."""
    return "roofline estimate" if forecast.estimate else "measured runs"
