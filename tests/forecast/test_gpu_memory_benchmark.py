"""The benchmark that no GPU has run yet: which configurations it takes, its errors, and that it refuses here."""

import pytest
from benchmarks import gpu_memory
from benchmarks.gpu_memory import Cell, configurations, error, verdict


def cell(allocated: float, reserved: float = 1000.0, context: float = 500.0) -> Cell:
    """One whose forecasts are 1000 MiB."""
    return Cell({}, allocated, reserved, context, forecast_allocated=1000.0, forecast_reserved=1000.0)


def test_the_configurations_are_as_many_and_as_different_as_the_target_asks() -> None:
    configs = configurations()
    assert len({config.fingerprint for config in configs}) == len(configs) >= 24
    assert len({config.encoder for config in configs}) == 3
    assert len({config.decoder for config in configs}) == 2
    assert {config.image_size for config in configs} == {512, 1024}
    assert {config.precision for config in configs} == {"bf16", "fp32"}


def test_an_error_is_a_share_of_what_was_measured_and_below_zero_where_the_forecast_was_too_low() -> None:
    assert error(cell(1250.0)) == pytest.approx(-0.2)
    assert error(cell(1250.0, reserved=800.0), "reserved") == pytest.approx(0.25)
    found = verdict([cell(1250.0), cell(1000.0), cell(800.0)])
    assert found["allocated_median_error"] == pytest.approx(0.2)
    assert found["allocated_lowest_error"] == pytest.approx(-0.2)
    assert found["allocated_highest_error"] == pytest.approx(0.25)
    assert found["context_mib"] == 500


def test_without_a_gpu_it_measures_nothing_and_says_why(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(gpu_memory.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu_memory, "cell", lambda *_: pytest.fail("it measured"))
    assert gpu_memory.main() == 2
    said = capsys.readouterr()
    assert "CUDA GPU" in said.err
    assert said.out == ""
