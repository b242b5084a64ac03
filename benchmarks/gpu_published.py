"""GPU memory and step times that others have published, against this project's forecasts of them.

``python -m benchmarks.gpu_published [--measurements FILE] [--out JSON] [--limit N]`` needs the packages of
requirements-bench.txt on the path (``make bench`` puts them into .bench: ``PYTHONPATH=.bench``). It rebuilds the nets,
traces a step of each, writes JSON with every row, and prints a table; ``benchmarks.pictures`` draws the figure. A row
that cannot be forecast is listed with its reason. Each row's answer is kept in .bench/published, so that the same
command goes on where it was cut off; ``--fresh`` forgets them. FILE has the columns of gpu_published.csv in
benchmarks/data, whose README lists the sources.

Intervals and coefficients are judged on families that they were not calibrated on: those of the other half, of many
random halves, and each family by all others. ``--again`` judges the rows in JSON once more and forecasts none.
"""

import argparse
import csv
import hashlib
import json
import logging
import math
import random
import statistics
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import published_nets as nets
from benchmarks.measure import ROOT, machine, newest_file, todays_file
from benchmarks.published_nets import LeftOut, Row
from roofscale.compute import Compute
from roofscale.forecast.allocator import Settings
from roofscale.forecast.gpu_memory import GpuForecaster, Terms
from roofscale.forecast.results import GpuForecast
from roofscale.forecast.roofline_model import GpuPeaks, calibration_of, peaks_of, roofline_seconds
from roofscale.forecast.trace import Trace, trace_batch
from roofscale.forecast.training_step import TrainingStep

DATA = Path(__file__).parent / "data" / "gpu_published.csv"
KEPT = ROOT / ".bench" / "published"

# What a PyTorch process can have of an RTX 3090 of 24 GiB, by its messages.
CARD = Compute("RTX 3090", 0, 0.0, "RTX 3090", 1, 23.70)
A100_80 = GpuPeaks(19.5, 156.0, 312.0, 312.0, 2039, "NVIDIA A100 80GB data sheet, 2021")
TARGETS = {"median": 0.01, "p90": 0.04, "within": 0.97, "time_median": 0.12, "time_p90": 0.30, "oom": 0.95}
NEAR = 0.08
COVERED = 0.9  # of the interval
SPLITS = 1000

# Faults of the tables, by config: what is done about them, and why.
SWAPPED = "left out: the published figures of these two rows look swapped"
FAULTS = {
    "emanet_r50-d8_4xb2-80k_cityscapes-769x769": SWAPPED,
    "emanet_r101-d8_4xb2-80k_cityscapes-512x1024": SWAPPED,
}
# All rows of this family are published to three digits and are 1.024 times the forecast: MiB divided by 1000.
DECIMAL_FAMILIES = ("isanet",)

Answer = dict[str, Any]


# ---- forecasts


def answer(row: Row) -> Answer:
    """Forecast one row; the answer has ``left_out`` instead of a forecast if there is none."""
    started = time.process_time()
    found: Answer = {"key": key(row), "source": row["source"], "family": row["family"], "precision": row["precision"]}
    try:
        if fault := FAULTS.get(row["config"]):
            raise LeftOut(fault)
        if row["source"] not in SOURCES:
            raise LeftOut(f"source {row['source']}: expected {', '.join(SOURCES)}")
        found |= SOURCES[row["source"]](row)
    except LeftOut as reason:
        found["left_out"] = str(reason)
    except Exception as error:  # a net of others may fail in any way; the reason is listed
        found["left_out"] = f"{type(error).__name__}: {str(error)[:300]}"
    return {**found, "seconds": time.process_time() - started}


def key(row: Row) -> str:
    """Name a row in the results."""
    names = ("source", "config", "model", "precision", "gpu", "batch_per_gpu")
    return " ".join(filter(None, (row[name] for name in names)))


def _mmseg(row: Row) -> Answer:
    if not row["measured_gb"]:
        raise LeftOut("no memory is published")
    with nets.old_activations():
        step, batch = nets.mmseg_step(row)
        trace = trace_batch(step, step.precision, batch, nets.OldTorch())
    return _mmseg_memory(row, step, trace, batch)


def _mmseg_memory(row: Row, step: TrainingStep, trace: Trace, batch: int) -> Answer:
    gib = float(row["measured_gb"]) * (1000 / 1024 if row["family"] in DECIMAL_FAMILIES else 1)
    forecast = _old_forecast(step, trace, batch)
    return {
        "precision": step.precision,
        "batch": batch,
        "measured_mib": 1024 * gib,
        "allocated_mib": forecast.allocated_mib,
        "kinds": dict(forecast.kinds),
    }


def _mmseg_forward(row: Row) -> Answer:
    net, forward = nets.mmseg_forward(row)
    work = nets.trace_forward(net, forward)
    return {"time": _time(work, "V100", "fp32", float(row["infer_ms"]) / 1000, "forward")}


def _has_forward_time(row: Row) -> bool:
    whole = row["test_mode"] == "whole" and row["dataset"] == "Cityscapes"
    return bool(row["infer_ms"]) and whole and row["precision"] == "fp32"


def _old_forecast(step: TrainingStep, trace: Trace, batch: int) -> GpuForecast:
    """Forecast from a trace of one batch size, with cuBLAS's workspace outside the allocator as before torch 1.11."""
    where = Compute("V100", 0, 0.0, "V100", 1, 31.7)
    terms = replace(Terms.load(), cublas_mib=0.0)
    forecaster = GpuForecaster.of_step(step, where, terms=terms, settings=Settings())
    return replace(forecaster, traced=lambda: trace).forecast(batch)


def _timm(row: Row) -> Answer:
    step, batch = nets.timm_step(row)
    forecaster = GpuForecaster.of_step(step, CARD, settings=Settings())
    found: Answer = {"batch": batch, "ran": _held(forecaster.forecast(batch))}
    if row["oom_batch"]:
        found["failed"] = _held(forecaster.forecast(int(row["oom_batch"])))
    if row["step_ms"]:
        work = forecaster.traced().at(batch).work
        found["time"] = _time(work, "RTX 3090", "fp16", float(row["step_ms"]) / 1000, "training")
    return found


def _held(forecast: GpuForecast) -> Answer:
    names = ("allocated_mib", "reserved_mib", "total_mib", "low_mib", "high_mib", "usable_mib")
    return {name: getattr(forecast, name) for name in names}


def _nnunet(row: Row) -> Answer:
    step, batch = nets.nnunet_step(row)
    gpu = next(gpu for gpu in ("A100", "V100") if gpu in row["gpu"])
    work = trace_batch(step, step.precision, batch).work
    peaks = A100_80 if gpu == "A100" else peaks_of(gpu)
    return {"batch": batch, "time": _time(work, gpu, step.precision, float(row["step_ms"]) / 1000, "decoder", peaks)}


def _time(
    work: Sequence[Any], gpu: str, precision: str, measured: float, kind: str, peaks: GpuPeaks | None = None
) -> Answer:
    """Return a measured time with the roofline's sums, in the order of ``Calibration``.

    Seconds that arithmetic limits, those of convolutions in groups, seconds that memory limits, number of operations.
    """
    sums = [0.0, 0.0, 0.0]
    for op in work:
        computing, moving = roofline_seconds(op, precision, peaks or peaks_of(gpu))
        sums[2 if computing < moving else int(op.is_grouped)] += max(computing, moving)
    return {"kind": kind, "gpu": gpu, "measured": measured, "sums": [*sums, len(work)]}


SOURCES: Mapping[str, Callable[[Row], Answer]] = {
    "mmseg": _mmseg,
    "mmseg-forward": _mmseg_forward,
    "timm-train": _timm,
    "nvidia-nnunet": _nnunet,
}


# ---- comparison


def half(family: str) -> int:
    """Return which half a family belongs to, 0 or 1, by a hash of its name."""
    return hashlib.sha256(family.encode()).digest()[0] % 2


def summary(answers: Sequence[Answer]) -> dict[str, Any]:
    """Return the measures of all answers, each with its number of rows."""
    memory = [one for one in answers if "allocated_mib" in one]
    timed = [one for one in answers if "time" in one]
    left_out = Counter(one["left_out"].partition(":")[0] for one in answers if "left_out" in one)
    return {
        "rows": len(answers),
        "left_out": dict(left_out.most_common()),
        "allocated": {
            name: errors([one for one in memory if chosen(one)])
            for name, chosen in {
                "all": lambda _: True,
                "fp32": lambda one: one["precision"] == "fp32",
                "half precision": lambda one: one["precision"] != "fp32",
            }.items()
        },
        "interval": {
            "fp32": intervals([one for one in memory if one["precision"] == "fp32"], "fp32"),
            "half": intervals([one for one in memory if one["precision"] != "fp32"], "half"),
        },
        "oom": oom([one for one in answers if "ran" in one]),
        "time": {kind: times([one for one in timed if one["time"]["kind"] == kind])
                 for kind in dict.fromkeys(one["time"]["kind"] for one in timed)},
    }  # fmt: skip


def errors(memory: Sequence[Answer]) -> dict[str, float]:
    """Return bias, median, 90th percentile and worst of the relative errors, and the share within NEAR."""
    if not memory:
        return {"n": 0}
    signed = [one["allocated_mib"] / one["measured_mib"] - 1 for one in memory]
    sizes = np.abs(signed)
    return {
        "n": len(signed),
        "bias": statistics.median(signed),
        "median": float(np.median(sizes)),
        "p90": float(np.quantile(sizes, 0.9)),
        "within": float(np.mean(sizes <= NEAR)),
        "worst": max(signed, key=abs),
    }


def interval_of(memory: Sequence[Answer]) -> tuple[float, float] | None:
    """Return the interval of measured over forecast that holds a row of a further family with probability COVERED.

    Conformal prediction for grouped data (Lee, Barber and Willett, arXiv:2306.06342): rows of one family are not
    independent, so each family weighs the same, and the family to come weighs as much as each, with an error beyond all
    others. The score is the size of the logarithm, not one tail each side: 5 % of some thirty families is one family.

    None if there are too few families for an end that is finite, fewer than 9.
    """
    rows = Counter(one["family"] for one in memory)
    scores = [abs(math.log(one["measured_mib"] / one["allocated_mib"])) for one in memory]
    order = np.argsort(scores)
    weights = np.array([1 / rows[one["family"]] for one in memory])[order] / (len(rows) + 1)
    reached = np.flatnonzero(np.cumsum(weights) >= COVERED - 1e-9)
    if not len(reached):
        return None
    end = scores[order[reached[0]]]
    return math.exp(-end), math.exp(end)


def coverage(memory: Sequence[Answer], interval: tuple[float, float] | None) -> dict[str, Any]:
    """Return the share of rows inside an interval, and its mean over families, each of which weighs the same."""
    if not memory or interval is None:
        return {"n": 0}
    by_family: dict[str, list[bool]] = defaultdict(list)
    for one in memory:
        inside = interval[0] <= one["measured_mib"] / one["allocated_mib"] <= interval[1]
        by_family[one["family"]].append(inside)
    shares = [float(np.mean(inside)) for inside in by_family.values()]
    covered = float(np.mean([inside for family in by_family.values() for inside in family]))
    return {"n": len(memory), "covered": covered, "covered_families": float(np.mean(shares)), "interval": interval}


def calibrated(memory: Sequence[Answer], families: Collection[str]) -> dict[str, Any]:
    """Calibrate the interval on some families and judge it on the others."""
    ours, others = ([one for one in memory if (one["family"] in families) is same] for same in (True, False))
    return coverage(others, interval_of(ours))


def intervals(memory: Sequence[Answer], precision: str) -> dict[str, Any]:
    """Judge the shipped interval of a precision, and those calibrated on parts of the families on the others."""
    families = sorted({one["family"] for one in memory})
    found: dict[str, Any] = {
        "calibrated on all": {"families": len(families), "interval": interval_of(memory)},
        "shipped": coverage(memory, Terms.load().intervals[precision]),
    }
    for side in (0, 1):
        ours = [one for one in families if half(one) == side]
        found[f"calibrated on half {side}, judged on the other"] = calibrated(memory, ours)
    alone = [calibrated(memory, [other for other in families if other != one]) for one in families]
    if sum(one["n"] for one in alone):
        rows = sum(one["n"] * one["covered"] for one in alone) / len(memory)
        each = float(np.mean([one["covered_families"] for one in alone]))
        found["each family judged by the others"] = {"n": len(memory), "covered": rows, "covered_families": each}
    draw = random.Random(0)
    halves = [calibrated(memory, draw.sample(families, len(families) // 2)) for _ in range(SPLITS)]
    if halves := [one for one in halves if one["n"]]:
        spread = {name: _spread([one[name] for one in halves]) for name in ("covered", "covered_families")}
        found["random halves"] = {"splits": len(halves), **spread}
    return found


def _spread(shares: Sequence[float]) -> dict[str, float]:
    low, high = np.quantile(shares, (0.05, 0.95))
    return {"mean": float(np.mean(shares)), "low": float(low), "high": float(high)}


def oom(answers: Sequence[Answer]) -> dict[str, Any]:
    """Compare the forecasts with the largest batch that ran and the next one, which did not fit."""
    found: Counter[str] = Counter()
    for one in answers:
        ran, failed = one["ran"], one.get("failed")
        found["batches that ran"] += 1
        found["called too large with confidence"] += ran["low_mib"] > ran["usable_mib"]
        found["called too large if reserved memory decided"] += ran["reserved_mib"] > ran["usable_mib"]
        if failed:
            found["intervals"] += 1
            found["centre inside"] += ran["total_mib"] <= ran["usable_mib"] < failed["total_mib"]
            found["failed batches called fitting with confidence"] += failed["high_mib"] <= failed["usable_mib"]
            respected = ran["low_mib"] <= ran["usable_mib"] < failed["high_mib"]
            found["respected by the interval"] += respected
    return dict(found)


def fit_time(timed: Sequence[Answer]) -> np.ndarray:
    """Return the coefficients with the least relative error of the estimated seconds.

    None is below 0, and that of convolutions in groups is no less than that of the others.
    """
    from scipy.optimize import nnls

    sums = np.array([one["time"]["sums"] for one in timed], dtype=float)
    sums[:, 0] += sums[:, 1]  # so that the second coefficient is what groups take beyond the first
    measured = np.array([one["time"]["measured"] for one in timed])
    weights = np.ones(len(timed))
    for _ in range(20):  # reweighted towards the least absolute error, so that outliers count for little
        found, _ = nnls(sums / measured[:, None] * weights[:, None], weights)
        weights = 1 / np.sqrt(np.maximum(np.abs(sums @ found / measured - 1), 0.02))
    return np.array([found[0], found[0] + found[1], *found[2:]])


def times(timed: Sequence[Answer]) -> dict[str, Any]:
    """Judge coefficients calibrated on one half of the families on the other, and the shipped ones on all."""
    found: dict[str, Any] = {"n": len(timed)}
    for side in (0, 1):
        ours, others = ([one for one in timed if (half(one["family"]) == side) is same] for same in (True, False))
        if len(ours) > 5 and others:
            found[f"calibrated on half {side}, judged on the other"] = _time_errors(others, fit_time(ours))
    if len(timed) > 5:
        found["calibrated on all"] = _time_errors(timed, fit_time(timed))
    shipped = [calibration_of(one["time"]["gpu"]) for one in timed]
    factors = np.array([[one.arithmetic, one.grouped, one.memory, one.launch] for one in shipped])
    found["shipped"] = _time_errors(timed, factors, [one.deviation for one in shipped])
    return found


def _time_errors(
    timed: Sequence[Answer], factors: np.ndarray, deviations: Sequence[float] | None = None
) -> dict[str, Any]:
    sums = np.array([one["time"]["sums"] for one in timed], dtype=float)
    measured = np.array([one["time"]["measured"] for one in timed])
    ratios = (sums * factors).sum(1) / measured
    logs, sizes = np.log(measured / (ratios * measured)), np.abs(ratios - 1)
    found = {
        "n": len(timed),
        "median": float(np.median(sizes)),
        "p90": float(np.quantile(sizes, 0.9)),
        "bias": float(np.median(ratios) - 1),
        "deviation": float(np.quantile(np.abs(logs), 0.9) / 1.645),  # of a normal error with this 90 % interval
    }
    if deviations is None:
        return {**found, "factors": factors.tolist()}
    return {**found, "covered": float(np.mean(np.abs(logs) <= 1.645 * np.array(deviations)))}


# ---- the command


def rows_of(file: Path) -> list[Row]:
    """Read the measurements, families in turn, so that any number of them is a fair sample."""
    with file.open(encoding="utf-8", newline="") as stream:
        rows: list[Row] = list(csv.DictReader(stream))
    # A net's memory and its time are two answers, so that one can be had without the other.
    rows += [{**row, "source": "mmseg-forward"} for row in rows if row["source"] == "mmseg" and _has_forward_time(row)]
    random.Random(0).shuffle(rows)
    turns: Counter[str] = Counter()
    ordered = []
    for row in rows:
        turns[row["source"] + row["family"]] += 1
        ordered.append((turns[row["source"] + row["family"]], row))
    return [row for _, row in sorted(ordered, key=lambda pair: pair[0])]


def answers_of(
    rows: Sequence[Row], folder: Path, say: Callable[[str], None], *, only_kept: bool = False
) -> list[Answer]:
    """Return the answer of each row, from the folder if it is there; if only kept ones are asked for, no other."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for number, row in enumerate(rows, 1):
        file = folder / f"{hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:16]}.json"
        if only_kept and not file.exists():
            continue
        if not file.exists():
            one = answer(row)
            file.with_suffix(".part").write_text(json.dumps(one), encoding="utf-8")
            file.with_suffix(".part").rename(file)
            say(f"{number} of {len(rows)}: {one['key']}: {one.get('left_out', 'forecast')}")
        found.append(json.loads(file.read_text(encoding="utf-8")))
    return found


def figure(answers: Sequence[Answer], file: Path) -> None:
    """Draw forecast over measured allocated memory by family."""
    from matplotlib.figure import Figure

    memory = [one for one in answers if "allocated_mib" in one]
    families = sorted({one["family"] for one in memory})
    drawn = Figure(figsize=(7, 0.22 * len(families) + 1.2))
    axes = drawn.add_subplot()
    for one in memory:
        error = 100 * (one["allocated_mib"] / one["measured_mib"] - 1)
        axes.plot(error, families.index(one["family"]), "o", ms=3, alpha=0.5, color="C0")
    axes.set_yticks(range(len(families)), families, fontsize=7)
    axes.axvspan(-100 * NEAR, 100 * NEAR, color="0.92", zorder=0)
    axes.axvline(0, color="0.5", lw=0.8)
    axes.set_xlabel(f"forecast against measured allocated peak, % ({len(memory)} rows; grey: within 8 %)")
    drawn.tight_layout()
    drawn.savefig(file, dpi=110)


def table(found: Mapping[str, Any]) -> str:
    """Return the measures as lines of text."""
    lines = [f"{found['rows']} rows; left out: {found['left_out'] or 'none'}"]
    for name, one in found["allocated"].items():
        if one["n"]:
            lines.append(
                f"allocated, {name}: n {one['n']}, bias {one['bias']:+.1%}, median error {one['median']:.2%}, p90 "
                f"{one['p90']:.1%}, within 8 % {one['within']:.1%}, worst {one['worst']:+.0%}"
            )
    for precision, ways in found["interval"].items():
        for name, one in ways.items():
            lines.append(f"90 % interval, {precision}, {name}: {json.dumps(one)}")
    lines.append(f"out of memory: {found['oom']}")
    for kind, ways in found["time"].items():
        for name, one in ways.items():
            if isinstance(one, dict):
                lines.append(f"time, {kind}, {name}: {json.dumps(one)}")
    return "\n".join(lines)


def main(words: Sequence[str]) -> int:
    """Forecast the rows, compare, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measurements", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, help="by default gpu_published.json of today; with --again, the newest")
    parser.add_argument("--limit", type=int, default=0, help="forecast so many rows at most, families in turn")
    parser.add_argument("--only", default="", help="only rows of this source")
    parser.add_argument("--fresh", action="store_true", help="forget the answers that are kept")
    parser.add_argument("--kept", action="store_true", help="compare the answers that are kept, forecast no others")
    parser.add_argument("--again", action="store_true", help="compare the rows of --out once more, forecast none")
    asked = parser.parse_args(words)
    out = asked.out or (newest_file if asked.again else todays_file)("gpu_published.json")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    rows = [row for row in rows_of(asked.measurements) if asked.only in ("", row["source"])]
    if asked.fresh:
        for file in KEPT.glob("*.json"):
            file.unlink()
    if asked.again:
        content = json.loads(out.read_text(encoding="utf-8"))
        content["summary"] = found = summary(content["rows"])
        out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(table(found))
        return 0
    chosen, to_stderr = rows[: asked.limit or None], lambda line: print(line, file=sys.stderr)
    answers = answers_of(chosen, KEPT, to_stderr, only_kept=asked.kept)
    found = summary(answers)
    slim = [{name: value for name, value in one.items() if name != "kinds"} for one in answers]
    content = {"machine": machine(), "measurements": asked.measurements.name, "of_rows": len(rows), "summary": found}
    content["rows"] = slim
    out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
