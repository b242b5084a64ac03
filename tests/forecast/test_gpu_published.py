"""The benchmark of published measurements: a sample of its rows, its statistics, and the rows that it leaves out."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks import gpu_published as published
from benchmarks.gpu_published import (
    DATA,
    answer,
    answers_of,
    calibrated,
    coverage,
    errors,
    fit_time,
    interval_of,
    intervals,
    oom,
    rows_of,
)

ROWS = {row["config"]: row for row in rows_of(DATA) if row["source"] in ("mmseg", "timm-train")}
BENCH = Path(__file__).resolve().parents[2] / ".bench"
SAMPLE = (
    "fcn_r50-d8_4xb2-40k_cityscapes-512x1024",
    "upernet_r50_4xb2-40k_cityscapes-512x1024",
    "danet_r50-d8_4xb2-40k_cityscapes-512x1024",
    "mobilenet-v2-d8_pspnet_4xb4-160k_ade20k-512x512",
    "isanet_r50-d8_4xb2-40k_cityscapes-512x1024",
    "bisenetv1_r18-d32_4xb4-160k_cityscapes-1024x1024",
    "gcnet_r50-d8_4xb2-40k_cityscapes-512x1024",
    "pspnet_r101-d8_4xb2-amp-80k_cityscapes-512x1024",
)
NETS = ("nhwc mobilenetv3_small_100", "nchw mobilenetv3_small_100", "nchw gluon_resnet50_v1d", "nchw vgg13")
TIMM = tuple("amp-{}-pt112-cu113-rtx3090/{}".format(*net.split()) for net in NETS)


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(BENCH)])
    if importlib.util.find_spec("mmseg") is None:
        pytest.skip("needs mmsegmentation in .bench: pip install --no-deps --target .bench -r requirements-bench.txt")


@pytest.mark.parametrize("config", SAMPLE)
def test_published_peaks_are_forecast_within_two_percent(config: str, packages: None) -> None:
    found = answer(ROWS[config])
    assert "left_out" not in found, found
    assert found["allocated_mib"] == pytest.approx(found["measured_mib"], rel=0.02)


@pytest.mark.parametrize("config", TIMM)
def test_published_batches_that_ran_are_not_called_too_large(config: str) -> None:
    found = answer(ROWS[config])
    assert "left_out" not in found, found
    assert found["ran"]["low_mib"] <= found["ran"]["usable_mib"]
    assert 0.3 < found["time"]["measured"] / np.sum(found["time"]["sums"][:3]) < 5


def test_a_row_that_cannot_be_forecast_says_why(tmp_path: Path) -> None:
    strange = {**ROWS[TIMM[0]], "source": "elsewhere"}
    gone = {**ROWS[TIMM[0]], "model": "no_such_net"}
    swapped = ROWS["emanet_r50-d8_4xb2-80k_cityscapes-769x769"]
    said: list[str] = []
    found = answers_of([strange, gone, swapped], tmp_path, said.append)
    assert "source elsewhere: expected mmseg" in found[0]["left_out"]
    assert "net cannot be built" in found[1]["left_out"]
    assert "swapped" in found[2]["left_out"]
    assert len(said) == 3
    assert answers_of([strange, gone, swapped], tmp_path, pytest.fail) == found, "from the folder"
    assert sum(published.summary(found)["left_out"].values()) == 3


def memory(family: str, ratio: float) -> dict[str, Any]:
    return {"family": family, "precision": "fp32", "measured_mib": 1000 * ratio, "allocated_mib": 1000.0}


def test_errors_and_intervals() -> None:
    rows = [memory("a", ratio) for ratio in (0.8, 1.0, 1.0, 1.0, 1.25)]
    found = errors(rows)
    assert (found["n"], found["median"]) == (5, 0)
    assert found["within"] == 0.6
    assert found["worst"] == pytest.approx(0.25)
    covered = coverage([*rows, memory("b", 1.0)], (0.9, 1.1))
    assert (covered["covered"], covered["covered_families"]) == pytest.approx((4 / 6, 0.8))
    assert errors([]) == {"n": 0}


def test_each_family_weighs_the_same_in_an_interval_and_one_weighs_for_the_family_to_come() -> None:
    rows = [memory(str(number), 1 + number / 100) for number in range(1, 20)]
    assert interval_of(rows) == pytest.approx((1 / 1.18, 1.18)), "18 of 20, of which one is to come"
    assert interval_of([*rows, *(memory("1", 1.01) for _ in range(500))]) == pytest.approx((1 / 1.18, 1.18))
    assert interval_of(rows[:8]) is None, "too few families"


def test_an_interval_covers_families_that_it_was_not_calibrated_on() -> None:
    rng = np.random.default_rng(0)
    rows = [memory(str(f), float(r)) for f in range(60) for r in rng.normal(rng.normal(1, 0.02), 0.005, 1 + f % 20)]
    found = intervals(rows, "fp32")
    assert found["each family judged by the others"]["covered_families"] == pytest.approx(0.9, abs=0.03)
    assert found["random halves"]["covered_families"]["mean"] == pytest.approx(0.91, abs=0.03)
    wide = [memory(f"wide {one['family']}", 1 + 10 * (one["measured_mib"] / 1000 - 1)) for one in rows]
    assert calibrated([*rows, *wide], {one["family"] for one in rows})["covered"] < 0.4, "the others are worse"


def test_coefficients_of_the_time_are_found_again() -> None:
    rng = np.random.default_rng(1)
    truth = np.array([1.5, 3.0, 1.2, 1e-5])
    sums = rng.uniform(0.01, 1, (60, 4)) * [1, 0.3, 1, 1e4]
    timed = [{"time": {"sums": list(one), "measured": float(one @ truth), "gpu": "RTX 3090"}} for one in sums]
    assert fit_time(timed) == pytest.approx(truth, rel=0.01)


def test_out_of_memory_is_counted_by_centre_and_by_interval() -> None:
    def held(total: float) -> dict[str, float]:
        return {"total_mib": total, "low_mib": 0.9 * total, "high_mib": 1.1 * total, "reserved_mib": total,
                "usable_mib": 100.0}  # fmt: skip

    found = oom([{"ran": held(80), "failed": held(120)}, {"ran": held(105), "failed": held(200)}, {"ran": held(50)},
                 {"ran": held(50), "failed": held(60)}])  # fmt: skip
    assert found["intervals"] == 3
    assert found["centre inside"] == 1
    assert found["respected by the interval"] == 2
    assert found["failed batches called fitting with confidence"] == 1
    assert found["called too large with confidence"] == 0
