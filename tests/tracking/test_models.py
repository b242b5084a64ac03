"""Models are found by every name that they have, read without running code of theirs, and registered once."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from tests.tracking.tiny_run import Tiny

from roofscale import tracking
from roofscale.config import RunConfig
from roofscale.errors import ConfigError
from roofscale.tracking import TrackedRun, Tracker, find_model, read_weights, register, save_model


@pytest.fixture
def tracker(tracking_store: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Tracker:
    monkeypatch.chdir(tmp_path)  # artifacts lie beside where the store is used from
    return Tracker("models")


def trained(tracker: Tracker, net: torch.nn.Module) -> TrackedRun:
    run = tracker.start("run", {})
    run.log_params(RunConfig(encoder="resnet18"))
    run.model(partial(save_model, net, 8))
    return run


NAMES: dict[str, Callable[[str], str]] = {
    "run": lambda run_id: run_id,
    "runs:/": lambda run_id: f"runs:/{run_id}/model",
    "alias": lambda _: "roofs@best",
    "version": lambda _: "roofs/1",
    "models:/": lambda _: "models:/roofs@best",
}


def test_a_model_is_found_by_each_of_its_names_and_comes_back_as_it_was(tracker: Tracker) -> None:
    net = Tiny()
    run = trained(tracker, net)
    trained(tracker, Tiny())
    named = register(run.run_id, "best", "roofs")
    assert named.named == "roofs/1"
    for name_of in NAMES.values():
        model = find_model(name_of(run.run_id))
        assert model.run.run_id == run.run_id
        assert model.run.params["encoder"] == "resnet18"
    for name in (run.run_id, "roofs@best"):
        weights = read_weights(find_model(name))
        assert weights.keys() == net.state_dict().keys()
        assert all(torch.equal(weights[key], value) for key, value in net.state_dict().items())


def test_registering_again_moves_the_alias_and_makes_no_second_version(tracker: Tracker) -> None:
    first, second = trained(tracker, Tiny()), trained(tracker, Tiny())
    assert [register(run.run_id, "champion").named for run in (first, second, first, first)] == [
        "roofscale/1", "roofscale/2", "roofscale/1", "roofscale/1",
    ]  # fmt: skip
    assert find_model("roofscale@champion").run.run_id == first.run_id
    assert len(tracker.client.search_model_versions("name = 'roofscale'")) == 2


def test_without_a_name_the_champion_comes_before_the_last_good(tracker: Tracker) -> None:
    good, best = trained(tracker, Tiny()), trained(tracker, Tiny())
    good.set_aliases("last-good")
    assert find_model().run.run_id == good.run_id
    best.set_aliases(tracking.CHAMPION)
    assert find_model().run.run_id == best.run_id


@pytest.mark.parametrize("named", ["0" * 32, "roofscale@champion", "roofscale/7", ""])
def test_what_is_not_there_is_said_with_a_remedy(tracker: Tracker, named: str) -> None:
    with pytest.raises(ConfigError, match=r"no model .*roofscale register RUN"):
        find_model(named)


def test_a_run_without_a_model_is_not_registered(tracker: Tracker) -> None:
    run = tracker.start("run", {})
    with pytest.raises(ConfigError, match=f"no model {run.run_id}"):
        register(run.run_id, "champion")
    assert tracker.client.search_registered_models() == []


def test_what_is_no_name_is_refused_and_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'the best one': expected the id of a run"):
        find_model("the best one")
    with pytest.raises(ConfigError, match="no model"):
        find_model()
    assert list(tmp_path.iterdir()) == []


def test_a_pickle_is_not_opened(tracker: Tracker) -> None:
    mlflow.set_experiment("models")
    with mlflow.start_run():
        mlflow.pytorch.log_model(
            Tiny(), name="model", input_example=np.zeros((2, 3, 8, 8), np.uint8), registered_model_name="theirs",
            serialization_format="pickle", pip_requirements=["torch"],
        )  # fmt: skip
    with pytest.raises(ConfigError, match="theirs/1: it is a pickle"):
        read_weights(find_model("theirs/1"))
