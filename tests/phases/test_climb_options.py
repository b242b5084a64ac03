"""What a user orders: which phase takes which overrides, and which instance."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from roofscale.cli import main, run_gate
from roofscale.cli.climb_options import ClimbOptions
from roofscale.config import FIELDS
from roofscale.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def order(*overrides: str, **wishes: Any) -> ClimbOptions:
    folders = {"experiments": ROOT / "experiments", "runs": Path("runs"), "cache": Path("data/generated")}
    return ClimbOptions(overrides, **folders, **wishes)


def computes(given: ClimbOptions, phase: int) -> set[str]:
    plan = given.load(phase).resolve(overrides=given.overrides_for(given.load(phase)))
    return {config.compute for _, config in plan}


def test_the_compute_of_a_climb_is_that_of_its_cpu_phases() -> None:
    given = order("lr=1e-4", "compute=ml.m5.xlarge")
    assert [computes(given, phase) for phase in (1, 2, 3, 4)] == [{"ml.m5.xlarge"}] * 4
    assert computes(given, 5) == {"ml.g5.xlarge"}
    assert "lr=1e-4" in given.overrides_for(given.load(5))
    assert computes(order("compute=ml.m5.xlarge", gpu_compute="ml.g6.xlarge"), 5) == {"ml.g6.xlarge"}
    assert computes(order(gpu_compute="ml.g6.xlarge"), 4) == {"local"}


@pytest.mark.parametrize(
    ("words", "on_cpu", "on_gpu"),
    [
        (["compute=ml.g5.2xlarge"], "local", "ml.g5.2xlarge"),
        (["compute=ml.m5.xlarge"], "ml.m5.xlarge", "ml.g5.xlarge"),
        (["compute=ml.m5.xlarge", "compute=ml.g5.2xlarge"], "local", "ml.g5.2xlarge"),
        ([], "local", "ml.g5.xlarge"),
    ],
)
def test_phase_5_alone_takes_a_compute_that_has_a_gpu(words: list[str], on_cpu: str, on_gpu: str) -> None:
    given = order(*words)
    meant = given.for_gpu(given.load(5))
    assert (computes(meant, 4), computes(meant, 5)) == ({on_cpu}, {on_gpu})


def test_a_gpu_compute_without_a_gpu_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"gpu_compute=ml\.m5\.xlarge has no GPU.*--compute ml\.m5\.xlarge"):
        order(gpu_compute="ml.m5.xlarge")
    with pytest.raises(ConfigError, match="Did you mean"):
        order(gpu_compute="ml.g5.xlrge")
    assert order(gpu_compute="local").gpu_compute == "local"


def test_a_phase_below_keeps_the_knobs_that_its_steps_set() -> None:
    given = order("batch_size=4", "num_workers=1", "lr=1e-4")
    kept = {phase: given.for_needed_phase(given.load(phase)).overrides for phase in (1, 2, 3)}
    assert kept == {1: list(given.overrides), 2: ["num_workers=1", "lr=1e-4"], 3: ["batch_size=4", "lr=1e-4"]}


def test_without_a_gpu_phase_5_says_so_and_climbs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roofscale.cli.run_gate.GpuMonitor", list)
    monkeypatch.setattr("roofscale.cli.run_phase.preview", lambda phase, order: None)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["phase", "5", "--compute", "ml.m5.xlarge"])
    said = " ".join(done.output.split())
    assert done.exit_code == 1
    assert "a machine that has one, such as ml.g5.xlarge" in said
    assert "climbing first" not in said
    assert not (tmp_path / "runs").exists()
    assert run_gate.lacks_gpu(order().load(4)) == []


@pytest.mark.parametrize("words", [["phase", "3", "--num_workers", "4"], ["climb", "--batch_size", "4"]])
def test_a_knob_that_the_steps_set_is_refused_before_anything_is_climbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2
    assert "cannot be overridden in phase" in done.stderr
    assert "workers-4 4" in done.stderr or "batch-4 4" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("words", [["train"], ["phase", "1"], ["climb"], ["search"], ["gate"]], ids=" ".join)
def test_every_knob_is_a_hidden_option(words: list[str]) -> None:
    shown = CliRunner().invoke(main, [*words, "--help"]).output
    assert "--weight_decay" not in shown
    assert "--knobs" in shown
    listed = CliRunner().invoke(main, [*words, "--knobs"])
    assert listed.exit_code == 0
    assert "weight_decay" in listed.output
    known = {option for command in [main.commands[words[0]]] for p in command.params for option in p.opts}
    assert {spelling for name in FIELDS for spelling in (f"--{name}", f"--{name.replace('_', '-')}")} <= known
    wrong = CliRunner().invoke(main, [*words, "--batch_sizes", "4"])
    assert wrong.exit_code == 2
    assert "Did you mean one of: '--batch-size', '--batch_size'" in wrong.stderr


def test_a_knob_wins_over_set_and_loses_to_a_plain_override(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("roofscale.cli.dry_run.print_run", lambda config, *_: seen.append(config))
    monkeypatch.chdir(tmp_path)
    words = ["train", "--dry-run", "--set", "lr=1 seed=1", "--lr", "2", "--weight_decay", "0.5", "--encoder", ""]
    assert CliRunner().invoke(main, words).exit_code == 0
    assert CliRunner().invoke(main, [*words, "lr=3"]).exit_code == 0
    assert [(c.lr, c.seed, c.weight_decay, c.encoder) for c in seen] == [
        (2.0, 1, 0.5, "resnet34"),
        (3.0, 1, 0.5, "resnet34"),
    ]
