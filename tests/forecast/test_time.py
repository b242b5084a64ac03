"""The forecast of time and cost from runs on record: exact where nothing changed, honest about what was scaled."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import pytest

from roofscale.compute import Compute
from roofscale.config import RunConfig
from roofscale.errors import ConfigError
from roofscale.forecast import run_time as t
from roofscale.forecast.roofline_model import StepEstimate
from roofscale.forecast.run_time import forecast_time, training_samples, validated_samples
from roofscale.forecast.time_scaling import (
    SD_PER_DOUBLING,
    WORKERS_OR_NONE,
    Bound,
    SampleTime,
    TimingRecord,
    deviation,
    run_to_run_variance,
)
from roofscale.stats.intervals import RUN_SPREAD
from roofscale.train.loop import epoch_plans

HERE = Compute("local", 2, 8.0)
PAID = Compute("ml.m5.xlarge", 4, 16.0, usd_per_hour=0.36)
A10G = Compute("ml.g5.xlarge", 4, 16.0, gpu="A10G", gpu_count=1, gpu_memory_gib=22.0, usd_per_hour=1.44)


def config(**knobs):
    return RunConfig().with_overrides(knobs)


def timed(sample=0.5, validated=0.2, start=6.0, each_pass=3.0, run_id="r", noise=1.0, more=(), **knobs):
    """A run whose time is exactly its parts."""
    ran = config(**knobs)
    samples, count = training_samples(ran), validated_samples(ran)
    cached = 3 * ran.batch_size * sample
    ahead = validated * ran.val_samples * len(ran.datasets)
    seconds = start + each_pass * len(epoch_plans(ran)) + sample * samples + validated * count + cached
    metrics = {
        "speed/seconds_per_sample": sample,
        "speed/cached_seconds_per_sample": sample,
        "speed/run_seconds": seconds * noise,
        "speed/setup_seconds": start + ahead,
        "speed/seconds_per_validated": validated,
        "train/validated_samples": count,
        "train/samples": samples,
        "train/steps": samples / ran.batch_size,
        "speed/pace_error": 0.0,
        **dict(more),
    }
    return TimingRecord(ran, metrics, run_id, precision="bf16", threads=2)


def test_the_same_run_takes_the_same_time() -> None:
    run = timed(max_samples=50)
    found = forecast_time(run.config, HERE, [run])
    assert found.run_seconds.centre == pytest.approx(run.metrics["speed/run_seconds"])
    assert found.epoch_seconds.centre == pytest.approx(0.5 * 50)
    assert (found.usd, found.epoch_usd, found.sources, found.scaled) == (None, None, ("r",), ())
    assert found.run_seconds.low < found.run_seconds.centre < found.run_seconds.high


@pytest.mark.parametrize("schedule", ["sequential", "mixed"])
def test_each_part_goes_with_what_it_hangs_on(schedule: str) -> None:
    asked = config(max_samples=100, epochs=3, datasets="rid,airs", schedule=schedule, val_samples=10)
    found = forecast_time(asked, HERE, [timed(max_samples=50, datasets="rid,airs")])
    rounds = sum(len(one.datasets_so_far) for one in epoch_plans(asked))
    assert found.parts.start == pytest.approx(6)
    assert found.parts.passes == pytest.approx(3 * len(epoch_plans(asked)))
    assert found.parts.training == pytest.approx(0.5 * 100 * 3 * 2)
    assert found.parts.validation == pytest.approx(0.2 * 10 * (2 + rounds))
    assert found.epoch_seconds.centre == pytest.approx(0.5 * (200 if schedule == "mixed" else 100))


@pytest.mark.parametrize("schedule", ["sequential", "mixed"])
def test_validations_are_counted_as_the_loop_makes_them(schedule: str) -> None:
    ran = config(datasets="rid,roofline,airs", epochs=2, schedule=schedule, val_samples=7)
    assert validated_samples(ran) == 7 * (3 + sum(len(one.datasets_so_far) for one in epoch_plans(ran)))


def test_all_samples_are_as_many_as_there_are() -> None:
    asked = config(max_samples=0, val_samples=0, datasets="rid,airs", epochs=2)
    amounts = {"rid": (1000, 100), "airs": (5000, 30)}
    assert training_samples(asked, amounts) == 2 * 6000
    assert validated_samples(asked, amounts) == 130 + 2 * (100 + 130)
    assert validated_samples(asked.with_overrides({"val_samples": 40}), amounts) == 70 + 2 * (40 + 70)
    with pytest.raises(ConfigError, match="max_samples=0: it is not known how many samples airs has"):
        training_samples(asked, {"rid": (1000, 100)})
    with pytest.raises(ConfigError, match="val_samples=0"):
        validated_samples(asked)


def test_a_larger_image_takes_its_area_longer_and_money_is_by_the_hour() -> None:
    small = timed(max_samples=50, image_size=256)
    found = forecast_time(config(max_samples=50, image_size=512), PAID, [small])
    fixed = 6 + 3
    assert found.run_seconds.centre == pytest.approx(fixed + 4 * (small.metrics["speed/run_seconds"] - fixed))
    assert found.usd.centre == pytest.approx(found.run_seconds.centre * 1e-4)
    assert found.usd.high == pytest.approx(found.run_seconds.high * 1e-4)
    assert found.scaled == ("image_size 256 to 512", "compute local to ml.m5.xlarge")[: len(found.scaled)]


def test_the_nearest_runs_count_together_and_another_model_does_not() -> None:
    runs = [timed(sample=9, run_id="other batch", batch_size=8), timed(0.4, run_id="a", batch_size=4),
            timed(0.9, run_id="b", batch_size=4, seed=1),
            timed(sample=99, run_id="other model", encoder="resnet18", batch_size=4)]  # fmt: skip
    found = forecast_time(config(batch_size=4), HERE, runs)
    assert found.sources == ("a", "b")
    assert found.seconds_per_sample == pytest.approx(0.6), "the geometric mean"
    assert forecast_time(config(encoder="resnet50"), HERE, runs) is None
    assert forecast_time(config(precision="fp32"), HERE, runs) is None
    assert forecast_time(config(batch_size=4, precision="bf16"), HERE, runs), "which is what auto ran in"
    assert forecast_time(config(), HERE, []) is None


def test_a_run_on_a_busy_machine_counts_only_where_there_is_no_other() -> None:
    busy = timed(5.0, run_id="busy", more={"cpu/others": 0.4})
    assert forecast_time(config(), HERE, [busy]).sources == ("busy",)
    assert forecast_time(config(), HERE, [busy, timed(run_id="quiet", batch_size=8)]).sources == ("quiet",)


def test_what_a_cpu_took_says_nothing_of_a_gpu() -> None:
    on_cpu = timed(run_id="cpu", compute="ml.m5.xlarge")
    forced = timed(run_id="forced", compute="ml.g5.xlarge")  # on a machine without the GPU
    on_gpu = dataclasses.replace(on_cpu, run_id="gpu", on_gpu=True, gpu="A10G")
    other = dataclasses.replace(on_cpu, run_id="other", on_gpu=True, gpu="T4")
    asked = config(compute="ml.g5.xlarge")
    assert forecast_time(asked, A10G, [on_cpu, forced, other]) is None
    assert forecast_time(asked, A10G, [on_cpu, other, on_gpu]).sources == ("gpu",)


def test_a_gpu_without_runs_has_its_estimated_step_and_its_error() -> None:
    step = StepEstimate(2.0, 0.5, 1e12, 1e12, 0.5, "A10G", "bf16", 8, deviation=0.3, evidence="rows")
    asked = config(compute="ml.g5.xlarge", batch_size=8, max_samples=800, val_samples=80)
    found = forecast_time(asked, A10G, [timed(max_samples=50)], estimate=step)
    assert found.estimate is step
    assert found.parts.training == pytest.approx(2.0 * 100)
    assert found.parts.validation == pytest.approx(0.5 * 20)
    assert found.parts.fixed == pytest.approx(6 + 3), "as the runs on record took"
    assert found.epoch_seconds.high / found.epoch_seconds.centre == pytest.approx(math.exp(1.645 * 0.3), rel=1e-3)
    assert found.bound is Bound.UNKNOWN
    assert found.usd.centre == pytest.approx(found.run_seconds.centre * 4e-4)
    assert forecast_time(asked, A10G, [], estimate=step).parts.fixed == 0


def test_a_run_that_died_or_stopped_early_says_nothing_of_time() -> None:
    paced = timed()
    assert forecast_time(config(), HERE, [TimingRecord(config(), {"speed/run_seconds": 3.0}, "died")]) is None
    paced = dataclasses.replace(paced, config=config(stop_precision=0.05))
    assert forecast_time(config(), HERE, [paced]) is None


@pytest.mark.parametrize(("workers", "stall", "wait", "asked", "seconds", "bound"), [
    (2, 0.5, 0.5, 2, 1.0, Bound.LOADER),  # as it was
    (2, 0.5, 0.5, 4, 0.5, Bound.MODEL),  # 2 s a sample over four processes is as quick as the model
    (2, 0.5, 0.5, 1, 2.0, Bound.LOADER),
    (2, 0.05, 0.05, 4, 1.0, Bound.MODEL),
    (2, 0.5, 0.0, 4, 1.0, Bound.MODEL),  # nobody waited: a busy machine, not the loader
    (0, 0.4, 0.4, 0, 1.0, Bound.LOADER),
    (0, 0.4, 0.4, 1, 0.6, Bound.MODEL),
    (0, 0.8, 0.8, 2, 0.4, Bound.LOADER),
])  # fmt: skip
def test_the_loaders_part_goes_with_the_workers(workers, stall, wait, asked, seconds, bound) -> None:
    run = timed(1.0, num_workers=workers, more={"speed/data_stall": stall, "speed/loader_wait": wait})
    found, what = SampleTime.of(run).with_workers(asked)
    assert found == pytest.approx(seconds)
    assert what is bound


def test_the_further_it_is_scaled_the_wider_the_interval() -> None:
    run = timed(max_samples=50)

    def reach(**knobs: object) -> float:
        found = forecast_time(config(max_samples=50, **knobs), HERE, [run], threads=int(str(knobs.get("threads", 2))))
        return math.log(found.epoch_seconds.high / found.epoch_seconds.centre)

    assert reach() < reach(num_workers=4) < reach(batch_size=4) < reach(batch_size=16) < reach(image_size=1024)
    assert deviation(config(batch_size=8), 2, run) == pytest.approx(SD_PER_DOUBLING["batch_size"] * math.sqrt(2))
    assert deviation(config(num_workers=0), 2, run) == WORKERS_OR_NONE
    four = forecast_time(config(max_samples=50), HERE, [run], threads=4)
    assert four.seconds_per_sample == pytest.approx(0.5 / math.sqrt(2)), "between no gain and twice as fast"
    assert four.epoch_seconds.low < 0.5 * 50 / 2 < 0.5 * 50 < four.epoch_seconds.high
    assert four.scaled == ("threads 2 to 4",)


@pytest.mark.parametrize(("knob", "value", "spread", "words"), [
    ("ema", 0.99, 0.0503, "ema 0 to 0.99"),
    ("prefetch_factor", 8, 0.08 * math.sqrt(2), "prefetch_factor 2 to 8"),
    ("roof_sampling", 0.3, 0.05, "roof_sampling 0 to 0.3"),
    ("tile_cache_gib", 200.0, -math.log(1 - 0.48) / math.sqrt(2), "tile_cache_gib 0 to 200"),
])  # fmt: skip
def test_a_knob_of_unknown_effect_widens_the_interval_of_a_run_without_it(knob, value, spread, words) -> None:
    run = timed(max_samples=50)
    changed = config(max_samples=50, **{knob: value})
    without, with_it = (forecast_time(one, HERE, [run]) for one in (run.config, changed))
    assert deviation(changed, 2, run) == pytest.approx(spread, rel=0.01)
    assert with_it.run_seconds.centre == pytest.approx(without.run_seconds.centre)
    assert with_it.run_seconds.low < without.run_seconds.low < without.run_seconds.high < with_it.run_seconds.high
    assert with_it.scaled == (words,)


def test_a_switch_whose_effect_nobody_measured_forbids_a_forecast() -> None:
    assert forecast_time(config(max_samples=50, compile=True), HERE, [timed(max_samples=50)]) is None


def test_the_spread_between_runs_is_pooled_with_what_was_known_before() -> None:
    assert run_to_run_variance([timed(0.5), timed(0.6, batch_size=4)]) == pytest.approx((RUN_SPREAD**2, 2))
    runs = [timed(0.5), timed(0.5, seed=1, max_samples=20), timed(0.55, epochs=2)]
    logs = np.log([0.5, 0.5, 0.55])
    expected = (2 * RUN_SPREAD**2 + float(((logs - logs.mean()) ** 2).sum())) / 4
    assert run_to_run_variance(runs) == pytest.approx((expected, 4))


@pytest.mark.parametrize("known", [1, 3, 10])
def test_the_interval_holds_nine_in_ten_runs_of_the_same_config(known: int) -> None:
    """Runs whose pace differs by RUN_SPREAD, whose fixed part does by FIXED_SPREAD, and whose steps are noisy."""
    random = np.random.default_rng(known)
    held = {"run": 0, "epoch": 0}
    for _ in range(400):
        runs = [simulated(random) for _ in range(known + 1)]
        found = forecast_time(runs[0].config, HERE, runs[1:])
        for name, interval, metric in (
            ("run", found.run_seconds, runs[0].metrics["speed/run_seconds"]),
            ("epoch", found.epoch_seconds, 50 * runs[0].metrics["speed/seconds_per_sample"]),
        ):
            held[name] += interval.low <= metric <= interval.high
    assert 0.87 * 400 <= held["epoch"] <= 0.995 * 400
    assert 0.87 * 400 <= held["run"] <= 0.995 * 400


def simulated(random: np.random.Generator) -> TimingRecord:
    noise = 0.1 / math.sqrt(25)
    pace = 0.5 * math.exp(random.normal(0, RUN_SPREAD) + random.normal(0, noise))
    fixed = math.exp(random.normal(0, t.FIXED_SPREAD))
    more: Mapping[str, float] = {"speed/pace_error": noise}
    return timed(pace, 0.2 * pace / 0.5, 6 * fixed, 3 * fixed, max_samples=50, more=more)


def test_a_sum_errs_together() -> None:
    found = forecast_time(config(max_samples=50), HERE, [timed(max_samples=50)])
    both = t.sum_forecasts([found.run_seconds, found.run_seconds])
    assert (both.centre, both.low, both.high) == pytest.approx(
        (2 * found.run_seconds.centre, 2 * found.run_seconds.low, 2 * found.run_seconds.high)
    )


def test_an_older_run_still_foretells_itself() -> None:
    """Before runs said what validating took, all that was left after training counted as that."""
    run = timed(max_samples=50, batch_size=2)
    old = {k: v for k, v in run.metrics.items() if k not in ("speed/seconds_per_validated", "train/validated_samples")}
    found = forecast_time(run.config, HERE, [dataclasses.replace(run, metrics=old)])
    assert found.run_seconds.centre == pytest.approx(run.metrics["speed/run_seconds"])
