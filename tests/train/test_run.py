"""One run in this process: what it says while it trains, and how it ends when something is wrong."""

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from roofscale.config import RunConfig
from roofscale.data.sources import open_sources
from roofscale.data.synthetic import GenerateSpec, generate
from roofscale.train import __main__ as process
from roofscale.train.loop import TrainingLoop, epoch_plans
from roofscale.train.trainer import Trainer

SMALL = RunConfig(image_size=64, encoder="test_resnet", max_samples=6, val_samples=3, num_workers=0, threads=1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    spec = GenerateSpec(("rid", "roofline"), train=6, val=3, test=0, roofline_samples=30, image_px=64, roofline_px=64)
    generate(tmp_path / "data", spec)
    return tmp_path / "data"


class Heard(list[tuple[str, Mapping[str, Any]]]):
    """Everything that a run emitted."""

    def __call__(self, event: str, fields: Mapping[str, Any]) -> None:
        self.append((event, fields))

    def of(self, event: str) -> list[Mapping[str, Any]]:
        return [fields for name, fields in self if name == event]


def run(config: RunConfig, root: Path, folder: Path) -> Heard:
    heard = Heard()
    TrainingLoop(config, open_sources(config, root), folder, heard, lambda: False).fit()
    return heard


def end_of(config: RunConfig, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the training process's own main and return how it says it ended."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    (folder / "config.json").write_text(json.dumps(config.as_dict()))
    code = process.main(folder)
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines() if line]
    assert code == (0 if events[-1]["outcome"] == "ok" else 1)
    return events[-1]


def test_data_sets_one_after_the_other_validate_all_seen_so_far(root: Path, tmp_path: Path) -> None:
    config = SMALL.with_overrides({"datasets": "rid,roofline"})
    heard = run(config, root, tmp_path)
    validated = [(v["validation"]["step"], v["validation"]["dataset"]) for v in heard.of("validation")]
    assert validated == [(0, "rid"), (0, "roofline"), (3, "rid"), (6, "rid"), (6, "roofline")]
    assert [step["dataset"] for step in heard.of("step")] == ["rid"] * 3 + ["roofline"] * 3
    last = heard.of("validation")[-1]["validation"]
    assert {name.partition("_")[2] for name in last["metrics"]} == {"", "eave", "ridge", "hip"}


def test_a_mixed_pass_shuffles_the_data_sets_together(root: Path, tmp_path: Path) -> None:
    config = SMALL.with_overrides({"datasets": "rid,roofline", "schedule": "mixed"})
    heard = run(config, root, tmp_path)
    assert len(epoch_plans(config)) == 1
    assert sum("+" in step["dataset"] for step in heard.of("step")) > 0
    assert heard.of("step")[-1]["samples"] == 12


def test_data_stall_is_measured_after_everything_that_counts(root: Path, tmp_path: Path) -> None:
    heard = run(SMALL, root, tmp_path)
    stall = heard.of("metrics")[0]["metrics"]["speed/data_stall"]
    assert 0 <= stall < 1
    assert (tmp_path / "best.pt").exists()
    assert [name for name, _ in heard][-1] == "metrics"


def test_the_stages_of_a_run_follow_each_other(root: Path, tmp_path: Path) -> None:
    heard = run(SMALL.with_overrides({"epochs": 2}), root, tmp_path)
    assert [stage["name"] for stage in heard.of("stage")] == [
        "validating before training",
        "training, pass 1 of 2",
        "validating after pass 1 of 2",
        "training, pass 2 of 2",
        "validating after pass 2 of 2",
        "repeating a batch",
    ]


def test_the_sheet_has_the_first_validation_samples_as_the_last_validation_saw_them(root: Path, tmp_path: Path) -> None:
    heard = run(SMALL, root, tmp_path)
    last = heard.of("validation")[-1]["validation"]
    with np.load(tmp_path / "sheet-rid.npz", allow_pickle=False) as sheet:
        assert tuple(sheet["ids"]) == last["sample_ids"][:4]
        assert sheet["image"].shape == (3, 64, 64, 3)
        right = (sheet["probability"][:, 0] > 0.5) == sheet["target"][:, 0]
        assert right.mean() == pytest.approx(last["metrics"]["accuracy_roof"], abs=1e-3)
        assert sheet["labelled"].tolist() == [True, False, False, False]


def test_a_resumed_process_knows_the_threads_of_the_first(tmp_path: Path) -> None:
    starts = [json.dumps({"event": "start", "facts": {"threads": str(number)}}) for number in (4, 2)]
    (tmp_path / "events.jsonl").write_text('{"event": "note", "text": "a"}\n')
    assert process.begun_with(tmp_path) == 0
    (tmp_path / "events.jsonl").write_text("\n".join([starts[0][:20], *starts]))
    assert process.begun_with(tmp_path) == 4


def test_what_steps_write_anew_is_four_times_the_weights_on_a_cpu(root: Path, tmp_path: Path) -> None:
    training = TrainingLoop(SMALL, open_sources(SMALL, root), tmp_path, Heard(), lambda: False)
    training.fit()
    weights = sum(weight.nbytes for weight in training.trainer.model.parameters())
    assert training.trainer.mutable_state_bytes == pytest.approx(4 * weights, rel=0.01), "itself, gradient, two moments"


def test_the_cached_batch_is_a_whole_one(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self, batch: (sizes.append(len(batch.ids)), step(self, batch))[1])
    run(SMALL.with_overrides({"batch_size": 4, "max_samples": 6, "epochs": 2}), root, tmp_path)
    assert sizes[:4] == [4, 2, 4, 2]
    assert set(sizes[4:]) == {4}


def break_one(root: Path) -> Path:
    (file,) = sorted(root.glob("rid/**/images_roof_centered_geotiff/*.tif"))[:1]
    file.write_bytes(file.read_bytes()[:200])
    return file


def test_a_broken_file_ends_the_run_and_is_named(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = break_one(root)
    config = SMALL.with_overrides({"data_root": str(root), "num_workers": 2})
    end = end_of(config, tmp_path, monkeypatch)
    assert end["outcome"] == "data_error"
    assert file.name in end["detail"]


def test_a_broken_file_is_left_out_counted_and_told_where_asked(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = break_one(root)
    config = SMALL.with_overrides({"data_root": str(root), "on_bad_sample": "skip"})
    assert end_of(config, tmp_path, monkeypatch)["outcome"] == "ok"
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines() if line]
    told = [e["text"] for e in events if e["event"] == "note" and "left out" in e["text"]]
    assert len(told) == 1
    assert file.name in told[0]
    counted = [e["metrics"]["train/skipped_samples"] for e in events if "train/skipped_samples" in e.get("metrics", {})]
    assert counted == [1]


def test_a_loss_that_is_no_longer_finite_ends_the_run_as_diverged(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wild = {"data_root": str(root), "lr": 1e30, "lr_schedule": "constant", "precision": "fp32", "epochs": 4}
    end = end_of(SMALL.with_overrides(wild), tmp_path, monkeypatch)
    assert end["outcome"] == "diverged"
    assert "lower lr" in end["detail"]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("encoder=resnet43", "Did you mean"),
        ("decoder=unett", "Did you mean 'unet'"),
        ("precision=fp16", "no fast fp16"),
        ("max_samples=1000", "1000"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, says: str
) -> None:
    config = SMALL.with_overrides([f"data_root={root}", override])
    end = end_of(config, tmp_path, monkeypatch)
    assert end["outcome"] == "crashed"
    assert says in end["detail"]
