"""The command around the forecast of host memory: where its points come from, that probes are kept, what it says."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from roofscale import api
from roofscale.cli.run_forecast_host import forecast_host
from roofscale.compute import get
from roofscale.config import RunConfig
from roofscale.data.synthetic import GenerateSpec, generate
from roofscale.errors import ConfigError, RoofscaleError
from roofscale.files import write_json
from roofscale.forecast import probes
from roofscale.forecast.host_memory import MemoryProfile, shared_mib
from roofscale.forecast.probes import Probes, local_profile, peak_observations
from roofscale.measurement import Measurement, Outcome
from roofscale.runners.supervise import SilentListener
from roofscale.tracking import RunRecord
from roofscale.train import device
from roofscale.train.device import Execution
from roofscale.train.malloc import training_settings

ASKED = RunConfig(batch_size=8, num_workers=3, compute="local:16", precision="fp32", threads=1)


def peak(config: RunConfig) -> float:
    return 900 + 450 * config.batch_size + 40 * config.num_workers + shared_mib(config)


@dataclass
class Simulated:
    """Stands in for the local runner: a run takes what the formula says, and ends as the test wants."""

    folder: Path
    listener: object
    ran: ClassVar[list[RunConfig]]
    endings: ClassVar[dict[tuple[int, int], Outcome]]
    precision: ClassVar[str]

    def __call__(self, config: RunConfig) -> Measurement:
        self.ran.append(config)
        outcome = self.endings.get((config.batch_size, config.num_workers), Outcome.OK)
        facts = {"device": "cpu", "precision": self.precision, "threads": "1", "malloc": training_settings()}
        self.folder.mkdir(parents=True)
        write_json(self.folder / "config.json", config.as_dict())
        (self.folder / "best.pt").write_bytes(b"weights")
        measured = Measurement(outcome, "", "", metrics={"memory/peak_mib": peak(config)}, facts=facts)
        measured.save(self.folder / "measurement.json")
        return measured


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> type[Simulated]:
    Simulated.ran, Simulated.endings, Simulated.precision = [], {}, "fp32"
    monkeypatch.setattr(probes, "LocalRunner", Simulated)
    monkeypatch.setattr(probes, "resolve_data", lambda configs, cache, say: configs)
    monkeypatch.setattr(MemoryProfile, "tensors_mib", lambda self, batch: 450 * batch)
    return Simulated


def forecast(runs: Path, capsys: pytest.CaptureFixture[str], config: RunConfig = ASKED, probe: bool = True) -> Any:
    code = forecast_host(config, runs, runs, probe, to_json=True)
    found = json.loads(capsys.readouterr().out)
    assert code == (found["fit"] != "fits")
    return found


def test_probes_are_made_once_and_serve_every_batch(runner, tmp_path: Path, capsys) -> None:
    found = forecast(tmp_path, capsys)
    assert found["peak"]["mib"] == pytest.approx(peak(ASKED))
    assert found["fit"] == "fits"
    assert len(runner.ran) == len(found["points"]) == 6
    assert not list(tmp_path.rglob("*.pt"))
    larger = ASKED.with_overrides({"batch_size": 12, "compute": "local:2"})
    assert forecast(tmp_path, capsys, larger)["fit"] == "too large"
    assert forecast(tmp_path, capsys, larger, probe=False)["peak"]["mib"] == pytest.approx(peak(larger))
    assert len(runner.ran) == 6


def test_the_api_forecasts_from_what_the_command_has_measured(
    runner, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="--probe"):
        api.forecast_host_memory(ASKED)
    found = forecast(Path("runs"), capsys)
    assert api.forecast_host_memory(ASKED) == api.MemoryForecast(
        **found["peak"], limit_mib=16 * 1024, fit="fits", largest_batch=found["largest_batch"]
    )


def test_where_it_cannot_be_told_one_further_probe_is_made(runner, tmp_path: Path, capsys) -> None:
    close = ASKED.with_overrides({"compute": f"local:{peak(ASKED) / 1024 / 0.8}"})
    before = forecast(tmp_path, capsys, close)
    assert before["fit"] == "cannot be told"
    after = forecast(tmp_path, capsys, close)
    proposed = before["next_probe"]
    assert [(c.batch_size, c.num_workers) for c in runner.ran[6:]] == [(proposed["batch_size"],
                                                                         proposed["num_workers"])]  # fmt: skip
    assert after["peak"]["high_mib"] - after["peak"]["mib"] == pytest.approx(proposed["reach_mib"])


def test_a_stopped_probe_keeps_what_was_measured(runner, tmp_path: Path, capsys) -> None:
    runner.endings[2, 2] = Outcome.INTERRUPTED
    assert forecast_host(ASKED, tmp_path, tmp_path, True, to_json=True) == 130
    assert capsys.readouterr().out == ""
    runner.endings.clear()
    forecast(tmp_path, capsys)
    assert [(c.batch_size, c.num_workers) for c in runner.ran[-3:]] == [(2, 2), (4, 0), (4, 2)]
    assert len(runner.ran) == 7  # the one that was stopped ran twice


def test_a_probe_out_of_memory_is_no_point_and_is_not_tried_again(runner, tmp_path: Path, capsys) -> None:
    runner.endings[4, 2] = Outcome.HOST_OOM
    assert len(forecast(tmp_path, capsys)["points"]) == 5
    forecast(tmp_path, capsys)
    assert len(runner.ran) == 6


def test_where_probes_ran_out_of_memory_more_of_them_are_no_remedy(runner, tmp_path: Path, capsys) -> None:
    runner.endings |= {(size, workers): Outcome.HOST_OOM for size in (2, 4) for workers in (0, 2)}
    for probe in (True, True, False):
        with pytest.raises(
            ConfigError, match=r"local:16 .* too small for the probes batch_size=2.*--compute"
        ) as refused:
            forecast_host(ASKED, tmp_path, tmp_path, probe, to_json=True)
        assert "--probe" not in str(refused.value)
    assert len(runner.ran) == 6
    runner.endings.clear()
    roomier = ASKED.with_overrides({"compute": "local:32"})
    assert forecast(tmp_path, capsys, roomier)["fit"] == "fits"
    assert len(runner.ran) == 10, "those that ended well serve there as well"


def test_a_batch_beyond_what_the_probes_reached_says_that_they_ran_out(runner, tmp_path: Path) -> None:
    runner.endings |= {(8, 0): Outcome.HOST_OOM, (8, 2): Outcome.HOST_OOM}
    with pytest.raises(ConfigError, match=r"too small for the probes batch_size=8 num_workers=0"):
        forecast_host(ASKED.with_overrides({"batch_size": 32}), tmp_path, tmp_path, True, to_json=True)


def test_runs_under_other_settings_of_malloc_are_another_kind(runner, tmp_path: Path, capsys, monkeypatch) -> None:
    forecast(tmp_path, capsys)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    with pytest.raises(ConfigError, match=r"MALLOC_ARENA_MAX=2: 0 measured runs"):
        forecast_host(ASKED, tmp_path, tmp_path, False, to_json=True)


def test_a_probe_that_breaks_is_an_error(runner, tmp_path: Path) -> None:
    runner.endings[1, 0] = Outcome.DATA_ERROR
    with pytest.raises(RoofscaleError, match="data_error"):
        forecast_host(ASKED, tmp_path, tmp_path, True, to_json=True)


def test_without_points_it_names_the_probes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--probe"):
        forecast_host(ASKED, tmp_path, tmp_path, False, to_json=True)


def test_a_gpu_compute_and_several_processes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="forecast gpu"):
        forecast_host(ASKED.with_overrides({"compute": "ml.g5.xlarge"}), tmp_path, tmp_path, False, to_json=True)
    with pytest.raises(ConfigError, match="processes=2"):
        forecast_host(ASKED.with_overrides({"processes": 2}), tmp_path, tmp_path, False, to_json=True)


def test_a_person_reads_the_verdict_the_parts_and_the_sources(runner, tmp_path: Path, capsys) -> None:
    assert forecast_host(ASKED, tmp_path, tmp_path, True, to_json=False) == 0
    said = capsys.readouterr().out
    for words in (
        "under 80%?",
        "fits",
        "90% interval",
        "largest batch",
        "tensors",
        "shared memory",
        "6 runs",
        "narrow",
    ):
        assert words in said


def test_of_another_machine_it_says_what_may_differ(runner, tmp_path: Path, capsys, monkeypatch) -> None:
    there = ASKED.with_overrides({"compute": "ml.m5.xlarge", "precision": "auto"})
    runner.precision = "bf16"
    native = Execution(torch.device("cpu"), "bf16", "")
    monkeypatch.setattr(device, "select_device", lambda config: native)
    found = forecast(tmp_path, capsys, there)
    assert "precision=fp32" in found["notes"][0]
    assert found["shm_free_mib"] is None
    here = there.with_overrides({"compute": "local:16"})
    assert forecast(tmp_path, capsys, here)["notes"] == []


def record(run_id: str, config: RunConfig, **tags: str) -> RunRecord:
    facts = {"device": "cpu", "precision": "fp32", "threads": "1", "malloc": training_settings()}
    tags = {"outcome": "ok", **facts, **tags}
    return RunRecord(run_id, "", None, "FINISHED", 0, 0, tags, config.to_strings(), {"memory/peak_mib": peak(config)})


def test_points_on_record_are_sound_runs_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [record("sound", ASKED), record("gpu", ASKED, device="cuda"), record("died", ASKED, outcome="host_oom"),
            record("retried", ASKED, retry_of="died"), record("never ran", ASKED, ruled_out_by="died")]  # fmt: skip
    monkeypatch.setattr(probes, "judged_runs", lambda *phases: runs)
    (point,) = peak_observations()
    assert (point.source, point.config, point.peak_mib) == ("sound", ASKED, peak(ASKED))
    assert point.kind == local_profile(ASKED, get(ASKED.compute))


def test_a_real_probe_is_of_the_kind_that_was_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And LocalRunner takes its listener: the one test that trains."""
    root = tmp_path / "data"
    generate(root, GenerateSpec(("rid",), train=6, val=2, test=1, image_px=64))
    asked = RunConfig(encoder="resnet18", image_size=64, num_workers=2, data_root=str(root))
    probes = Probes(tmp_path / "probes", local_profile(asked, get("local")))
    first = probes.missing(asked, [])[1]
    assert (first.batch_size, first.num_workers) == (1, 2)
    probes.run([first], tmp_path, print, lambda name: SilentListener())
    (point,) = probes.points()
    assert point.kind == probes.kind
    assert 100 < point.peak_mib < 4000
    assert point.copied_mib > 100  # weights, gradients and two moments of 14 million parameters
    assert first not in probes.missing(asked, [point])
