"""The benchmark that no GPU has run yet: which configurations it takes, how it calibrates, and that it refuses here."""

import itertools

import pytest
from benchmarks import gpu_memory
from benchmarks.gpu_memory import WORKSPACES_MIB, Cell, calibrate, configurations, error, halves


def cell(reserved: float, context: float = 500.0, without: float = 1000.0) -> Cell:
    """One whose forecast without workspace is ``without``."""
    foreseen = {f"{mib:g}": without + mib for mib in WORKSPACES_MIB}
    return Cell({}, allocated=0.0, reserved=reserved, context=context, foreseen_allocated=0.0,
                foreseen_reserved=foreseen)  # fmt: skip


def test_the_configurations_are_as_many_and_as_different_as_the_target_asks() -> None:
    configs = configurations()
    assert len({config.fingerprint for config in configs}) == len(configs) >= 24
    for half in (configs, *halves(configs)):
        assert len({config.encoder for config in half}) == 3
        assert len({config.decoder for config in half}) == 2
        assert {config.image_size for config in half} == {512, 1024}
        assert {config.precision for config in half} == {"bf16", "fp32"}
        assert len({config.batch_size for config in half}) >= 2


def test_no_configuration_judges_what_it_has_calibrated() -> None:
    calibrating, judging = halves(configurations())
    assert len(calibrating) == len(judging)
    assert {*calibrating, *judging} == {*configurations()}


@pytest.mark.parametrize("workspace", WORKSPACES_MIB)
def test_calibration_finds_the_workspace_that_was_there(workspace: int) -> None:
    sizes, noises = (1000.0, 3000.0, 9000.0), (0.999, 1.0, 1.001)
    cells = [
        cell((size + workspace) * noise, context=450 + 50 * place, without=size)
        for (place, size), noise in itertools.product(enumerate(sizes), noises)
    ]
    assert calibrate(cells) == (workspace, 500.0)


def test_an_error_is_a_share_of_what_was_measured_and_below_zero_where_the_forecast_was_too_low() -> None:
    assert error(cell(reserved=1250.0), 0) == pytest.approx(-0.2)
    assert error(cell(reserved=800.0), 0) == pytest.approx(0.25)


def test_without_a_gpu_it_measures_nothing_and_says_why(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(gpu_memory.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu_memory, "cell", lambda *_: pytest.fail("it measured"))
    assert gpu_memory.main() == 2
    said = capsys.readouterr()
    assert "CUDA GPU" in said.err
    assert said.out == ""
