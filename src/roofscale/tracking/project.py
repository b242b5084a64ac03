"""The run that ``mlflow run`` opens around an entry point, and how it leaves no litter."""

import contextlib
import os
import subprocess
import sys
import time
from dataclasses import dataclass

from mlflow import MlflowClient

from roofscale.tracking.server import TrackingError, asking

_DEFAULT_EXPERIMENT = "0"  # MLflow's id of the experiment 'Default'


@dataclass(frozen=True)
class ProjectRun:
    """The run that ``mlflow run`` opens by itself around an entry point."""

    client: MlflowClient
    run_id: str

    @classmethod
    def take_over(cls) -> "ProjectRun":
        """Take it out of the environment, so that nothing else logs into it by accident."""
        os.environ.pop("MLFLOW_EXPERIMENT_ID", None)
        return cls(MlflowClient(), os.environ.pop("MLFLOW_RUN_ID"))

    def settle(self, pointer: str) -> None:
        """Point to the run that holds the results, and let the empty one be removed from the experiment 'Default'.

        ``mlflow run`` closes its run after we have ended, and fails if it is gone by then; so a process of its own
        outlives us, waits for that, and deletes it. With the server away there is nothing to tidy up for.
        """
        with contextlib.suppress(TrackingError), asking():
            self._settle(pointer)

    def _settle(self, pointer: str) -> None:
        if pointer:
            self.client.set_tag(self.run_id, "roofscale.run", pointer)
        if self.client.get_run(self.run_id).info.experiment_id == _DEFAULT_EXPERIMENT:
            nowhere = subprocess.DEVNULL
            subprocess.Popen(
                [sys.executable, "-m", "roofscale.tracking", self.run_id],
                start_new_session=True,
                stdin=nowhere,
                stdout=nowhere,
                stderr=nowhere,
            )


def remove_when_closed(run_id: str) -> None:
    """Delete a run as soon as its process has closed it."""
    client = MlflowClient()
    for _ in range(120):
        if client.get_run(run_id).info.status != "RUNNING":
            client.delete_run(run_id)
            return
        time.sleep(0.5)
