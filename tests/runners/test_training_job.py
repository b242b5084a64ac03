"""Process 1 of a job, on a folder that stands for /opt/ml."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from tests.runners.job_folder import AWKWARD, hand_over, left, start

from roofscale import training_job
from roofscale.config import RunConfig
from roofscale.data.locate import describe_origin, find_dataset
from roofscale.data.synthetic import GenerateSpec
from roofscale.errors import ConfigError
from roofscale.measurement import Measurement, Outcome


@pytest.mark.parametrize(
    ("how", "outcome"),
    [
        ("ok", Outcome.OK),
        pytest.param("data_error", Outcome.DATA_ERROR, marks=pytest.mark.slow),
        pytest.param("segfault", Outcome.CRASHED, marks=pytest.mark.slow),
    ],
)
def test_the_measurement_and_its_cause_are_left_where_they_are_looked_for(
    how: str, outcome: Outcome, top: Path
) -> None:
    job = start(how, top)
    said, _ = job.communicate(timeout=300)
    assert left(top).outcome is outcome
    assert left(top).fingerprint == AWKWARD.fingerprint
    assert job.returncode == (0 if outcome is Outcome.OK else 1)
    failure = top / "output/failure"
    assert failure.exists() is (outcome is not Outcome.OK)
    if failure.exists():
        assert failure.read_text(encoding="utf-8") == f"{outcome}: {left(top).detail}"
    assert "4 steps planned" in said
    assert any("system/cpu_utilization_percentage" in row.metrics for row in left(top).resources)
    assert (top / "checkpoints/events.jsonl").exists(), "the run folder is what the service keeps"


def test_the_image_may_be_called_as_sagemaker_calls_it(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the word train and without a fingerprint, as ModelTrainer leaves the entrypoint to the image."""
    monkeypatch.setattr(training_job, "_run", lambda config, *_: Measurement(Outcome.OK, "ran", config.fingerprint))
    assert training_job.main(["train"], top) == 0
    assert left(top).fingerprint == AWKWARD.fingerprint
    with pytest.raises(SystemExit):
        training_job.main(["serve"], top)


def test_a_stop_reaches_the_training(top: Path) -> None:
    job = start("wait", top)
    until = time.monotonic() + 300
    while not (top / "checkpoints/events.jsonl").exists() and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.3)
    job.send_signal(signal.SIGTERM)
    job.communicate(timeout=300)
    assert left(top).outcome is Outcome.INTERRUPTED


def test_the_config_arrives_as_it_was_but_for_the_data_root(top: Path) -> None:
    found = training_job.read_config(top / "input/data", AWKWARD.fingerprint)
    assert found.data_root == str(top / "input/data")
    assert found.diff(AWKWARD).keys() == {"data_root"}


def test_another_run_config_than_was_asked_for_is_not_run(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_job, "_run", lambda *_: pytest.fail("it was run"))
    hand_over(top, AWKWARD.with_overrides({"lr": 0.5}).as_dict())
    assert training_job.main(["--fingerprint", AWKWARD.fingerprint], top) == 1
    assert "another version of Roofscale than the launcher" in (top / "output/failure").read_text()
    assert left(top).outcome is Outcome.CRASHED


def test_a_knob_that_the_image_does_not_know_is_named(top: Path) -> None:
    hand_over(top, {**AWKWARD.as_dict(), "knob_of_tomorrow": 1})
    assert training_job.main(["--fingerprint", AWKWARD.fingerprint], top) == 1
    assert "knob_of_tomorrow" in (top / "output/failure").read_text()


def test_whatever_breaks_is_told(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "/opt/ml/checkpoints")

    monkeypatch.setattr(training_job, "_run", breaks)
    assert training_job.main(["--fingerprint", AWKWARD.fingerprint], top) == 1
    assert "crashed: PermissionError: [Errno 13]" in (top / "output/failure").read_text()


def test_a_signal_before_the_training_is_remembered(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[int] = []

    def read(*_: object) -> RunConfig:
        os.kill(os.getpid(), signal.SIGTERM)  # while the job is still getting ready
        return AWKWARD

    def run(*given: Any) -> Measurement:
        requests.append(given[-1].count)
        return Measurement(Outcome.OK, "", "")

    monkeypatch.setattr(training_job, "read_config", read)
    monkeypatch.setattr(training_job, "_run", run)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert training_job.main(["--fingerprint", AWKWARD.fingerprint], top) == 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert requests == [1]


def test_generated_images_are_made_again_and_only_by_the_same_drawing(top: Path) -> None:
    spec = json.loads(json.dumps(vars(GenerateSpec(("rid",), train=2, val=1, test=0, image_px=32))))
    note = top / "input/data/config/generated.json"
    note.write_text(json.dumps({"rid": spec}))
    found = training_job.read_config(top / "input/data", AWKWARD.fingerprint)
    assert describe_origin(find_dataset("rid", Path(found.data_root))) == "GENERATED"
    note.write_text(json.dumps({"rid": {**spec, "drawing": 0}}))
    with pytest.raises(ConfigError, match="drawing 0"):
        training_job.read_config(top / "input/data", AWKWARD.fingerprint)
