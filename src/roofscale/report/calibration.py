"""What was foreseen of runs beside what they came to: how far off, and how often the interval held. Pure functions."""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy import stats

from roofscale.measurement import FIRST_PASS_ONLY, FORECAST, FORECAST_QUANTITIES, Outcome
from roofscale.report.format import markdown
from roofscale.stats.intervals import CONFIDENCE, MAX_OTHER_LOAD
from roofscale.tracking import RunRecord

_DIED_OF = {"memory/peak_mib": Outcome.HOST_OOM, "gpu/memory_peak_mib": Outcome.CUDA_OOM}


@dataclass(frozen=True)
class ForecastOutcome:
    """One quantity of one run: as it was foreseen before, and as it was measured."""

    run_id: str
    quantity: str  # of FORESEEN
    foreseen: float
    low: float
    high: float
    actual: float
    disturbed: bool  # whether the machine gave much of its time to other work meanwhile

    @property
    def error(self) -> float:
        """As a share of what was measured; above 0 where too much was foreseen."""
        return self.foreseen / self.actual - 1

    @property
    def held(self) -> bool:
        """Whether the interval held what was measured."""
        return self.low <= self.actual <= self.high


@dataclass(frozen=True)
class Calibration:
    """How the forecasts of one quantity have done."""

    quantity: str  # of FORESEEN
    runs: int
    held: int  # of these, runs whose interval held
    undisturbed: int  # runs that had the machine to themselves, as a forecast of time takes for granted
    undisturbed_held: int
    median_error: float  # of the errors' size, as a share; as the worst one NaN without runs
    worst_error: float
    share_low: float  # exact interval of the share of runs in which an interval holds (Clopper and Pearson 1934)
    share_high: float

    @property
    def verdict(self) -> str:
        """Whether the intervals do what they say."""
        if not self.runs:
            return "no run yet"
        if self.share_high < CONFIDENCE:
            return "too narrow"
        return "wider than they need be" if self.share_low > CONFIDENCE else f"agrees with {CONFIDENCE:.0%}"


def forecast_outcomes(runs: Sequence[RunRecord]) -> Iterator[ForecastOutcome]:
    """Every forecast that can be held against a measurement.

    A run that ran out of memory would have taken more: it counts only where even what it had is above the interval.
    """
    for run in runs:
        for quantity, (_, metric) in FORECAST_QUANTITIES.items():
            names = (*(f"{FORECAST}{quantity}{end}" for end in ("", "_low", "_high")), metric)
            if not set(names) <= run.metrics.keys() or not run.metrics[metric] > 0:
                continue
            foreseen, low, high, actual = (run.metrics[name] for name in names)
            disturbed = run.metrics.get("cpu/others", 0.0) > MAX_OTHER_LOAD
            if metric == "memory/peak_mib" and FIRST_PASS_ONLY in run.tags:
                continue  # what was foreseen is the peak of a whole training
            pair = ForecastOutcome(run.run_id, quantity, foreseen, low, high, actual, disturbed)
            outcome = run.tags.get("outcome")
            if outcome == Outcome.OK or (outcome == _DIED_OF.get(metric) and pair.actual > pair.high):
                yield pair


def calibrate(found: Sequence[ForecastOutcome]) -> list[Calibration]:
    """How the forecasts of each quantity have done, those without a run among them."""
    return [_calibration(name, [pair for pair in found if pair.quantity == name]) for name in FORECAST_QUANTITIES]


def calibration_table(found: Sequence[Calibration]) -> str:
    """In Markdown."""
    rows = [
        (
            FORECAST_QUANTITIES[one.quantity][1],
            str(one.runs),
            *(f"{error:.1%}" if one.runs else "-" for error in (one.median_error, one.worst_error)),
            f"{one.held} of {one.runs}" if one.runs else "-",
            f"{one.undisturbed_held} of {one.undisturbed}" if one.runs else "-",
            f"{one.share_low:.0%} to {one.share_high:.0%}" if one.runs else "-",
            one.verdict,
        )
        for one in found
    ]
    said = (
        f"Each run logs what is foreseen of it before it begins, with an interval that is to hold in {CONFIDENCE:.0%} "
        "of runs. These are the runs on record that have both a forecast and a measurement. Undisturbed are those "
        f"during which no more than {MAX_OTHER_LOAD:.0%} of the machine went to other work, which a "
        f"forecast of time takes for "
        "granted."
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
    return f"{said}\n\n{markdown(heading, rows)}"


def calibration_record(found: Sequence[ForecastOutcome]) -> dict[str, Any]:
    """For a script: the table, and every run behind it."""
    table = [
        {**asdict(one), "metric": FORECAST_QUANTITIES[one.quantity][1], "verdict": one.verdict}
        for one in calibrate(found)
    ]
    return {"nominal": CONFIDENCE, "quantities": table, "runs": [asdict(pair) for pair in found]}


def _calibration(quantity: str, found: Sequence[ForecastOutcome]) -> Calibration:
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
