"""Forecasts beside measurements: errors by hand, shares against scipy's exact test, and what must not count."""

import math

import numpy as np
import pytest
from scipy import stats

from roofscale.measurement import FORECAST_QUANTITIES, METRICS
from roofscale.report.calibration import (
    ForecastOutcome,
    calibrate,
    calibration_record,
    calibration_table,
    forecast_outcomes,
)
from roofscale.tracking import RunRecord


def run(actual: float, low: float, high: float, outcome: str = "ok", **more: float) -> RunRecord:
    metrics = {
        "forecast/host_peak_mib": (low + high) / 2,
        "forecast/host_peak_mib_low": low,
        "forecast/host_peak_mib_high": high,
        "memory/peak_mib": actual,
        **more,
    }
    return RunRecord(f"run {actual:g}", "", None, "FINISHED", 0.0, 1.0, {"outcome": outcome}, {}, metrics)


def test_errors_and_held_intervals_are_counted() -> None:
    found = list(forecast_outcomes([run(1000, 900, 1100), run(1000, 1000, 1200), run(1000, 1100, 1500)]))
    assert [(pair.held, round(pair.error, 9)) for pair in found] == [(True, 0.0), (True, 0.1), (False, 0.3)]
    host, *others = calibrate(found)
    assert (host.quantity, host.runs, host.held) == ("host_peak_mib", 3, 2)
    assert (host.median_error, host.worst_error) == pytest.approx((0.1, 0.3))
    assert all(other.runs == 0 and math.isnan(other.worst_error) for other in others)


@pytest.mark.parametrize(("held", "runs", "verdict"), [
    (0, 0, "no run yet"), (9, 10, "agrees with 90%"), (5, 10, "too narrow"), (100, 100, "wider than they need be"),
    (1, 1, "agrees with 90%"),  # which is no proof of anything
])  # fmt: skip
def test_the_share_has_its_exact_interval(held: int, runs: int, verdict: str) -> None:
    found = [ForecastOutcome("r", "run_seconds", 1.0, 0.5, 1.5, 1.0 if i < held else 2.0, False) for i in range(runs)]
    one = next(one for one in calibrate(found) if one.quantity == "run_seconds")
    assert (one.runs, one.held, one.verdict) == (runs, held, verdict)
    if runs:
        low = stats.beta.ppf(0.05, held, runs - held + 1) if held else 0.0
        high = stats.beta.ppf(0.95, held + 1, runs - held) if held < runs else 1.0
        assert (one.share_low, one.share_high) == pytest.approx((low, high), abs=1e-6)


def test_a_trial_that_saw_the_first_pass_only_is_not_held_against_the_forecast_of_a_whole_training() -> None:
    brief = run(1000, 1100, 1200)
    brief.tags["first_pass_only"] = "200 MiB are added to its peak for later passes"
    assert list(forecast_outcomes([brief])) == []


def test_what_is_called_too_narrow_seldom_is_right() -> None:
    random = np.random.default_rng(0)
    called = 0
    for _ in range(300):
        actual = np.exp(0.1 * random.normal(size=30))
        reach = math.exp(1.645 * 0.1)
        found = [ForecastOutcome("r", "run_seconds", 1.0, 1 / reach, reach, value, False) for value in actual]
        called += next(one for one in calibrate(found) if one.quantity == "run_seconds").verdict == "too narrow"
    assert called <= 0.05 * 300 * 1.6


def test_runs_on_a_busy_machine_are_told_apart_and_counted_all_the_same() -> None:
    found = list(forecast_outcomes([run(1000, 900, 1100), run(1000, 1100, 1500, **{"cpu/others": 0.5})]))
    host = calibrate(found)[0]
    assert (host.held, host.runs, host.undisturbed_held, host.undisturbed) == (1, 2, 1, 1)
    assert "| 1 of 2 | 1 of 1 |" in " ".join(calibration_table([host]).split())


def test_a_run_without_both_does_not_count() -> None:
    lacking = run(1000, 900, 1100)
    del dict(lacking.metrics)["memory/peak_mib"]
    only_forecast = RunRecord("f", "", None, "FINISHED", 0.0, 1.0, {"outcome": "ok"}, {},
                              {k: v for k, v in lacking.metrics.items() if k.startswith("forecast/")})  # fmt: skip
    only_measured = RunRecord("m", "", None, "FINISHED", 0.0, 1.0, {"outcome": "ok"}, {}, {"memory/peak_mib": 1.0})
    assert list(forecast_outcomes([only_forecast, only_measured, run(1000, 900, 1100, outcome="interrupted")])) == []


def test_a_run_out_of_memory_counts_where_it_had_more_than_was_forecast() -> None:
    """It was said to fit, and it died: that is a miss. Died below the forecast end, it proves nothing."""
    beyond, within = run(2000, 900, 1100, outcome="host_oom"), run(1000, 900, 1100, outcome="host_oom")
    assert [pair.held for pair in forecast_outcomes([beyond, within])] == [False]
    times = {f"forecast/run_seconds{end}": 10.0 for end in ("", "_low", "_high")} | {"speed/run_seconds": 99.0}
    found = list(forecast_outcomes([run(2000, 900, 1100, outcome="host_oom", **times)]))
    assert [pair.quantity for pair in found] == ["host_peak_mib"], "its time was cut short"


def test_the_table_and_the_record_say_the_same() -> None:
    found = list(forecast_outcomes([run(1000, 900, 1100), run(1000, 1100, 1500)]))
    text = calibration_table(calibrate(found))
    assert "| memory/peak_mib" in text
    assert "1 of 2" in text
    assert text.count("no run yet") == 3
    record = calibration_record(found)
    assert record["nominal"] == 0.9
    assert [one["held"] for one in record["quantities"]] == [1, 0, 0, 0]
    assert [one["actual"] for one in record["runs"]] == [1000, 1000]


def test_every_forecast_is_of_a_metric_that_there_is() -> None:
    for name, (unit, metric) in FORECAST_QUANTITIES.items():
        assert METRICS[metric].unit == METRICS[f"forecast/{name}"].unit == unit
        assert METRICS[f"forecast/{name}_low"].meaning.endswith("lower end of the interval")
