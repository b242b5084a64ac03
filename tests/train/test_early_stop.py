"""When a run that only measures its pace ends."""

import dataclasses
import statistics
from pathlib import Path

import numpy as np
import pytest

from roofscale.config import RunConfig
from roofscale.data.sources import open_sources
from roofscale.data.synthetic import GenerateSpec, generate
from roofscale.train import early_stop
from roofscale.train.loop import TrainingLoop

ASKED = RunConfig(batch_size=4, num_workers=0, stop_precision=0.05)


def steps(count: int, noise: float = 0.0, seed: int = 0) -> list[tuple[float, float]]:
    """Timed steps of four samples and about a second each, with lognormal noise."""
    draws = np.random.default_rng(seed).normal(0.0, noise, count)
    return [(4.0, float(np.exp(draw))) for draw in draws]


def test_a_steady_pace_is_known_after_the_fewest_steps_and_not_before() -> None:
    assert not early_stop.stop_reason(ASKED, steps(early_stop.LEAST_STEPS - 1))
    assert "4 samples/s, known to within 5%" in early_stop.stop_reason(ASKED, steps(early_stop.LEAST_STEPS))


def test_a_noisy_pace_takes_more_steps() -> None:
    def needed(noise: float) -> float:
        """The mean of several series, as one may seem steady by chance."""
        series = [steps(500, noise, seed) for seed in range(10)]
        return statistics.fmean(next(n for n in range(501) if early_stop.stop_reason(ASKED, one[:n])) for one in series)

    assert needed(0.0) < needed(0.10) < needed(0.25)


def test_every_loader_process_has_had_its_turns() -> None:
    workers = dataclasses.replace(ASKED, num_workers=6)
    assert not early_stop.stop_reason(workers, steps(11))
    assert early_stop.stop_reason(workers, steps(12))


def test_a_pace_that_is_certainly_too_slow_ends_before_it_is_known() -> None:
    noisy = steps(6, noise=0.2)
    assert not early_stop.stop_reason(ASKED, noisy)
    assert not early_stop.stop_reason(dataclasses.replace(ASKED, stop_below=4.05), noisy)  # may well be
    assert "certainly below 40" in early_stop.stop_reason(dataclasses.replace(ASKED, stop_below=40.0), noisy)


def test_a_run_that_is_to_train_never_has_enough() -> None:
    assert not early_stop.stop_reason(dataclasses.replace(ASKED, stop_precision=0.0, stop_below=40.0), steps(100))


@pytest.mark.parametrize(("precision", "least", "most"), [(1.0, 5, 5), (1e-9, 7, 7)])
def test_a_run_ends_by_it_without_what_a_training_ends_with(
    tmp_path: Path, precision: float, least: int, most: int
) -> None:
    generate(tmp_path / "data", GenerateSpec(datasets=("rid",), train=14, val=2, test=2, image_px=64))
    config = RunConfig(encoder="resnet18", image_size=64, batch_size=2, num_workers=0, max_samples=14, val_samples=2,
                       stop_precision=precision, threads=1)  # fmt: skip
    heard: list[str] = []
    run = TrainingLoop(
        config, open_sources(config, tmp_path / "data"), tmp_path, lambda event, _: heard.append(event), bool
    )
    said = run.fit()
    assert least <= run.trainer.progress.step <= most
    assert said.startswith(f"{run.trainer.progress.step} steps: ")
    assert heard.count("validation") == 1  # before training
    assert "metrics" not in heard
    assert not list(tmp_path.glob("*.pt"))
