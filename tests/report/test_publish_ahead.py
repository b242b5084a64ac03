"""A launcher of jobs has what writes a model made ready beside it, once the job has trained."""

import pytest

from roofscale.config import RunConfig
from roofscale.report import publish

CONFIG = RunConfig(encoder="resnet18", image_size=64, datasets=("rid",))


def test_what_writes_the_model_is_made_ready_once_training_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[RunConfig] = []
    monkeypatch.setattr(publish, "begin", lambda work, config: begun.append(config))
    ahead = publish.Ahead(CONFIG)
    ahead.event({"event": "start", "steps_planned": 2})
    ahead.event({"event": "step", "step": 1})
    assert begun == []
    ahead.event({"event": "step", "step": 2})
    ahead.event({"event": "end", "outcome": "ok"})
    assert begun == [CONFIG]
