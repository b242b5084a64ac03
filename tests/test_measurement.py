"""Measurements on disk."""

import json
from pathlib import Path

from roofscale.measurement import Measurement, MemoryPoint, Outcome, ResourceSample, StepRecord, Validation

WHOLE = Measurement(
    Outcome.OK,
    "",
    "0" * 12,
    (StepRecord(1, 0, "rid", 2, 0.7, 1.0, 1e-3, 0.5, 0.1, 1e9, 900.0),),
    (Validation(0, 0, "rid", ("a",), (0.7,), (0.6,), {"iou": 0.1}, 1.0),),
    (MemoryPoint(1e9, 900.0),),
    {"memory/peak_mib": 900.0},
    {"device": "cpu"},
    (ResourceSample(1e9, {"cpu/utilisation": 0.5}),),
)


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    WHOLE.save(tmp_path / "m.json")
    assert Measurement.load(tmp_path / "m.json") == WHOLE


def test_a_file_from_before_there_were_resources_still_loads(tmp_path: Path) -> None:
    WHOLE.save(tmp_path / "m.json")
    content = json.loads((tmp_path / "m.json").read_text())
    del content["resources"]
    (tmp_path / "m.json").write_text(json.dumps(content))
    old = Measurement.load(tmp_path / "m.json")
    assert old.resources == ()
    assert old.steps == WHOLE.steps
