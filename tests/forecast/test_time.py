"""The forecast of time and cost from runs on record: exact where nothing changed, scaled where something did."""

import pytest

from roofscale.compute import Compute
from roofscale.config import RunConfig
from roofscale.forecast.time import Timed, forecast_time, validated_samples
from roofscale.train.loop import passes

HERE = Compute("local", 2, 8.0)
PAID = Compute("ml.m5.xlarge", 4, 16.0, usd_per_hour=0.36)


def config(**knobs):
    return RunConfig().with_overrides(knobs)


def timed(sample=0.5, validated=0.2, start=3.0, run_id="r", **knobs):
    """A run whose time is exactly start, training and validation."""
    ran = config(**knobs)
    samples = ran.max_samples * ran.epochs * len(ran.datasets)
    seconds = start + sample * samples + validated * validated_samples(ran)
    metrics = {"speed/seconds_per_sample": sample, "speed/run_seconds": seconds, "train/samples": samples,
               "speed/start_up_seconds": start}  # fmt: skip
    return Timed(ran, metrics, run_id)


def test_the_same_run_takes_the_same_time() -> None:
    run = timed(max_samples=50)
    found = forecast_time(run.config, HERE, [run])
    assert found.seconds == pytest.approx(run.metrics["speed/run_seconds"])
    assert (found.usd, found.source, found.scaled) == (None, "r", False)


def test_samples_epochs_and_data_sets_count() -> None:
    found = forecast_time(config(max_samples=100, epochs=3, datasets="rid,airs"), HERE, [timed(max_samples=50)])
    assert found.seconds == pytest.approx(3 + 0.5 * 100 * 3 * 2 + 0.2 * 40 * (2 + 3 * (1 + 2)))


@pytest.mark.parametrize("schedule", ["sequential", "mixed"])
def test_validations_are_counted_as_the_loop_makes_them(schedule) -> None:
    ran = config(datasets="rid,roofline,airs", epochs=2, schedule=schedule, val_samples=7)
    assert validated_samples(ran) == 7 * (3 + sum(len(one.seen) for one in passes(ran)))


def test_a_larger_image_takes_its_area_longer_and_money_is_by_the_hour() -> None:
    small = timed(max_samples=50, image_size=256)
    found = forecast_time(config(max_samples=50, image_size=512), PAID, [small])
    assert found.seconds == pytest.approx(3 + 4 * (small.metrics["speed/run_seconds"] - 3))
    assert found.usd == pytest.approx(found.seconds * 1e-4)
    assert found.scaled


def test_the_most_similar_run_counts_and_another_model_does_not() -> None:
    runs = [timed(sample=9, run_id="other batch", batch_size=8), timed(run_id="alike", batch_size=4),
            timed(sample=99, run_id="other model", encoder="resnet18", batch_size=4)]  # fmt: skip
    assert forecast_time(config(batch_size=4), HERE, runs).source == "alike"
    assert forecast_time(config(encoder="resnet50"), HERE, runs) is None
    assert forecast_time(config(), HERE, []) is None


def test_a_cpu_says_nothing_of_a_gpu() -> None:
    gpu = Compute("ml.g5.xlarge", 4, 16.0, gpu="A10G", gpu_count=1, gpu_memory_gib=22.0, usd_per_hour=1.4)
    on_cpu = timed(run_id="cpu", compute="ml.m5.xlarge")
    on_gpu = Timed(on_cpu.config, on_cpu.metrics, "gpu", on_gpu=True)
    assert forecast_time(config(compute="ml.g5.xlarge"), gpu, [on_cpu]) is None
    assert forecast_time(config(compute="ml.g5.xlarge"), gpu, [on_cpu, on_gpu]).source == "gpu"


def test_a_run_that_died_says_nothing_of_time() -> None:
    assert forecast_time(config(), HERE, [Timed(config(), {"speed/run_seconds": 3.0}, "died")]) is None
