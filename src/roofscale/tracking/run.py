"""One MLflow run: what is logged into it while it goes on, and what it leaves."""

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from roofscale.config import RunConfig
from roofscale.measurement import Measurement, Outcome, ResourceSample
from roofscale.tracking.registry import promote

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

_FLUSH_SECONDS = 2.0  # a buffered batch costs 0.4 ms a step, a synchronous call 4 ms
_BATCH = 1000  # most metrics that MLflow takes in one call
_TAG_LENGTH = 8000  # most characters of a tag that MLflow takes
_STEP_SERIES = {  # metric: field of a step event
    "train/loss": "loss",
    "train/grad_norm": "grad_norm",
    "train/lr": "lr",
    "step/seconds": "seconds",
    "step/wait_seconds": "wait_seconds",
}


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

    def text(self, content: str, path: str) -> None:
        """Log a text as an artifact."""
        self.client.log_text(self.run_id, content, path)

    def promote(self, *aliases: str) -> None:
        """Register the run's model, if it has one, and point these aliases to it; doing it again changes nothing."""
        promote(self.client, self.run_id, aliases)

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
