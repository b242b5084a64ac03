"""Texts of any common editor are read, and records tell when they are damaged."""

from pathlib import Path

import pytest

from roofscale.config import load
from roofscale.errors import ConfigError, RecordError
from roofscale.files import read_json, read_text
from roofscale.measurement import Measurement, Outcome
from roofscale.phases.attempt import StepFolder
from roofscale.phases.phase_file import load_phase
from roofscale.runners.sagemaker import settings


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_common_encodings_are_taken(encoding: str, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes("encoder: test_resnet  # für später\r\n".encode(encoding))
    assert read_text(file) == "encoder: test_resnet  # für später\r\n"
    assert load(file).encoder == "test_resnet"


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ("# ok\nname: für".encode("latin-1"), r"line 2: expected UTF-8, found the byte 0xfc"),
        ("a: b".encode("utf-16-le"), "bytes of 0"),
        (b"\xff\xfea", "expected UTF-8"),
    ],
)
def test_others_are_named_with_what_to_do(raw: bytes, says: str, tmp_path: Path) -> None:
    file = tmp_path / "phase1.yaml"
    file.write_bytes(raw)
    for read in (load, load_phase):
        with pytest.raises(ConfigError, match=says) as refused:
            read(file)
        assert "phase1.yaml" in str(refused.value)
        assert "Save it as UTF-8" in str(refused.value)
    with pytest.raises(ConfigError, match=says):
        settings.load({settings.FILE_VARIABLE: str(file)})


@pytest.mark.parametrize("text", ["a: 2001-13-45", "[" * 5000, "- a", "a: *b", "%YAML 9", "a: !!python/object:os.x {}"])
def test_what_is_no_such_yaml_is_said(text: str, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    for read in (load, load_phase):
        with pytest.raises(ConfigError, match=r"a\.yaml"):
            read(file)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"outcome": "ok"', '{"outcome": "fine"}', '{"outcome": 3}']
)
def test_a_damaged_record_is_named_and_no_traceback(content: str, tmp_path: Path) -> None:
    folder = StepFolder(tmp_path)
    for name in ("measurement.json", "verdict.json", "run.json"):
        (tmp_path / name).write_text(content)
    for name in ("finished_measurement", "verdict", "run_id", "config"):
        with pytest.raises(RecordError, match=r"damaged.*Move it away"):
            getattr(folder, name)


def test_a_whole_record_comes_back(tmp_path: Path) -> None:
    Measurement(Outcome.OK, "5 steps", "f").save(tmp_path / "measurement.json")
    assert Measurement.load(tmp_path / "measurement.json").detail == "5 steps"
    assert read_json(tmp_path / "measurement.json")["outcome"] == "ok"
