"""A phase in a fresh folder, through the real command line: what it stands on is climbed first, once, on merit."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.command_line import roofscale as in_process

PHASES = {
    1: """
phase: 1
name: one
base: {image_size: 64, encoder: test_resnet, val_samples: 2, threads: 1, num_workers: 0}
steps:
  - name: base
    set: {max_samples: 4}
    criteria: {completes: , memory_margin: {max_share: MARGIN}}
max_fallbacks: 0
""",
    2: """
phase: 2
name: two
needs: 1
steps:
  - name: batch
    set: {batch_size: 4}
    criteria: {completes: }
""",
    3: """
phase: 3
name: three
needs: 2
steps:
  - name: workers
    set: {prefetch_factor: 1}
    criteria: {completes: }
""",
    4: """
phase: 4
name: four
needs: 3
steps:
  - name: data
    set: {epochs: 1}
    criteria: {completes: }
""",
}


roofscale = partial(in_process, fake=True)


def prepare(folder: Path, store: Path, margin: float = 0.8) -> Path:
    shutil.copy(store, folder / "mlflow.db")
    (folder / "experiments").mkdir()
    for number, text in PHASES.items():
        (folder / "experiments" / f"phase{number}.yaml").write_text(text.replace("MARGIN", str(margin)))
    amounts = ["--train", "4", "--val", "2", "--test", "1", "--image-px", "64"]
    assert roofscale(folder, "data", "generate", "made", "--datasets", "rid", *amounts).returncode == 0
    return folder


@pytest.fixture(scope="module")
def climbed(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> tuple[Path, dict[str, Any], str, str]:
    folder = prepare(tmp_path_factory.mktemp("first"), empty_store)
    before = roofscale(folder, "phase", "3", "--dry-run").stdout
    words = ["phase", "3", "--data_root", "made", "--batch_size", "2", "--json"]
    done = roofscale(folder, *words)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout), " ".join(done.stderr.split()), before


def config_of(folder: Path, phase: int) -> dict[str, Any]:
    (file,) = (folder / "runs" / f"roofscale-phase{phase}").glob("001/01-*/config.json")
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def test_a_dry_run_only_says_what_would_be_climbed_first(climbed: tuple[Path, dict[str, Any], str, str]) -> None:
    said = " ".join(climbed[3].split())
    assert "To be climbed first: phases 1 and 2; shown here from the defaults." in said


def test_what_a_phase_stands_on_is_climbed_first_with_a_forecast(
    climbed: tuple[Path, dict[str, Any], str, str],
) -> None:
    folder, found, said, _ = climbed
    assert (found["phase"], found["verdict"]) == (3, "passed")  # one object for a script
    assert "Phase 3 needs phases 1 and 2, not complete yet: climbing first." in said
    assert "No forecast of the time of phases 1 and 2 yet" in said
    assert said.index("Forecast of phase 2:") > said.index("Phase 1: one")
    assert config_of(folder, 3)["encoder"] == "test_resnet"  # learnt from phase 1 by way of phase 2


def test_a_knob_that_a_phase_below_sets_itself_is_left_out_there(
    climbed: tuple[Path, dict[str, Any], str, str],
) -> None:
    folder, _, said, _ = climbed
    assert "Left out in phase 2, whose steps set it themselves: batch_size=2" in said
    assert "Left out in phase 1" not in said
    assert [config_of(folder, phase)["batch_size"] for phase in (1, 2, 3)] == [2, 4, 2]


def test_what_is_on_record_is_not_climbed_again(climbed: tuple[Path, dict[str, Any], str, str]) -> None:
    folder, *_ = climbed
    would = roofscale(folder, "phase", "3", "--dry-run", "--data_root", "made")
    assert "last good config of phase 2" in " ".join(would.stdout.split())
    looked = roofscale(folder, "gate", "--dry-run", "--json")
    assert looked.returncode == 1
    assert json.loads(looked.stdout)["open"] is False
    assert not (folder / "runs" / "roofscale-phase4").exists()

    climbs = roofscale(folder, "gate", "--data_root", "made", "--json")
    assert json.loads(climbs.stdout)["open"] is False  # no run of it is as large as the gate asks for
    assert "The gate needs phase 4, not complete yet: climbing first." in " ".join(climbs.stderr.split())
    assert (folder / "runs" / "roofscale-phase4" / "last_good.json").exists()


def test_what_failed_is_not_climbed_again_unasked(tmp_path: Path, empty_store: Path) -> None:
    folder = prepare(tmp_path, empty_store, margin=1e-9)
    words = ["phase", "2", "--data_root", "made"]
    failed = roofscale(folder, *words, "--json")
    assert failed.returncode == 1
    assert (json.loads(failed.stdout)["phase"], json.loads(failed.stdout)["verdict"]) == (1, "failed")
    attempts = folder / "runs" / "roofscale-phase1"

    for command in (words, ["gate", "--data_root", "made"]):
        refused = roofscale(folder, *command)
        said = " ".join(refused.stderr.split())
        assert refused.returncode == 2
        assert "phase 1 was climbed before, and nothing can stand on it: base failed (memory_margin: " in said
        assert "roofscale phase 1 --fresh" in said
    assert not (attempts / "002").exists()

    prepare_again = PHASES[1].replace("MARGIN", "0.8")
    (folder / "experiments" / "phase1.yaml").write_text(prepare_again)
    fresh = roofscale(folder, *words, "--fresh")
    assert fresh.returncode == 0, fresh.stdout + fresh.stderr
    assert (attempts / "002").exists()
