"""The data stall forecast of phase 5 from a sample's cost: cores and pace at their worst, and phase 5's settings."""

import pytest
from benchmarks import gpu_table, measure, sample_cost
from benchmarks.measure import Result

from roofscale.phases.phase_file import load_phase


def stall(instance: str, ms: list[float], monkeypatch: pytest.MonkeyPatch) -> Result:
    """On a GPU that is forecast to take 25 samples/s, 50 at most."""
    monkeypatch.setattr(sample_cost, "_wanted", lambda _: (25.0, 50.0))
    return sample_cost._stall(instance, "tiles", ms)


def test_four_vcpus_are_one_core_beside_the_training_process(monkeypatch: pytest.MonkeyPatch) -> None:
    found = stall("ml.g5.xlarge", [25.0, 20.0, 40.0], monkeypatch)
    assert found.value == pytest.approx(0.2)  # 40 of 50 samples/s
    assert found.spread == pytest.approx((0.0, 0.5))
    assert found.verdict.startswith("missed")
    assert "on 1 to 3 cores supply 40 to 120 samples/s of the 25 (at most 50)" in found.note
    assert "at 25 the stall is 0%" in found.note


def test_eight_vcpus_have_a_core_for_three_of_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    found = stall("ml.g5.2xlarge", [150.0], monkeypatch)
    assert found.value == pytest.approx(1 - 20 / 50)
    assert "at 25 the stall is 20%, or 0% with 4 cores" in found.note


def test_a_loader_as_fast_as_the_gpu_stalls_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = stall("ml.g5.2xlarge", [60.0], monkeypatch)
    assert (found.value, found.verdict) == (0.0, "met")


def test_what_is_measured_is_phase_5s_last_step() -> None:
    _, config = load_phase(measure.ROOT / "experiments" / "phase5.yaml").resolve()[-1]
    asked = {"image_size": config.image_size, "batch_size": config.batch_size, "num_workers": config.num_workers}
    assert asked == gpu_table.ON_A_GPU
    assert list(asked.values()) == [sample_cost.SIDE, sample_cost.BATCH, sample_cost.WORKERS]
    assert config.compute in sample_cost.INSTANCES
