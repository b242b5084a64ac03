"""What notebooks import: results read from a seeded store, and what is handed on to the commands."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.report.seeded_tracking import seed
from tests.report.synthetic_results import passed_samples, rolled_back

from roofscale import api
from roofscale.cli import run_phase as commands
from roofscale.cli.climb_options import ClimbOptions
from roofscale.config import FIELDS
from roofscale.phases.results import PhaseResult


@pytest.fixture
def seeded(tmp_path: Path, tracking_store: None) -> None:
    for climb in (rolled_back(), passed_samples(), replace(rolled_back(), created="2030-01-01T00:00:00+00:00")):
        seed(climb, tmp_path)


@pytest.mark.usefixtures("seeded")
def test_steps_are_those_of_the_newest_attempts_with_remedies_knobs_and_metrics() -> None:
    steps = api.read_steps()
    assert list(zip(steps["phase"], steps["step"], steps["changed"], steps["verdict"], strict=True)) == [
        (1, "few", "", "passed"),
        (1, "many", "", "passed"),
        (2, "batch-4", "", "passed"),
        (2, "batch-8", "", "failed"),
        (2, "batch-16", "batch_size=12", "passed"),
    ]
    assert list(steps["batch_size"]) == [2, 2, 4, 8, 12]
    assert list(steps["max_samples"]) == [20, 100, 100, 100, 100]
    assert steps["speed/samples_per_s"].iloc[0] == pytest.approx(1.5)
    assert steps["run_id"].is_unique
    assert list(api.read_steps([1])["step"]) == ["few", "many"]


@pytest.mark.usefixtures("seeded")
def test_runs_are_those_of_all_attempts_with_what_failed_and_why() -> None:
    runs, steps = api.read_runs([2]), api.read_steps([2])
    per_attempt = len(list(rolled_back().all_runs()))
    assert len(runs) == 2 * per_attempt
    assert set(steps["run_id"]) < set(runs["run_id"][:per_attempt]), "those of the newest attempt come first"
    lost = runs[:per_attempt].query("outcome == 'host_oom'")
    assert set(lost["batch_size"]) == {16, 14}
    assert (set(lost["step"]), set(lost["verdict"]), set(lost["cause"])) == ({"batch-16"}, {"failed"}, {"host_oom"})
    assert list(runs.columns[:7]) == list(steps.columns[:7])


def test_without_a_store_there_are_columns_and_no_rows() -> None:
    for frame in (api.read_steps(), api.read_runs()):
        assert frame.empty
        assert {"phase", "step", "verdict", *FIELDS} == set(frame.columns) - {"changed", "outcome", "cause", "run_id"}


def test_a_config_is_read_from_a_file_and_overrides(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("batch_size: 8\nlr: 0.1\n")
    config = api.load_config("lr=0.2", file=tmp_path / "run.yaml")
    assert (config.batch_size, config.lr, config.seed) == (8, 0.2, 0)
    with pytest.raises(api.RoofscaleError, match="batch_size=0"):
        api.load_config("batch_size=0")


def test_a_phase_is_run_in_the_projects_folder(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    asked: list[tuple[int, ClimbOptions]] = []

    def climb(number: int, order: ClimbOptions) -> PhaseResult:
        asked.append((number, order))
        return passed_samples()

    monkeypatch.setattr(commands, "climb_phase", climb)
    found = api.run_phase(1, "image_size=64", fresh=True)
    assert found
    assert (found["phase"], found["verdict"], [step["step"] for step in found["steps"]]) == (
        1,
        "passed",
        ["few", "many"],
    )
    ((number, order),) = asked
    assert (number, order.overrides, order.fresh, order.from_defaults) == (1, ("image_size=64",), True, False)
    assert api.run_phase(1, dry_run=True) is None
    assert len(asked) == 1
    assert "phase 1" in capsys.readouterr().out.lower()


def test_gpu_memory_is_the_forecasters() -> None:
    config = api.load_config("encoder=test_resnet", "image_size=64", "compute=ml.g5.xlarge")
    found = api.forecast_gpu_memory(config)
    assert 0 < found.low_mib < found.mib < found.high_mib < found.limit_mib
    assert found.fit == "fits"
    assert found.largest_batch > config.batch_size
    with pytest.raises(api.RoofscaleError, match="GPU"):
        api.forecast_gpu_memory(config.with_overrides(["compute=ml.m5.xlarge"]))
