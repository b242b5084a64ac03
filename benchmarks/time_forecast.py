"""How far is the forecast of time from runs that it does not know?

``python -m benchmarks.time_forecast`` takes the climb on record (experiments/generated) and forecasts each of its runs
twice: from all the others, and, as a climb would have, from those before it alone. Nothing is trained. With
``--image-sizes 256 512 1024`` it also trains shortly at each, to see how far seconds a sample go with the area. Writes
benchmarks/results/<date>/time_forecast.json.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.measure import GENERATED, ROOT, machine, scratch_folder, todays_file
from roofscale.cli.console import ProgressBar, console, plain
from roofscale.compute import get
from roofscale.config import RunConfig
from roofscale.data.sources import resolve_data
from roofscale.forecast.history import timing_record
from roofscale.forecast.run_time import forecast_time
from roofscale.forecast.time_scaling import TimingRecord, run_to_run_variance
from roofscale.measurement import FORECAST_QUANTITIES, Outcome
from roofscale.report.calibration import ForecastOutcome, calibrate
from roofscale.runners.local import LocalRunner
from roofscale.stats.intervals import MAX_OTHER_LOAD

RESULTS = ROOT / "experiments" / "generated" / "results"
STEPS = 8  # of a run at one image size


def recorded() -> Iterator[TimingRecord]:
    """Every run of the climbs on record that ended well, repeats among them, in the order in which they were made."""
    for file in sorted(RESULTS.glob("phase*.json")):
        for run in json.loads(file.read_text(encoding="utf-8"))["runs"]:
            config = RunConfig().with_overrides(run["config"])
            for place, one in enumerate([run, *run["repeats"]]):
                if one["outcome"] == "ok":
                    name = f"{file.stem} {run['step']}{f' repeat {place}' * bool(place)}"
                    yield timing_record(config, one["metrics"], run["facts"], name)


def held_out(runs: Sequence[TimingRecord], *, only_before: bool) -> Iterator[tuple[ForecastOutcome, tuple[str, ...]]]:
    """Forecast each run's times without it, with the knobs that they were scaled over."""
    for place, run in enumerate(runs):
        known = runs[:place] if only_before else [*runs[:place], *runs[place + 1 :]]
        found = forecast_time(run.config, get(run.config.compute), known, threads=run.threads)
        if found is None:
            continue
        for quantity, interval in (("run_seconds", found.run_seconds), ("seconds_per_epoch", found.epoch_seconds)):
            actual, disturbed = (
                run.metrics[FORECAST_QUANTITIES[quantity][1]],
                run.metrics["cpu/others"] > MAX_OTHER_LOAD,
            )
            ends = interval.centre, interval.low, interval.high
            yield ForecastOutcome(run.run_id, quantity, *ends, actual, disturbed), found.scaled


def summary(found: Sequence[tuple[ForecastOutcome, tuple[str, ...]]]) -> dict[str, Any]:
    """Errors and held intervals of each quantity, over all and over those that were scaled to another config."""
    content: dict[str, Any] = {}
    for words, chosen in (("all", found), ("scaled", [one for one in found if one[1]])):
        for one in calibrate([pair for pair, _ in chosen]):
            if one.runs:
                content[f"{one.quantity}, {words}"] = {
                    "runs": one.runs,
                    "median_error": round(one.median_error, 4),
                    "worst_error": round(one.worst_error, 4),
                    "held": one.held,
                    "share_held_90": [round(one.share_low, 3), round(one.share_high, 3)],
                }
    return content


def by_image_size(sizes: Sequence[int]) -> list[dict[str, float]]:
    """Seconds a sample at each size, and how far their logarithm lies over that of the size before, beyond the area."""
    rows: list[dict[str, float]] = []
    with scratch_folder() as folder:
        for size in sorted(sizes):
            asked = RunConfig(image_size=size, max_samples=STEPS * 2, val_samples=2)
            config = resolve_data([asked], GENERATED, plain(console(quiet=True)))[0]
            measured = LocalRunner(folder / str(size), ProgressBar(f"{size} px"))(config)
            assert measured.outcome is Outcome.OK, measured.detail
            seconds = measured.metric("speed/seconds_per_sample")
            row = {"image_size": size, "seconds_per_sample": seconds, "others": measured.metric("cpu/others")}
            if rows:
                before = rows[-1]
                beyond = math.log(seconds / before["seconds_per_sample"]) - 2 * math.log(size / before["image_size"])
                row["beyond_area_a_doubling"] = beyond / math.log2(size / before["image_size"])
            rows.append(row)
            print(row)
    return rows


def main() -> int:
    """Forecast every run without itself, and say how far off that was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-sizes", nargs="+", type=int, default=[], help="train at these, px")
    sizes = parser.parse_args().image_sizes
    runs = list(recorded())
    variance, freedom = run_to_run_variance(runs)
    spread = {"deviation": round(variance**0.5, 4), "freedom": freedom}
    content: dict[str, Any] = {"runs": len(runs), "between_runs": spread}
    for words, only_before in (("from all others", False), ("from those before", True)):
        found = list(held_out(runs, only_before=only_before))
        rows = [
            {
                "run": pair.run_id,
                "quantity": pair.quantity,
                "forecast": round(pair.forecast, 2),
                "interval": [round(pair.low, 2), round(pair.high, 2)],
                "actual": round(pair.actual, 2),
                "error": round(pair.error, 4),
                "held": pair.held,
                "scaled": scaled,
            }
            for pair, scaled in found
        ]
        content[words] = {"summary": summary(found), "forecasts": rows}
        print(f"{words}: {json.dumps(content[words]['summary'], indent=1)}")
    if sizes:
        content |= {"image_sizes": {"machine": machine(), "runs": by_image_size(sizes)}}
    todays_file("time_forecast.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
