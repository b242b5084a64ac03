"""Process 1 of a training job: ``python -m roofscale.training_job --fingerprint ...``, or the image with ``train``.

It runs the run config of the job's channel, see ``runners.sagemaker.entry``, and logs the run to MLflow if the job's
environment names one. Heavy modules are imported after the signal handlers are set.
"""

import dataclasses
import os
import sys
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from roofscale.config import RunConfig
from roofscale.errors import RoofscaleError
from roofscale.measurement import LOGGED_BY, Measurement, Outcome, ResourceSample
from roofscale.runners.events import Event
from roofscale.runners.local import MEASUREMENT
from roofscale.runners.sagemaker import entry, multi_node

if TYPE_CHECKING:
    from roofscale.tracking import TrackedRun, Tracker

_RETRY_SECONDS = 20.0  # between attempts to reach the tracking server at the start


class MlflowLog(entry.RunLog):
    """Log of a job's run to the MLflow run that its launcher has opened.

    A thread of its own opens the run and logs, so that neither the import of MLflow nor a server that does not answer
    delays the training. What it cannot log, the launcher logs once it fetches the result.

    Args:
        rank: of this machine in the job; the first one logs the run, the others only their resources.
    """

    def __init__(self, rank: int = 0) -> None:
        self._rank = rank
        self._given: SimpleQueue[Any] = SimpleQueue()
        self._over = threading.Event()
        self._opened: tuple[Tracker, TrackedRun] | None = None
        self._thread = threading.Thread(target=self._log, name="mlflow", daemon=True)
        self._thread.start()

    def event(self, event: Event) -> None:
        """Queue an event of the training process."""
        if not self._rank:
            self._given.put(event)

    def resources(self, sample: ResourceSample) -> None:
        """Queue a sample of this machine's resources."""
        metrics = multi_node.of_node(self._rank, sample.metrics) if self._rank else sample.metrics
        self._given.put(ResourceSample(sample.time, metrics))

    def finish(self, measurement: Measurement, config: RunConfig | None, run_dir: Path) -> Measurement:
        """Log the end of the run with its artifacts and close it; return the measurement, marked if all is logged."""
        self._over.set()
        self._given.put(None)
        self._thread.join()
        if self._opened is None:
            return measurement
        tracker, run = self._opened
        marked = dataclasses.replace(measurement, facts={**measurement.facts, LOGGED_BY: "the job"})
        try:
            if self._rank:
                run.flush()
            else:
                _log_end(run, marked, config, run_dir)
            tracker.close(wait=measurement.outcome is not Outcome.INTERRUPTED)
        except Exception as error:  # of any kind: the run itself is over, and the launcher logs what is missing
            print(f"MLflow: {type(error).__name__}: {error} The launcher logs what is missing.", flush=True)
            return measurement
        return measurement if tracker.has_refused else marked

    def _log(self) -> None:
        """Open the run, trying again until the job ends, then log what is queued."""
        try:
            while not self._open() and not self._over.wait(_RETRY_SECONDS):
                pass
            for given in iter(self._given.get, None):
                if self._opened:
                    log = self._opened[1].resources if isinstance(given, ResourceSample) else self._opened[1].event
                    log(given)
        except Exception as error:  # of any kind: a fault of the log must not end the run
            self._opened = None
            print(f"MLflow: {type(error).__name__}: {error}", flush=True)

    def _open(self) -> bool:
        from roofscale.tracking import Tracker

        run_id = os.environ[entry.RUN_ID]
        try:
            tracker = Tracker.of_run(run_id)
            run = tracker.open(run_id) if self._rank else tracker.resume(run_id)  # only the first machine reopens it
        except RoofscaleError as error:
            print(f"MLflow: {error}", flush=True)
            return False
        if run:
            self._opened = (tracker, run)
        return run is not None


def _log_end(run: "TrackedRun", measurement: Measurement, config: RunConfig | None, run_dir: Path) -> None:
    """Log summary and artifacts, and close the run."""
    measurement.save(run_dir / MEASUREMENT)
    run.log_summary(measurement)
    try:
        if config and measurement.outcome is not Outcome.INTERRUPTED:
            _publish(run, measurement, config, run_dir)
    finally:
        run.finish(measurement.outcome, measurement.ended)


def _publish(run: "TrackedRun", measurement: Measurement, config: RunConfig, run_dir: Path) -> None:
    if config.stop_precision:  # a trial of a search: there are thousands, and a study has figures of its own
        run.artifact(run_dir / MEASUREMENT)
        return
    from roofscale.report.artifacts import publish_run

    publish_run(run, config, measurement, run_dir, keep_weights=True)  # the launcher may have to log them


def open_log(rank: int) -> entry.RunLog:
    """Return the log of the run: to MLflow if the environment names a run there.

    Args:
        rank: of this machine in the job.
    """
    return MlflowLog(rank) if os.environ.get(entry.RUN_ID) else entry.RunLog()


if __name__ == "__main__":
    sys.exit(entry.main(sys.argv[1:], open_log=open_log))
