"""The one file that knows MLflow: experiments, attempts, steps, and the way back to them after a kill.

One MLflow experiment a phase, one parent run an attempt, one child run a step. Only the supervising process talks to
MLflow; the training process writes events, which arrive here.
"""

import getpass
import json
import logging
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from roofscale.config import RunConfig
from roofscale.measurement import Measurement, Outcome
from roofscale.train.monitor import ResourceSample

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

_FLUSH_SECONDS = 2.0  # a buffered batch costs 0.4 ms a step, a synchronous call 4 ms
_BATCH = 1000  # most metrics that MLflow takes in one call
_TAG_LENGTH = 8000  # most characters of a tag that MLflow takes
_DEFAULT_EXPERIMENT = "0"  # MLflow's id of the experiment 'Default'
_STEP_SERIES = {  # metric: field of a step event
    "train/loss": "loss",
    "train/grad_norm": "grad_norm",
    "train/lr": "lr",
    "step/seconds": "seconds",
    "step/wait_seconds": "wait_seconds",
}


# What MLflow says of its own doings would drown what a run has to say.
logging.getLogger("mlflow").setLevel(logging.WARNING)


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

    @property
    def uri(self) -> str:
        """Where this is tracked."""
        return str(mlflow.get_tracking_uri())

    def start(self, name: str, tags: Mapping[str, str], parent: "TrackedRun | None" = None) -> "TrackedRun":
        """Open a run; with ``parent``, a child of it."""
        nested = {"mlflow.parentRunId": parent.run_id} if parent else {}
        source = {"mlflow.source.name": "roofscale", "mlflow.source.type": "PROJECT", "mlflow.user": getpass.getuser()}
        run = self.client.create_run(self.experiment_id, tags={**source, **tags, **nested}, run_name=name)
        return TrackedRun(self.client, run.info.run_id)

    def resume(self, run_id: str) -> "TrackedRun | None":
        """Open a run again that an earlier process left; None where the server no longer has it."""
        try:
            if self.client.get_run(run_id).info.lifecycle_stage == "deleted":
                return None
        except MlflowException:
            return None
        self.client.update_run(run_id, status="RUNNING")
        return TrackedRun(self.client, run_id)


class TrackedRun:
    """One MLflow run; the listener that a runner reports events and resources to."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client, self.run_id = client, run_id
        self._points: list[Metric] = []
        self._flushed = time.monotonic()
        run = client.get_run(run_id)
        self._started = run.info.start_time / 1000
        # A resumed run repeats the steps since its checkpoint; the same point is logged once.
        self._last_step = {name: self._newest(name) for name in run.data.metrics}

    def params(self, config: RunConfig) -> None:
        """Log the run config, every knob under its own name."""
        self.client.log_batch(self.run_id, params=[Param(k, v) for k, v in config.written().items()])

    def tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self.client.log_batch(self.run_id, tags=[RunTag(k, v[:_TAG_LENGTH]) for k, v in tags.items()])

    def describe(self, markdown: str) -> None:
        """Set the description that the UI shows at the top of the run."""
        self.tags({"mlflow.note.content": markdown})

    def event(self, event: Mapping[str, Any]) -> None:
        """Take one event of the training process (see ``roofscale.measurement``)."""
        kind = event["event"]
        if kind == "start":
            self.tags({**event["facts"], "steps_planned": str(event["steps_planned"])})
            for used in event.get("inputs", ()):
                self._dataset(**used)
        elif kind == "step":
            self._log({name: event[field] for name, field in _STEP_SERIES.items()}, event["step"], event["time"])
        elif kind == "validation":
            found = event["validation"]
            named = {f"val/{found['dataset']}/{name}": value for name, value in found["metrics"].items()}
            self._log(named, found["step"], event["time"])

    def resources(self, sample: ResourceSample) -> None:
        """Take one sample of the process tree's resources; its series run over seconds, not training steps."""
        self._log(sample.metrics, int(sample.time - self._started), sample.time)

    def summary(self, measurement: Measurement) -> None:
        """Log what the run yielded as a whole, and how it ended.

        A metric that was also followed over time gets its total as the last point, which is what lists of runs show.
        """
        now = time.time()
        for name, value in measurement.metrics.items():
            if not name.startswith("val/"):
                self._log({name: value}, self._last_step.get(name, -1) + 1, now)
        self.flush()
        self.tags({**measurement.facts, "outcome": measurement.outcome, "outcome_detail": measurement.detail})

    def figure(self, figure: "Figure", path: str) -> None:
        """Log a figure as an artifact."""
        self.client.log_figure(self.run_id, figure, path)

    def artifact(self, file: Path, folder: str | None = None) -> None:
        """Log a file as an artifact."""
        self.client.log_artifact(self.run_id, str(file), folder)

    def finish(self, outcome: Outcome) -> None:
        """Close the run: FINISHED, KILLED where somebody interrupted it, else FAILED."""
        self.flush()
        status = {Outcome.OK: "FINISHED", Outcome.INTERRUPTED: "KILLED"}.get(outcome, "FAILED")
        self.client.set_terminated(self.run_id, status)

    def flush(self) -> None:
        """Send what is buffered; what the server does not take stays for the next time."""
        while self._points:
            self.client.log_batch(self.run_id, metrics=self._points[:_BATCH])
            del self._points[:_BATCH]
        self._flushed = time.monotonic()

    def _log(self, metrics: Mapping[str, float], step: int, when: float) -> None:
        stamp = int(when * 1000)
        for name, value in metrics.items():
            # NaN means 'not measured' here, and MLflow's charts would draw it.
            if math.isfinite(value) and step > self._last_step.get(name, -1):
                self._points.append(Metric(name, float(value), stamp, step))
                self._last_step[name] = step
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def _dataset(self, name: str, digest: str, source: str, samples: Mapping[str, int]) -> None:
        entity = Dataset(
            name=name,
            digest=digest[:36],
            source_type="local",
            source=json.dumps({"uri": source}),
            profile=json.dumps(samples),
        )
        tags = [InputTag("mlflow.data.context", "training")]
        self.client.log_inputs(self.run_id, datasets=[DatasetInput(entity, tags)])

    def _newest(self, name: str) -> int:
        return max(int(point.step) for point in self.client.get_metric_history(self.run_id, name))

    @contextmanager
    def system_metrics(self) -> Iterator[None]:
        """MLflow's own system metrics of the whole machine, for as long as the block lasts."""
        monitor: Any = SystemMetricsMonitor(self.run_id, resume_logging=True)  # type: ignore[no-untyped-call]
        monitor.start()
        try:
            yield
        finally:
            monitor.finish()

    def model(self, model: "nn.Module", image_size: int) -> None:
        """Log a model that ``mlflow.pytorch.load_model`` gives back.

        As a traced graph (``pt2``): it loads without this project's source and without unpickling code. The batch is
        left open, and so are height and width.
        """
        import numpy as np
        import torch
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec

        from roofscale.data.sample import CHANNELS

        def tensor(dtype: str, channels: int) -> Schema:
            return Schema([TensorSpec(np.dtype(dtype), (-1, channels, -1, -1))])

        example = np.zeros((2, 3, image_size, image_size), np.uint8)
        # In evaluation mode, because the trace keeps the mode of batch normalisation; two images and not one,
        # because a trace freezes a dimension of size one.
        with mlflow.start_run(run_id=self.run_id):
            mlflow.pytorch.log_model(
                model.eval(),
                name="model",
                signature=ModelSignature(inputs=tensor("uint8", 3), outputs=tensor("float32", len(CHANNELS))),
                input_example=example,
                serialization_format="pt2",
                pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}", f"numpy=={np.__version__}"],
            )
        self.client.update_run(self.run_id, status="RUNNING")


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
        outlives us, waits for that, and deletes it.
        """
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


def _remove_when_closed(run_id: str) -> None:
    client = MlflowClient()
    for _ in range(120):
        if client.get_run(run_id).info.status != "RUNNING":
            client.delete_run(run_id)
            return
        time.sleep(0.5)


if __name__ == "__main__":
    _remove_when_closed(sys.argv[1])
