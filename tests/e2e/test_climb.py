"""All phases in order under the smoke overlay, each from what the one before learnt, up to the gate."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from tests.command_line import roofscale

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
AMOUNTS = ["--train", "100", "--val", "6", "--test", "2", "--image-px", "64", "--roofline-samples", "130",
           "--airs-tiles", "2", "1", "0", "--airs-tile-px", "512"]  # fmt: skip


def thin_out(experiments: Path) -> None:
    """Leave each phase before the GPU its first and its last step: what lies between is of the same kind."""
    for number in range(1, 5):
        file = experiments / f"phase{number}.yaml"
        phase = yaml.safe_load(file.read_text())
        phase["steps"] = [phase["steps"][0], phase["steps"][-1]]
        file.write_text(yaml.safe_dump(phase, sort_keys=False))


@pytest.fixture(scope="module")
def climbed(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    folder = tmp_path_factory.mktemp("climb")
    shutil.copy(empty_store, folder / "mlflow.db")
    shutil.copytree(
        ROOT / "experiments", folder / "experiments", ignore=shutil.ignore_patterns("results", "STRATEGY.md", "*.ipynb")
    )
    thin_out(folder / "experiments")
    assert roofscale(folder, "data", "generate", "made", *AMOUNTS).returncode == 0
    words = ["climb", "--overlay", "experiments/smoke.yaml", "--set", "data_root=made"]
    done = roofscale(folder, *words)
    (folder / "said.txt").write_text(done.stdout + done.stderr)
    return folder


def test_every_phase_ran_its_steps_and_left_its_verdicts(climbed: Path) -> None:
    said = (climbed / "said.txt").read_text()
    client = MlflowClient(f"sqlite:///{climbed}/mlflow.db")
    for phase in range(1, 5):
        experiment = client.get_experiment_by_name(f"roofscale-phase{phase}")
        assert experiment, said
        runs = client.search_runs([experiment.experiment_id])
        parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
        assert len(parents) == 1
        judged = [run for run in runs if "step" in run.data.tags]
        assert len(judged) == 2, said
        assert {run.data.tags["outcome"] for run in judged} == {"ok"}, said


def test_phase_3_searched_by_trials_and_confirmed_the_choice(climbed: Path) -> None:
    client = MlflowClient(f"sqlite:///{climbed}/mlflow.db")
    experiment = client.get_experiment_by_name("roofscale-phase3")
    assert experiment
    runs = client.search_runs([experiment.experiment_id])
    (search,) = (run for run in runs if "search" in run.data.tags)
    trials = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == search.info.run_id]
    assert trials
    assert {run.info.status for run in trials} == {"FINISHED"}
    names = {item.path for item in client.list_artifacts(search.info.run_id, "figures")}
    assert {"figures/pareto.png", "figures/optuna-history.png"} <= names
    (confirmed,) = (run for run in runs if run.data.tags.get("step") == "searched")
    chosen = json.loads(next(climbed.glob("runs/roofscale-phase3/001/*-searched.search/choice.json")).read_text())
    assert chosen["overrides"]["batch_size"] == int(confirmed.data.params["batch_size"])
    assert chosen["why"] == search.data.tags["choice"]


def test_each_phase_stands_on_the_last_good_of_the_one_before(climbed: Path) -> None:
    for phase in (2, 3, 4):
        good = json.loads((climbed / f"runs/roofscale-phase{phase - 1}/last_good.json").read_text())["config"]
        first = json.loads(next((climbed / f"runs/roofscale-phase{phase}/001").glob("01-*/config.json")).read_text())
        changed = {key for key in good if good[key] != first[key]}
        assert changed <= {"batch_size", "num_workers", "datasets", "epochs", "schedule"}
        assert first["max_samples"] == good["max_samples"]


def test_the_gpu_phase_shows_the_gate_and_the_plan_and_says_where_to_run(climbed: Path) -> None:
    said = (climbed / "said.txt").read_text()
    assert "Gate before the GPU" in said
    assert "full-data" in said  # the dry run
    assert "this machine has no GPU" in said
    assert "ROOFSCALE_RUNNER=sagemaker roofscale phase 5" in said
    assert not (climbed / "runs/roofscale-phase5").exists()


def test_the_gate_reads_the_server_and_not_the_folder(climbed: Path, tmp_path: Path) -> None:
    shutil.copy(climbed / "mlflow.db", tmp_path)
    found = roofscale(tmp_path, "gate", "--dry-run", "--json")
    report = json.loads(found.stdout)
    assert found.returncode == (0 if report["open"] else 1)
    met = {condition["name"]: condition for condition in report["conditions"]}
    assert met["memory a sample is known"]["met"]
    assert all(condition["run_id"] or condition["remedy"] for condition in met.values())


def test_a_dry_run_forecasts_time_from_what_was_measured(climbed: Path) -> None:
    words = ["phase", "4", "--overlay", "experiments/smoke.yaml", "--set", "data_root=made", "--dry-run", "--json"]
    plan = json.loads(roofscale(climbed, *words).stdout)
    times = [step["forecast"]["run_seconds"] for step in plan["steps"]]
    assert [0 < time["low"] < time["centre"] < time["high"] for time in times] == [True] * 2
    assert plan["total"]["seconds"]["centre"] == pytest.approx(sum(time["centre"] for time in times))
    assert plan["full_data"]["amounts"]["source"] == "as under data_root"
    assert plan["full_data"]["forecast"]["run_seconds"]["centre"] > times[-1]["centre"]


def test_what_was_found_is_written_up(climbed: Path) -> None:
    text = (climbed / "experiments" / "STRATEGY.md").read_text()
    for phase in range(1, 5):
        assert f"<!-- phase {phase}: begin -->" in text
    assert (climbed / "experiments" / "results" / "phase4.html").stat().st_size > 10_000
    mine = "<!-- yours: begin by-hand -->\nmine, all mine\n<!-- yours: end by-hand -->\n"
    (climbed / "experiments" / "STRATEGY.md").write_text(text + mine)
    assert roofscale(climbed, "report").returncode == 0
    assert "mine, all mine" in (climbed / "experiments" / "STRATEGY.md").read_text()
