"""Calibration of the forecasts: their errors, and how often the interval held what was measured. Pure functions."""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from roofscale.measurement import FIRST_PASS_ONLY, FORECAST, FORECAST_QUANTITIES, Outcome
from roofscale.report.format import markdown
from roofscale.stats.intervals import CONFIDENCE, MAX_OTHER_LOAD
from roofscale.tracking import RunRecord

_DIED_OF = {"memory/peak_mib": Outcome.HOST_OOM, "gpu/memory_peak_mib": Outcome.CUDA_OOM}


@dataclass(frozen=True)
class ForecastOutcome:
    """One quantity of one run, forecast before the run and then measured."""

    run_id: str
    quantity: str  # of FORECAST_QUANTITIES
    forecast: float
    low: float
    high: float
    actual: float
    disturbed: bool  # whether the machine gave much of its time to other work meanwhile

    @property
    def error(self) -> float:
        """Return the relative error of the forecast, above 0 if it was too high."""
        return self.forecast / self.actual - 1

    @property
    def held(self) -> bool:
        """Return whether the interval contains the measured value."""
        return self.low <= self.actual <= self.high


@dataclass(frozen=True)
class Calibration:
    """Errors and interval coverage of the forecasts of one quantity."""

    quantity: str  # of FORECAST_QUANTITIES
    runs: int
    held: int  # of these, runs whose interval contains the measured value
    undisturbed: int  # runs with the machine to themselves, as a forecast of time assumes
    undisturbed_held: int
    median_error: float  # of the absolute relative errors; this and the worst are NaN without runs
    worst_error: float
    share_low: float  # exact confidence interval of the coverage (Clopper and Pearson 1934)
    share_high: float

    @property
    def verdict(self) -> str:
        """Return whether the observed coverage agrees with the nominal one, ``CONFIDENCE``."""
        if not self.runs:
            return "no run yet"
        if self.share_high < CONFIDENCE:
            return "too narrow"
        return "wider than they need be" if self.share_low > CONFIDENCE else f"agrees with {CONFIDENCE:.0%}"


def forecast_outcomes(runs: Sequence[RunRecord]) -> Iterator[ForecastOutcome]:
    """Yield every forecast of a run that also has the measurement.

    A run that ran out of memory would have taken more: it counts only if its peak is above the interval already.
    """
    for run in runs:
        for quantity, (_, metric) in FORECAST_QUANTITIES.items():
            names = (*(f"{FORECAST}{quantity}{end}" for end in ("", "_low", "_high")), metric)
            if not set(names) <= run.metrics.keys() or not run.metrics[metric] > 0:
                continue
            forecast, low, high, actual = (run.metrics[name] for name in names)
            disturbed = run.metrics.get("cpu/others", 0.0) > MAX_OTHER_LOAD
            if metric == "memory/peak_mib" and FIRST_PASS_ONLY in run.tags:
                continue  # the forecast is of the peak of a whole training
            result = ForecastOutcome(run.run_id, quantity, forecast, low, high, actual, disturbed)
            outcome = run.tags.get("outcome")
            if outcome == Outcome.OK or (outcome == _DIED_OF.get(metric) and result.actual > result.high):
                yield result


def calibrate(found: Sequence[ForecastOutcome]) -> list[Calibration]:
    """Return the calibration of each quantity, including those without a run."""
    return [_calibration(name, [pair for pair in found if pair.quantity == name]) for name in FORECAST_QUANTITIES]


def calibration_table(found: Sequence[Calibration]) -> str:
    """Return the calibration of all quantities as Markdown, with an introduction."""
    rows = [
        (
            FORECAST_QUANTITIES[row.quantity][1],
            str(row.runs),
            *(f"{error:.1%}" if row.runs else "-" for error in (row.median_error, row.worst_error)),
            f"{row.held} of {row.runs}" if row.runs else "-",
            f"{row.undisturbed_held} of {row.undisturbed}" if row.runs else "-",
            f"{row.share_low:.0%} to {row.share_high:.0%}" if row.runs else "-",
            row.verdict,
        )
        for row in found
    ]
    introduction = (
        f"Each run logs its forecasts before it begins, with an interval that is to hold in {CONFIDENCE:.0%} "
        "of runs. These are the runs on record that have both a forecast and a measurement. Undisturbed are those "
        f"during which no more than {MAX_OTHER_LOAD:.0%} of the machine went to other work, which a "
        "forecast of time takes for granted."
    )
    heading = (
        "what",
        "runs",
        "median error",
        "worst error",
        "interval held",
        "undisturbed",
        "so a share of",
        "intervals",
    )
    return f"{introduction}\n\n{markdown(heading, rows)}"


def calibration_record(found: Sequence[ForecastOutcome]) -> dict[str, Any]:
    """Return the calibration as JSON values: the table, and every run behind it."""
    table = [
        {**asdict(row), "metric": FORECAST_QUANTITIES[row.quantity][1], "verdict": row.verdict}
        for row in calibrate(found)
    ]
    return {"nominal": CONFIDENCE, "quantities": table, "runs": [asdict(pair) for pair in found]}


def _calibration(quantity: str, found: Sequence[ForecastOutcome]) -> Calibration:
    from scipy import stats

    if not found:
        return Calibration(quantity, 0, 0, 0, 0, *[math.nan] * 4)
    errors, held = [abs(pair.error) for pair in found], sum(pair.held for pair in found)
    quiet = [pair for pair in found if not pair.disturbed]
    share = stats.binomtest(held, len(found)).proportion_ci(CONFIDENCE, method="exact")
    return Calibration(
        quantity=quantity,
        runs=len(found),
        held=held,
        undisturbed=len(quiet),
        undisturbed_held=sum(pair.held for pair in quiet),
        median_error=statistics.median(errors),
        worst_error=max(errors),
        share_low=float(share.low),
        share_high=float(share.high),
    )
