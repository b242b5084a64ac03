"""An experiment: the runs that are opened in it, and those that it has."""

import getpass
import tempfile
from collections.abc import Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from roofscale.tracking.records import RunRecord, is_absent, search
from roofscale.tracking.run import TrackedRun
from roofscale.tracking.server import tracking_uri, was_ever_used


class Tracker:
    """An experiment on the MLflow tracking server that ``MLFLOW_TRACKING_URI`` names, or a local database."""

    def __init__(self, experiment: str) -> None:
        self.experiment = experiment
        self.client = MlflowClient()
        found = self.client.get_experiment_by_name(experiment)
        if found is not None and found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        # The UI opens an experiment of this kind on its training runs, not on traces of language models.
        kind = {"mlflow.experimentKind": "custom_model_development"}
        self.experiment_id = found.experiment_id if found else self.client.create_experiment(experiment, tags=kind)

    @classmethod
    def find(cls, experiment: str) -> "Tracker | None":
        """Like the constructor, but nothing is created: None where there is no such experiment, or it is deleted."""
        found = MlflowClient().get_experiment_by_name(experiment) if was_ever_used() else None
        return cls(experiment) if found and found.lifecycle_stage != "deleted" else None

    @property
    def uri(self) -> str:
        """Where this is tracked."""
        return tracking_uri()

    def start(self, name: str, tags: Mapping[str, str], parent: TrackedRun | None = None) -> TrackedRun:
        """Open a run; with ``parent``, a child of it."""
        nested = {"mlflow.parentRunId": parent.run_id} if parent else {}
        source = {"mlflow.source.name": "roofscale", "mlflow.source.type": "PROJECT", "mlflow.user": getpass.getuser()}
        run = self.client.create_run(self.experiment_id, tags={**source, **tags, **nested}, run_name=name)
        return TrackedRun(self.client, run.info.run_id)

    def resume(self, run_id: str) -> TrackedRun | None:
        """Open a run again that an earlier process left; None where the server no longer has it."""
        try:
            if self.client.get_run(run_id).info.lifecycle_stage == "deleted":
                return None
        except MlflowException as error:
            if is_absent(error):
                return None
            raise
        self.client.update_run(run_id, status="RUNNING")
        return TrackedRun(self.client, run_id)

    def open(self, run_id: str) -> TrackedRun:
        """A run as it stands, over or not, to say more of it."""
        return TrackedRun(self.client, run_id)

    def attempts(self) -> list[RunRecord]:
        """The runs of this experiment that are nobody's child, newest first; deleted ones are left out."""
        runs = search(self.client, self.experiment_id, "", "attributes.start_time DESC")
        return [run for run in runs if run.parent_id is None]

    def children(self, parent_id: str) -> list[RunRecord]:
        """The runs that were opened under this one, oldest first; deleted ones are left out."""
        condition = f"tags.`mlflow.parentRunId` = '{parent_id}'"
        return search(self.client, self.experiment_id, condition, "attributes.start_time ASC")

    def read_text(self, run_id: str, artifact: str) -> str | None:
        """The text of a run's artifact; None where the run has no such artifact."""
        with tempfile.TemporaryDirectory() as folder:
            file = self.download(run_id, artifact, Path(folder))
            return file.read_text(encoding="utf-8") if file else None

    def download(self, run_id: str, artifact: str, folder: Path) -> Path | None:
        """Fetch a file or folder of a run's artifacts into a folder; None where the run has no such artifact."""
        beside = self.client.list_artifacts(run_id, str(Path(artifact).parent).removeprefix("."))
        if all(item.path != artifact for item in beside):
            return None
        return Path(self.client.download_artifacts(run_id, artifact, str(folder)))
