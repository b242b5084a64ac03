"""The run that ``mlflow run`` opens for an entry point: how to recognise it and log into it."""

import contextlib
from dataclasses import dataclass

from mlflow import MlflowClient

from roofscale import invocation
from roofscale.tracking.server import TrackingError, store_exists, translate_errors


@dataclass(frozen=True)
class MlflowProjectRun:
    """The run that ``mlflow run`` has opened for the current entry point; Roofscale never deletes it."""

    run_id: str
    experiment_id: str  # the experiment whose next attempt may adopt the run; empty if several phases are run

    @classmethod
    def adopt(cls, run_id: str, entry_point: str) -> "MlflowProjectRun | None":
        """Return the run that the environment named (``invocation.take_mlflow_run``).

        Returns:
            The run; None if it may not be the one that ``mlflow run`` has just opened for this entry point: a pipeline
            may have opened a run of its own and called Roofscale as one of its steps.
        """
        if store_exists():
            # If the server is away, the command reports it as soon as it needs the server.
            with contextlib.suppress(TrackingError), translate_errors():
                run = MlflowClient().get_run(run_id)
                is_called = run.data.tags.get("mlflow.project.entryPoint") == entry_point
                if is_called and run.info.status == "RUNNING" and not run.data.metrics:
                    invocation.through_mlflow.append(True)
                    return cls(run_id, "" if entry_point == "main" else run.info.experiment_id)
        return None

    def point_to(self, run_id: str) -> None:
        """Link from this run to the run with the results, unless it is the same."""
        if run_id == self.run_id:
            return
        with contextlib.suppress(TrackingError), translate_errors():
            client = MlflowClient()
            target = client.get_run(run_id).info
            link = f"[{target.run_name}](#/experiments/{target.experiment_id}/runs/{run_id})"
            client.set_tag(self.run_id, "roofscale.run", run_id)
            client.set_tag(self.run_id, "mlflow.note.content", f"The results are in the run {link}.")
