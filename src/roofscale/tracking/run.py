"""Tracked run: what Roofscale logs to one MLflow run, during and after training."""

import math
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec

from roofscale.addresses import without_secrets
from roofscale.config import RunConfig
from roofscale.errors import EnvironmentFault, to_user_error
from roofscale.measurement import Measurement, Outcome, ResourceSample
from roofscale.tracking.apply import MODEL
from roofscale.tracking.outbox import Operation
from roofscale.tracking.sender import Sender
from roofscale.tracking.system_metrics import system_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

_FLUSH_SECONDS = 2.0  # between batches of metrics: buffered, logging costs 0.4 ms per step, a call per step 4 ms
_BATCH = 1000  # MLflow's limit of metrics per call
_TAG_LENGTH = 8000  # MLflow's limit of characters per tag
_KNOBS_AS_METRICS = ("max_samples", "batch_size", "num_workers", "image_size")
_STEP_SERIES = {  # metric: field of a step event
    "train/loss": "loss",
    "train/grad_norm": "grad_norm",
    "train/lr": "lr",
    "step/seconds": "seconds",
    "step/wait_seconds": "wait_seconds",
}


class TrackedRun:
    """One MLflow run, and the listener that receives a runner's events and resources.

    The supervising thread calls ``event`` and ``resources``, so these never wait. All other methods return when the
    server has stored the data or, if the server does not answer, when the data is in the outbox.

    Args:
        started: start of the run, epoch seconds; the resource series count from it.
        last_steps: the newest step of each metric that the server has. A resumed run repeats the steps since its
            checkpoint; with it each point is logged once.
    """

    def __init__(
        self, sender: Sender, run_id: str, started: float, last_steps: Mapping[str, int] | None = None
    ) -> None:
        self.run_id = run_id
        self._sender, self._started = sender, started
        self._last_steps = dict(last_steps or {})
        self._points: list[tuple[str, float, int, int]] = []  # name, value, epoch milliseconds, step
        self._posted = time.monotonic()
        self._elsewhere = False  # whether the run executes on another machine
        self._logs_itself = False  # whether it runs there now, and logs itself
        self._lock = threading.RLock()  # the thread of the system metrics logs too

    def log_params(self, config: RunConfig) -> None:
        """Log the run config, every knob under its own name; the main numeric knobs as metrics too.

        MLflow sorts and filters parameters as text, which puts 8 after 16; metrics it compares as numbers.
        """
        self._add({f"knob/{name}": float(getattr(config, name)) for name in _KNOBS_AS_METRICS})
        self._send("batch", {"params": config.to_strings()})

    def log_forecast(self, metrics: Mapping[str, float]) -> None:
        """Log the forecast metrics, and wait for them to be sent: they must be on record before the run begins."""
        self._add(metrics)
        self.flush()

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; values are cut to MLflow's limit of 8000 characters."""
        self._send("batch", {"tags": _cut(tags)})

    def set_description(self, markdown: str) -> None:
        """Set the Markdown description that the MLflow UI shows at the top of the run."""
        self.set_tags({"mlflow.note.content": markdown})

    def event(self, event: Mapping[str, Any]) -> None:
        """Log one event of the training process (see ``roofscale.measurement``), unless the run logs itself."""
        kind = event["event"]
        if kind == "elsewhere":
            self._elsewhere, self._logs_itself = True, event.get("logs_itself", False)
        elif self._logs_itself:
            return
        elif kind == "start":
            self._post("batch", {"tags": _cut({**event["facts"], "steps_planned": str(event["steps_planned"])})})
            for dataset in event.get("inputs", ()):
                self._post("dataset", dataset)
        elif kind == "step":
            self._log({name: event[field] for name, field in _STEP_SERIES.items()}, event["step"], event["time"])
        elif kind == "validation":
            validation = event["validation"]
            metrics = {f"val/{validation['dataset']}/{name}": value for name, value in validation["metrics"].items()}
            self._log(metrics, validation["step"], event["time"])

    def resources(self, sample: ResourceSample) -> None:
        """Log one sample of the process tree's resources; the x axis is seconds since the start, not training steps."""
        if not self._logs_itself:
            self._log(sample.metrics, int(sample.time - self._started), sample.time)

    def log_summary(self, measurement: Measurement) -> None:
        """Log the measurement's metrics, facts, outcome and detail.

        A metric that is also a series gets the total as its last point, which is the value that lists of runs show.
        Steps and times follow from the measurement, so that a job and its launcher log the same points.
        """
        if self._logs_itself:
            return
        ended = measurement.ended or time.time()
        series = {name for row in measurement.resources for name in row.metrics}
        with self._lock:
            for name, value in measurement.metrics.items():
                if not name.startswith("val/") and math.isfinite(value):
                    last = int(ended - self._started) if name in series else self._last_steps.get(name, 0)
                    self._points.append((name, float(value), int(ended * 1000), last + 1 if last else 0))
        self.flush()
        self.set_tags({**measurement.facts, "outcome": measurement.outcome, "outcome_detail": measurement.detail})

    def figure(self, figure: "Figure", path: str) -> None:
        """Log a figure as an artifact."""
        with _file_named(path) as file:
            figure.savefig(file)
            self.artifact(file, _folder_of(path))

    def artifact(self, file: Path, folder: str | None = None) -> None:
        """Log a file as an artifact."""
        self._send("artifact", {"folder": folder}, file)

    def text(self, content: str, path: str) -> None:
        """Log a text as a UTF-8 artifact."""
        with _file_named(path) as file:
            file.write_text(content, encoding="utf-8")
            self.artifact(file, _folder_of(path))

    def set_aliases(self, *aliases: str) -> None:
        """Register the run's model, if it has one, and point these aliases to it; idempotent."""
        self._send("promote", {"aliases": aliases})

    def finish(self, outcome: Outcome, ended: float | None = None) -> None:
        """Close the run: FINISHED if it ended well, KILLED if it was interrupted, else FAILED.

        A run that a job logs, and that the launcher leaves while it runs, is closed by its job.

        Args:
            ended: epoch seconds; None: now.
        """
        if self._logs_itself:
            return
        self._post_points()
        status = {Outcome.OK: "FINISHED", Outcome.INTERRUPTED: "KILLED"}.get(outcome, "FAILED")
        self._send("status", {"status": status, "ended": int((ended or time.time()) * 1000)})

    @contextmanager
    def closed_on_error(self) -> Iterator[None]:
        """Close the run if the block raises an error that the user can solve, with the message as the run's detail.

        Its status is FAILED, or KILLED if the environment is at fault. Any other exception leaves the run open, like a
        kill. In either case the same command resumes the run.
        """
        try:
            yield
        except Exception as error:
            if solvable := to_user_error(error):
                outcome = Outcome.INTERRUPTED if isinstance(solvable, EnvironmentFault) else Outcome.CRASHED
                self.log_summary(Measurement(outcome, without_secrets(str(solvable)), fingerprint=""))
                self.finish(outcome)
            raise

    def flush(self) -> None:
        """Send the buffered metrics, and wait until they are sent or in the outbox."""
        self._post_points()
        self._sender.flush()

    @contextmanager
    def system_metrics(self) -> Iterator[None]:
        """Log MLflow's system metrics of the whole machine until the block ends.

        Not for a run that turns out to execute on another machine: its own system metrics arrive as resources.
        """
        with system_metrics(lambda metrics: None if self._elsewhere else self._add(metrics)):
            yield

    def model(self, write: Callable[[Path], object]) -> None:
        """Log the model that ``write`` saves to the folder it is given, such as ``save_model``."""
        with _file_named(MODEL) as folder:
            write(folder)
            self._send("model", {}, folder)

    def _add(self, metrics: Mapping[str, float]) -> None:
        """Append each metric to its series, one step after the last point."""
        now = time.time()
        for name, value in metrics.items():
            self._log({name: value}, self._last_steps.get(name, -1) + 1, now)

    def _log(self, metrics: Mapping[str, float], step: int, when: float) -> None:
        stamp = int(when * 1000)
        with self._lock:
            for name, value in metrics.items():
                # NaN means 'not measured', but MLflow's charts would draw it as a point.
                if math.isfinite(value) and step > self._last_steps.get(name, -1):
                    self._points.append((name, float(value), stamp, step))
                    self._last_steps[name] = step
            if time.monotonic() - self._posted > _FLUSH_SECONDS:
                self._post_points()

    def _post_points(self) -> None:
        with self._lock:
            while self._points:
                self._post("batch", {"metrics": self._points[:_BATCH]})
                del self._points[:_BATCH]
            self._posted = time.monotonic()

    def _post(self, kind: str, content: Mapping[str, Any], path: Path | None = None) -> None:
        self._sender.enqueue(Operation(kind, self.run_id, content, path))

    def _send(self, kind: str, content: Mapping[str, Any], path: Path | None = None) -> None:
        self._post(kind, content, path)
        self._sender.flush()


def save_model(model: "nn.Module", image_size: int, folder: Path) -> None:
    """Save a model in MLflow's format, as a traced graph (``pt2``).

    A traced graph loads without this project's source and without unpickling code. Input: uint8, (batch, 3, height,
    width); output: float32, (batch, ``len(CHANNELS)``, height, width); batch, height and width are dynamic.
    """
    import numpy as np
    import torch

    from roofscale.data.sample import CHANNELS

    def tensor(dtype: str, channels: int) -> Schema:
        return Schema([TensorSpec(np.dtype(dtype), (-1, channels, -1, -1))])

    # In evaluation mode, as the trace keeps the mode of batch normalisation; with two images, as a trace makes a
    # dimension of size one static.
    mlflow.pytorch.save_model(
        model.eval(),
        str(folder),
        mlflow_model=Model(),
        signature=ModelSignature(inputs=tensor("uint8", 3), outputs=tensor("float32", len(CHANNELS))),
        input_example=np.zeros((2, 3, image_size, image_size), np.uint8),
        serialization_format="pt2",
        pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}", f"numpy=={np.__version__}"],
    )


def _cut(tags: Mapping[str, str]) -> dict[str, str]:
    return {name: value[:_TAG_LENGTH] for name, value in tags.items()}


@contextmanager
def _file_named(path: str) -> Iterator[Path]:
    """Yield a temporary file or folder path with the name of this artifact; removed when the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / Path(path).name


def _folder_of(path: str) -> str | None:
    """Return the folder of an artifact's path; None if it has none, as MLflow expects."""
    folder = str(Path(path).parent)
    return None if folder == "." else folder
