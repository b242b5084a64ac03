"""An experiment: the runs that are opened in it, and those that it has."""

import getpass
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from roofscale.measurement import Outcome
from roofscale.tracking.apply import artifacts_of, keeps_models
from roofscale.tracking.outbox import Outbox
from roofscale.tracking.records import RunRecord, is_not_found, search
from roofscale.tracking.run import TrackedRun
from roofscale.tracking.sender import Sender
from roofscale.tracking.server import ServerAway, store_exists, tracking_uri, translate_errors, wait_seconds
from roofscale.tracking.sync import OUTBOX, send_abandoned

_T = TypeVar("_T")
_RUNS = Path("runs")
_log = logging.getLogger(__name__)
_PAUSE_SECONDS = 0.5


def check_server() -> None:
    """Ask the server something, to know before anything else is done that it answers; a local database is not made.

    Raises:
        TrackingError: there is no answer, or none of a tracking server.
    """
    if store_exists():
        with translate_errors():
            MlflowClient().search_experiments(max_results=1)


class Tracker:
    """An experiment on the MLflow tracking server that ``MLFLOW_TRACKING_URI`` names, or a local database.

    A server that goes away is waited for only where nothing can go on without it: to open a run, and to close the
    tracker. What an earlier process could not send is sent first.

    Args:
        runs: the folder of the runs, where what cannot be sent is kept.

    Raises:
        TrackingError: there is no answer, or none of a tracking server.
    """

    def __init__(self, experiment: str, runs: Path = _RUNS) -> None:
        self.experiment = experiment
        self._patience = wait_seconds()
        with translate_errors():
            self.client = MlflowClient()
            found = self.client.get_experiment_by_name(experiment)
            if found is not None and found.lifecycle_stage == "deleted":
                self.client.restore_experiment(found.experiment_id)
            # The UI opens an experiment of this kind on its training runs, not on traces of language models.
            kind = {"mlflow.experimentKind": "custom_model_development"}
            self.experiment_id = found.experiment_id if found else self.client.create_experiment(experiment, tags=kind)
            if found and not kind.keys() <= found.tags.keys():  # `mlflow run --experiment-name` has made it
                self.client.set_experiment_tag(self.experiment_id, *next(iter(kind.items())))
            self._note_abilities()
        self._runs: Path | None = runs  # until what was left behind there is sent
        self._sending_first = threading.Lock()
        self._sender = Sender(self.client, Outbox(runs / OUTBOX, tracking_uri()))

    def _note_abilities(self) -> None:
        """Say of a server that is older than what we log how that is kept there."""
        if not keeps_models(self.client, self.experiment_id):
            _log.warning(
                f"{tracking_uri()}: a tracking server of a version before MLflow 3, without logged models; the model "
                "of a run is kept among its artifacts."
            )

    @classmethod
    def find(cls, experiment: str) -> "Tracker | None":
        """Like the constructor, but nothing is created: None where there is no such experiment, or it is deleted."""
        with translate_errors():
            found = MlflowClient().get_experiment_by_name(experiment) if store_exists() else None
        return cls(experiment) if found and found.lifecycle_stage != "deleted" else None

    @property
    def uri(self) -> str:
        """Where this is tracked, without a password."""
        return tracking_uri()

    def start(self, name: str, tags: Mapping[str, str], parent: TrackedRun | None = None) -> TrackedRun:
        """Open a run; with ``parent``, a child of it.

        Raises:
            TrackingError: the server is away and did not come back in time; says what is kept.
        """
        self._require_all_sent()
        nested = {"mlflow.parentRunId": parent.run_id} if parent else {}
        source = {"mlflow.source.name": "roofscale", "mlflow.source.type": "PROJECT", "mlflow.user": _user()}
        said = {**source, **tags, **nested}
        run = self._patiently(lambda: self.client.create_run(self.experiment_id, tags=said, run_name=name))
        return TrackedRun(self._sender, run.info.run_id, run.info.start_time / 1000)

    def adopt(self, run_id: str, name: str, tags: Mapping[str, str]) -> TrackedRun | None:
        """Make an empty run of this experiment what ``start`` would have opened; None where the server lost it."""
        run = self.resume(run_id)
        if run:
            run.set_tags({**tags, "mlflow.runName": name})
        return run

    def resume(self, run_id: str) -> TrackedRun | None:
        """Open a run again that an earlier process left; None where the server no longer has it.

        Raises:
            TrackingError: the server is away.
        """
        self._require_all_sent()
        return self._patiently(lambda: self._resume(run_id))

    def _resume(self, run_id: str) -> TrackedRun | None:
        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            if is_not_found(error):
                return None
            raise
        if run.info.lifecycle_stage == "deleted":
            return None
        self.client.update_run(run_id, status="RUNNING")
        last_steps = {
            name: max(int(point.step) for point in self.client.get_metric_history(run_id, name))
            for name in run.data.metrics
        }
        return TrackedRun(self._sender, run_id, run.info.start_time / 1000, last_steps)

    def open(self, run_id: str) -> TrackedRun:
        """A run as it stands, over or not, to say more of it; its metrics are not gone on with."""
        return TrackedRun(self._sender, run_id, time.time())

    def close(self, wait: bool = True) -> None:
        """See to it that all that was logged is on the server.

        Args:
            wait: for a server that is away, as long as one is patient; not where somebody wants us to stop.

        Raises:
            TrackingError: the server is away; says what is kept.
        """
        self._sender.close(self._patience if wait else 0.0)

    def attempts(self) -> list[RunRecord]:
        """The runs of this experiment that are nobody's child, newest first; deleted ones are left out."""
        with translate_errors():
            runs = search(self.client, self.experiment_id, "", "attributes.start_time DESC")
        return [run for run in runs if run.parent_id is None]

    def children(self, parent_id: str) -> list[RunRecord]:
        """The runs that were opened under this one, oldest first; deleted ones are left out."""
        condition = f"tags.`mlflow.parentRunId` = '{parent_id}'"
        with translate_errors():
            return search(self.client, self.experiment_id, condition, "attributes.start_time ASC")

    def close_lost(self, parent_id: str) -> None:
        """Close the runs under this one that a killed process left open; one that is resumed is opened again."""
        for child in self.children(parent_id):
            if child.status == "RUNNING":
                self.open(child.run_id).finish(Outcome.INTERRUPTED)

    def read_text(self, run_id: str, artifact: str) -> str | None:
        """The text of a run's artifact; None where the run has no such artifact."""
        with tempfile.TemporaryDirectory() as folder:
            file = self.download(run_id, artifact, Path(folder))
            return file.read_text(encoding="utf-8") if file else None

    def download(self, run_id: str, artifact: str, folder: Path) -> Path | None:
        """Fetch a file or folder of a run's artifacts into a folder; None where the run has no such artifact."""
        with translate_errors():
            artifacts = artifacts_of(self.client, run_id)
            beside = artifacts.list_artifacts(str(Path(artifact).parent).removeprefix("."))
            if all(item.path != artifact for item in beside):
                return None
            return Path(artifacts.download_artifacts(artifact, str(folder)))  # type: ignore[no-untyped-call]

    def _require_all_sent(self) -> None:
        with self._sending_first:
            if self._runs is not None:
                list(send_abandoned(self._runs))
                self._runs = None
        self._sender.flush_or_raise(self._patience)

    def _patiently(self, ask: Callable[[], _T]) -> _T:
        """Ask again, as long as one is patient, where the server has gone between two runs."""
        deadline = time.monotonic() + self._patience
        while True:
            try:
                with translate_errors():
                    return ask()
            except ServerAway:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE_SECONDS)


def _user() -> str:
    """The user's name, or number in a container whose system has no name for it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
