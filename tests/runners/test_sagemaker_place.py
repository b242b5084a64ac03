"""What is refused before anything runs: places that a run cannot be in, and costs beyond the budget."""

import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console
from tests.runners.aws_schema import problems
from tests.runners.sagemaker_settings import ROLE, FakeCloud, described

from roofscale import cli
from roofscale.cli import preflight, run_gate
from roofscale.cli.options import RUNNERS
from roofscale.config import RunConfig
from roofscale.errors import ConfigError
from roofscale.phases.phase_file import load_phase
from roofscale.runners import registry
from roofscale.runners.sagemaker.aws_errors import CloudError
from roofscale.stats.intervals import Interval

IN_S3 = RunConfig(compute="ml.m5.xlarge", data_root="s3://roofs/data")


@pytest.fixture
def out() -> Console:
    return Console(file=io.StringIO(), width=200)


@pytest.fixture
def _settings(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("empty"))
    for name, value in {"ROLE": "r", "BUCKET": "roofs", "IMAGE": "i", "BUDGET_USD": "1.5"}.items():
        monkeypatch.setenv(f"ROOFSCALE_SAGEMAKER_{name}", value)


def foreseen(monkeypatch: pytest.MonkeyPatch, *highs: float | None) -> None:
    """Let these be the upper ends of what runs cost, None where nothing is known."""
    answers = iter(None if high is None else SimpleNamespace(usd=Interval(high / 2, 0.0, high)) for high in highs)
    monkeypatch.setattr("roofscale.forecast.history.timing_records", list)
    monkeypatch.setattr("roofscale.forecast.history.forecast_time_of", lambda *_: next(answers))


def said(out: Console) -> str:
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


def test_this_machine_cannot_read_from_s3(out: Console) -> None:
    with pytest.raises(ConfigError, match="Add --runner sagemaker"):
        preflight.preflight(registry.LOCAL, [RunConfig(), IN_S3], out)
    preflight.preflight(registry.LOCAL, [RunConfig()], out)


@pytest.mark.usefixtures("_settings")
def test_the_gpu_that_a_phase_requires_is_that_of_its_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roofscale.cli.run_gate.GpuMonitor", list)  # none on this machine
    phase = replace(load_phase(Path(__file__).parents[2] / "experiments/phase5.yaml"), requires=("gpu",))
    assert "this machine has no GPU" in run_gate.lacks_gpu(phase)[0]
    assert run_gate.lacks_gpu(phase, runner=registry.SAGEMAKER) == []
    (on_cpus,) = run_gate.lacks_gpu(phase, ["compute=ml.m5.xlarge"], registry.SAGEMAKER)
    assert "compute=ml.m5.xlarge has no GPU; choose one that has" in on_cpus
    assert "--gpu-compute ml.g5.xlarge" in on_cpus
    monkeypatch.setenv("ROOFSCALE_SAGEMAKER_LOCAL_MODE", "true")
    assert "this machine has no GPU" in run_gate.lacks_gpu(phase, runner=registry.SAGEMAKER)[0]


@pytest.mark.usefixtures("_settings")
def test_a_job_needs_an_instance(out: Console) -> None:
    with pytest.raises(ConfigError, match="compute=local: expected an instance"):
        preflight.preflight(registry.SAGEMAKER, [IN_S3, IN_S3.with_overrides({"compute": "local"})], out)


@pytest.mark.usefixtures("_settings")
def test_the_upper_end_of_the_forecast_is_held_against_the_budget(
    out: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreseen(monkeypatch, 0.7, 0.7)
    preflight.preflight(registry.SAGEMAKER, [IN_S3, IN_S3], out)
    assert "of a budget of 1.5 USD" in said(out)
    foreseen(monkeypatch, 0.7, None, 0.9)
    with pytest.raises(ConfigError, match=r"budget_usd=1\.5: the forecast of 2 of 3 runs"):
        preflight.preflight(registry.SAGEMAKER, [IN_S3] * 3, out)


@pytest.mark.usefixtures("_settings")
def test_where_nothing_is_forecast_the_jobs_are_held_to_the_budget(
    out: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreseen(monkeypatch, None)
    preflight.preflight(registry.SAGEMAKER, [IN_S3], out)
    assert "the jobs end once 1.5 USD are used up" in said(out)


@pytest.mark.usefixtures("_settings")
def test_a_dry_run_shows_the_request_and_asks_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roofscale.runners.sagemaker.session.connect", lambda *_: pytest.fail("AWS was asked"))
    monkeypatch.setattr("roofscale.forecast.history.timing_records", list)
    monkeypatch.setenv("ROOFSCALE_SAGEMAKER_ROLE", ROLE)
    words = ["train", "--dry-run", "--runner", "sagemaker", "compute=ml.m5.xlarge", "batch_size=3"]
    done = CliRunner().invoke(cli.main, [*words, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    (request,) = found["requests"]
    assert found["settings"]["bucket"] == {"value": "roofs", "from": "environment"}
    assert problems("CreateTrainingJob", request) == []
    assert request["ResourceConfig"]["InstanceType"] == "ml.m5.xlarge"
    assert request["AlgorithmSpecification"]["ContainerArguments"] == ["--fingerprint", found["fingerprint"]]
    said = CliRunner().invoke(cli.main, words).stdout
    shown = json.loads(said[said.index("\n{") :])
    names = [one.pop("TrainingJobName") for one in (shown, request)]
    assert names[0][:-8] == names[1][:-8]  # six digits are drawn anew
    tags = [{tag["Key"]: tag["Value"] for tag in one.pop("Tags")} for one in (shown, request)]
    assert tags[0]["roofscale:fingerprint"] == tags[1]["roofscale:fingerprint"] == found["fingerprint"]
    local = CliRunner().invoke(cli.main, ["train", "--dry-run", "--json"])
    assert json.loads(local.stdout)["requests"] == []


@pytest.mark.usefixtures("_settings")
def test_status_shows_running_jobs_by_their_tags_and_says_where_aws_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tags = {"roofscale:experiment": "roofscale-phase2", "roofscale:step": "01-batch-2", "roofscale:folder": "pc:/runs"}
    cloud = FakeCloud()
    cloud.under_way = {"roofscale-phase2-001-01-batch-2-abcdef-1": tags, "somebody-elses": {}}
    monkeypatch.setattr("roofscale.runners.sagemaker.session.connect", lambda *_: cloud)
    said = CliRunner().invoke(cli.main, ["status"], env={"COLUMNS": "200"}).output
    for words in ("roofscale-phase2-001-01-batch-2-abcdef-1", "roofscale-phase2 01-batch-2", "pc:/runs"):
        assert words in said
    assert "somebody-elses" not in said
    found = json.loads(CliRunner().invoke(cli.main, ["status", "--json"]).stdout)
    assert found["jobs"]["roofscale-phase2-001-01-batch-2-abcdef-1"]["step"] == "01-batch-2"

    def away(begins: str) -> None:
        raise CloudError("AWS did not answer")

    monkeypatch.setattr(cloud, "running", away)
    assert "Running jobs: AWS did not answer" in CliRunner().invoke(cli.main, ["status"]).output


def test_status_asks_nobody_where_jobs_are_not_set_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("roofscale.runners.sagemaker.session.connect", lambda *_: pytest.fail("AWS was asked"))
    found = json.loads(CliRunner().invoke(cli.main, ["status", "--json"]).stdout)
    assert found == {"phases": [], "jobs": {}, "jobs_unknown": ""}


def test_the_command_line_knows_the_same_runners() -> None:
    assert RUNNERS == registry.NAMES


@pytest.mark.parametrize(("words", "variable", "runner"), [([], "", "local"), ([], "sagemaker", "sagemaker"),
                                                           (["--runner", "local"], "sagemaker", "local")])  # fmt: skip
def test_the_option_wins_over_the_variable(
    words: list[str], variable: str, runner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def train_once(*given: Any) -> tuple[str, int]:
        asked.append(given[-1])
        return "", 0

    monkeypatch.setattr("roofscale.cli.run_train.run_training", train_once)
    done = CliRunner().invoke(cli.main, ["train", *words], env={"ROOFSCALE_RUNNER": variable} if variable else {})
    assert done.exit_code == 0, done.output
    assert asked == [runner]


@pytest.mark.usefixtures("_settings")
def test_the_log_of_a_job_is_printed_and_followed_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roofscale.cli.run_records._SECONDS_BETWEEN_READS", 0.0)

    def printed(*words: str) -> str:
        def end() -> dict[str, Any]:
            cloud.log.append("last")
            return described()

        cloud = FakeCloud(described("InProgress"), end, known=True)
        cloud.log = ["first"]
        monkeypatch.setattr("roofscale.runners.sagemaker.session.connect", lambda *_: cloud)
        done = CliRunner().invoke(cli.main, ["logs", "roofscale-a-1", *words])
        assert done.exit_code == 0, done.output
        return done.stdout

    assert printed() == "first\n"
    assert printed("--follow") == "first\nlast\n"
    monkeypatch.setattr("roofscale.runners.sagemaker.session.connect", lambda *_: FakeCloud())
    missing = CliRunner().invoke(cli.main, ["logs", "roofscale-b-1"])
    assert missing.exit_code == 2
    assert "roofscale-b-1: there is no such job" in missing.output
