"""One MLflow run: what is logged into it while it goes on, and what it leaves."""

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

from roofscale.config import RunConfig
from roofscale.measurement import Measurement, Outcome, ResourceSample
from roofscale.tracking.apply import MODEL
from roofscale.tracking.outbox import Operation
from roofscale.tracking.sender import Sender
from roofscale.tracking.system_metrics import system_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

_FLUSH_SECONDS = 2.0  # a buffered batch costs 0.4 ms a step, a synchronous call 4 ms
_BATCH = 1000  # most metrics that MLflow takes in one call
_TAG_LENGTH = 8000  # most characters of a tag that MLflow takes
_CLIMBED_BY = ("max_samples", "batch_size", "num_workers", "image_size")
_STEP_SERIES = {  # metric: field of a step event
    "train/loss": "loss",
    "train/grad_norm": "grad_norm",
    "train/lr": "lr",
    "step/seconds": "seconds",
    "step/wait_seconds": "wait_seconds",
}


class TrackedRun:
    """One MLflow run; the listener that a runner reports events and resources to.

    ``event`` and ``resources`` are called by the thread that watches a training and never wait. Everything else
    returns when the server has it, or, where the server does not answer, when it is kept in the outbox.

    Args:
        started: epoch seconds of the run's start, from which resources are counted.
        last_steps: the newest step of each metric that the server has. A resumed run repeats the steps since its
            checkpoint; the same point is logged once.
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
        self._lock = threading.RLock()  # the system metrics have a thread of their own

    def log_params(self, config: RunConfig) -> None:
        """Log the run config, every knob under its own name; those that a phase climbs by as metrics too.

        MLflow sorts and filters parameters as text, which puts 8 after 16.
        """
        self._add({f"knob/{name}": float(getattr(config, name)) for name in _CLIMBED_BY})
        self._tell("batch", {"params": config.to_strings()})

    def log_forecast(self, metrics: Mapping[str, float]) -> None:
        """Log what is foreseen of the run; the server has it before the run begins."""
        self._add(metrics)
        self.flush()

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self._tell("batch", {"tags": _cut(tags)})

    def set_description(self, markdown: str) -> None:
        """Set the description that the UI shows at the top of the run."""
        self.set_tags({"mlflow.note.content": markdown})

    def event(self, event: Mapping[str, Any]) -> None:
        """Take one event of the training process (see ``roofscale.measurement``)."""
        kind = event["event"]
        if kind == "start":
            self._post("batch", {"tags": _cut({**event["facts"], "steps_planned": str(event["steps_planned"])})})
            for used in event.get("inputs", ()):
                self._post("dataset", used)
        elif kind == "step":
            self._log({name: event[field] for name, field in _STEP_SERIES.items()}, event["step"], event["time"])
        elif kind == "validation":
            found = event["validation"]
            named = {f"val/{found['dataset']}/{name}": value for name, value in found["metrics"].items()}
            self._log(named, found["step"], event["time"])
        elif kind == "elsewhere":
            self._elsewhere = True

    def resources(self, sample: ResourceSample) -> None:
        """Take one sample of the process tree's resources; its series run over seconds, not training steps."""
        self._log(sample.metrics, int(sample.time - self._started), sample.time)

    def log_summary(self, measurement: Measurement) -> None:
        """Log what the run yielded as a whole, and how it ended.

        A metric that was also followed over time gets its total as the last point, which is what lists of runs show.
        """
        self._add({name: value for name, value in measurement.metrics.items() if not name.startswith("val/")})
        self.flush()
        self.set_tags({**measurement.facts, "outcome": measurement.outcome, "outcome_detail": measurement.detail})

    def figure(self, figure: "Figure", path: str) -> None:
        """Log a figure as an artifact."""
        with _file_named(path) as file:
            figure.savefig(file)
            self.artifact(file, _folder_of(path))

    def artifact(self, file: Path, folder: str | None = None) -> None:
        """Log a file as an artifact."""
        self._tell("artifact", {"folder": folder}, file)

    def text(self, content: str, path: str) -> None:
        """Log a text as an artifact."""
        with _file_named(path) as file:
            file.write_text(content, encoding="utf-8")
            self.artifact(file, _folder_of(path))

    def set_aliases(self, *aliases: str) -> None:
        """Register the run's model, if it has one, and point these aliases to it; doing it again changes nothing."""
        self._tell("promote", {"aliases": aliases})

    def finish(self, outcome: Outcome) -> None:
        """Close the run: FINISHED, KILLED where somebody interrupted it, else FAILED."""
        self._post_points()
        status = {Outcome.OK: "FINISHED", Outcome.INTERRUPTED: "KILLED"}.get(outcome, "FAILED")
        self._tell("status", {"status": status, "ended": int(time.time() * 1000)})

    def flush(self) -> None:
        """Send the points that are buffered."""
        self._post_points()
        self._sender.flush()

    @contextmanager
    def system_metrics(self) -> Iterator[None]:
        """MLflow's own system metrics of the whole machine, for as long as the block lasts.

        Not of this one, where the run turns out to execute elsewhere: there they are sampled, and come as resources.
        """
        with system_metrics(lambda metrics: None if self._elsewhere else self._add(metrics)):
            yield

    def model(self, write: Callable[[Path], object]) -> None:
        """Log the model that ``write`` puts into a folder, as ``save_model`` does."""
        with _file_named(MODEL) as folder:
            write(folder)
            self._tell("model", {}, folder)

    def _add(self, metrics: Mapping[str, float]) -> None:
        """Log each metric behind the last point of its series."""
        now = time.time()
        for name, value in metrics.items():
            self._log({name: value}, self._last_steps.get(name, -1) + 1, now)

    def _log(self, metrics: Mapping[str, float], step: int, when: float) -> None:
        stamp = int(when * 1000)
        with self._lock:
            for name, value in metrics.items():
                # NaN means 'not measured' here, and MLflow's charts would draw it.
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

    def _tell(self, kind: str, content: Mapping[str, Any], path: Path | None = None) -> None:
        self._post(kind, content, path)
        self._sender.flush()


def save_model(model: "nn.Module", image_size: int, folder: Path) -> None:
    """Write a model as MLflow keeps it.

    As a traced graph (``pt2``): it loads without this project's source and without unpickling code. The batch is
    left open, and so are height and width.
    """
    import numpy as np
    import torch

    from roofscale.data.sample import CHANNELS

    def tensor(dtype: str, channels: int) -> Schema:
        return Schema([TensorSpec(np.dtype(dtype), (-1, channels, -1, -1))])

    # In evaluation mode, because the trace keeps the mode of batch normalisation; two images and not one, because a
    # trace freezes a dimension of size one.
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
    """Where to put what is to be logged under this path; gone when the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / Path(path).name


def _folder_of(path: str) -> str | None:
    """The folder part of an artifact's path, as MLflow wants it."""
    folder = str(Path(path).parent)
    return None if folder == "." else folder
