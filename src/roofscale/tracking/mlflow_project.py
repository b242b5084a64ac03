"""The run that ``mlflow run`` opens around an entry point: told from a run of the user's own, and made use of."""

import contextlib
import os
from dataclasses import dataclass

from mlflow import MlflowClient

from roofscale import invocation
from roofscale.tracking.server import TrackingError, store_exists, translate_errors


@dataclass(frozen=True)
class MlflowProjectRun:
    """The run that ``mlflow run`` has opened around the entry point that executes; it is never deleted."""

    run_id: str
    experiment_id: str  # whose next attempt may make the run its own; empty where several phases are climbed

    @classmethod
    def adopt(cls, entry_point: str) -> "MlflowProjectRun | None":
        """Take the run that the environment names out of it, so that nothing logs into it by accident.

        Returns:
            That run; None where there is none, or where it is not surely the one that ``mlflow run`` has just opened
            for this entry point. A pipeline may have opened a run of its own and called us as one of its steps.
        """
        os.environ.pop("MLFLOW_EXPERIMENT_ID", None)
        run_id = os.environ.pop("MLFLOW_RUN_ID", "")
        if run_id and store_exists():
            with (
                contextlib.suppress(TrackingError),
                translate_errors(),
            ):  # the command that needs a server says that it is away
                run = MlflowClient().get_run(run_id)
                is_called = run.data.tags.get("mlflow.project.entryPoint") == entry_point
                if is_called and run.info.status == "RUNNING" and not run.data.metrics:
                    invocation.through_mlflow.append(True)
                    return cls(run_id, "" if entry_point == "main" else run.info.experiment_id)
        return None

    def point_to(self, run_id: str) -> None:
        """Say in the run where the results are, unless they are in itself."""
        if run_id == self.run_id:
            return
        with contextlib.suppress(TrackingError), translate_errors():
            client = MlflowClient()
            found = client.get_run(run_id).info
            link = f"[{found.run_name}](#/experiments/{found.experiment_id}/runs/{run_id})"
            client.set_tag(self.run_id, "roofscale.run", run_id)
            client.set_tag(self.run_id, "mlflow.note.content", f"The results are in the run {link}.")
