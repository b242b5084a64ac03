"""Process 1 of a training job: ``python -m roofscale.training_job --fingerprint ...``, or the image with ``train``.

It reads the run config from the job's channel and runs it with the ``LocalRunner``, in /opt/ml/checkpoints. The service
copies that folder to S3, where the next job of the run finds the checkpoint and the launcher finds the run's files. If
the job's environment names an MLflow run, the job logs to it.

Heavy modules are imported after the signal handlers are set: the kernel drops signals to process 1 without a handler.
"""

import argparse
import dataclasses
import json
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from roofscale import config as configs
from roofscale.config import RunConfig
from roofscale.errors import ConfigError, RoofscaleError
from roofscale.measurement import LOGGED_BY, Measurement, Outcome, ResourceSample
from roofscale.monitoring.sampler import DownsampledSeries
from roofscale.runners.events import Event
from roofscale.runners.local import MEASUREMENT, LocalRunner
from roofscale.runners.outcome import PEER_FAILED
from roofscale.runners.sagemaker import multi_node
from roofscale.runners.sagemaker.job_outcome import failure_text
from roofscale.runners.sagemaker.request import CONFIG, CONFIG_CHANNEL, GENERATED, ONLY, RUN_ID
from roofscale.runners.supervise import Listener, Listeners, SilentListener, StopRequest
from roofscale.runners.torchrun import Nodes

if TYPE_CHECKING:
    from roofscale.tracking import TrackedRun, Tracker

_SECONDS_BETWEEN_LINES = 10.0  # of the log, which CloudWatch keeps and bills; also between samples of the instance
_MOST_ROWS = 1024  # samples of the instance; above it the series is thinned
_RETRY_SECONDS = 20.0  # between attempts to reach the tracking server at the start


def main(words: Sequence[str], top: Path = Path("/opt/ml")) -> int:
    """Run the job and return its exit code: 0 if the outcome is ``ok``, else 1.

    Args:
        words: ``--fingerprint`` with that of the wanted config, and SageMaker's own word ``train``; both can be absent.
        top: the service's folder, with input/, output/ and checkpoints/ as the service documents them.
    """
    stop_request = StopRequest()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop_request.request())
    parser = argparse.ArgumentParser()
    parser.add_argument("train", nargs="?", choices=["train"], help="what SageMaker calls an image with")
    parser.add_argument("--fingerprint", default="", help="of the run config that was asked for")
    fingerprint = parser.parse_args(words).fingerprint
    os.chdir(tempfile.mkdtemp(prefix="roofscale-"))
    nodes = multi_node.read_resource_config(top / multi_node.RESOURCE_CONFIG)
    run_dir = multi_node.node_folder(top / "checkpoints", nodes.rank)
    log = MlflowLog(nodes.rank) if os.environ.get(RUN_ID) else None
    config: RunConfig | None = None
    try:
        config = read_config(top / "input/data", fingerprint)
        listener = Listeners(LogListener(), log or SilentListener())
        measurement = _run(config, run_dir, nodes, listener, stop_request)
    except RoofscaleError as error:
        measurement = Measurement(Outcome.CRASHED, str(error), fingerprint)
    except Exception as error:  # of any kind: FailureReason must contain the cause and not just an exit code
        traceback.print_exc()
        measurement = Measurement(Outcome.CRASHED, f"{type(error).__name__}: {error}", fingerprint)
    write_results(measurement, top / "output", nodes.rank)  # first, as the service may kill a job that still logs
    if log and (logged := log.finish(measurement, config, run_dir)):
        logged.save(top / "output/data" / multi_node.measurement_name(nodes.rank))
    return 0 if measurement.outcome is Outcome.OK else 1


def read_config(channels: Path, fingerprint: str) -> RunConfig:
    """Return the run config of the job's channel, with the data root inside the job; generates data if it must.

    Raises:
        ConfigError: this image's version of Roofscale computes another fingerprint or other images than the launcher.
    """
    folder = channels / CONFIG_CHANNEL
    config = configs.load(overrides=json.loads((folder / CONFIG).read_text(encoding="utf-8")))
    if fingerprint and config.fingerprint != fingerprint:
        raise ConfigError(
            f"the image computes run config {config.fingerprint}, and {fingerprint} was asked for: it holds another "
            "version of Roofscale than the launcher; build and push it again."
        )
    generated = folder / GENERATED
    root = _generate(json.loads(generated.read_text(encoding="utf-8"))) if generated.exists() else channels
    return config.with_overrides({"data_root": str(root)})


def _generate(specs: Mapping[str, Any]) -> Path:
    """Generate the launcher's images and return their root; the same spec gives the same files bit for bit."""
    from roofscale.data.synthetic import GenerateSpec, generate
    from roofscale.data.synthetic.spec import RENDER_VERSION

    root = Path("generated").absolute()
    for spec in specs.values():
        if spec["drawing"] != RENDER_VERSION:
            raise ConfigError(
                f"the launcher's images are of drawing {spec['drawing']}, and this image makes drawing "
                f"{RENDER_VERSION}: it holds another version of Roofscale; build and push it again."
            )
        fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in spec.items()}
        only = fields.pop(ONLY, ())
        generate(root, GenerateSpec(**fields), only=only)
    return root


def _run(config: RunConfig, run_dir: Path, nodes: Nodes, listener: Listener, stop_request: StopRequest) -> Measurement:
    """Run the config; return its measurement, with the instance's system metrics among the resources."""
    node = f"node_{nodes.rank}" if len(nodes.names) > 1 else ""  # as MLflow names it
    with _instance_metrics(listener, node) as samples:
        measurement = LocalRunner(run_dir, listener, stop_request=stop_request, nodes=nodes)(config)
    rows = sorted((*measurement.resources, *samples.values), key=lambda row: row.time)
    return dataclasses.replace(measurement, resources=tuple(rows))


@contextmanager
def _instance_metrics(listener: Listener, node: str) -> Iterator[DownsampledSeries[ResourceSample]]:
    """Sample MLflow's system metrics of the job's instance, in a thread, until the block ends; yield the samples.

    The launcher cannot sample them: its own system metrics are those of another machine. The thread also imports
    MLflow, so that this import runs while the training process starts and delays nothing.
    """
    samples = DownsampledSeries[ResourceSample](_SECONDS_BETWEEN_LINES, _MOST_ROWS)
    over = threading.Event()

    def add(metrics: Mapping[str, float]) -> None:
        sample = ResourceSample(time.time(), dict(metrics))
        samples.add(sample)
        listener.resources(sample)

    def collect() -> None:
        from roofscale.tracking.system_metrics import system_metrics

        with system_metrics(add, node):
            over.wait()

    thread = threading.Thread(target=collect, name="instance metrics", daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def write_results(measurement: Measurement, output: Path, rank: int = 0) -> None:
    """Write the measurement for the launcher, and the cause of a failure for the service's FailureReason.

    A machine that ended only because another one failed writes no cause: the reason is that of the machine that failed.
    """
    (output / "data").mkdir(parents=True, exist_ok=True)
    measurement.save(output / "data" / multi_node.measurement_name(rank))
    cause = failure_text(measurement)
    print(cause, flush=True)
    if measurement.outcome is not Outcome.OK and not measurement.detail.startswith(PEER_FAILED):
        (output / "failure").write_text(cause, encoding="utf-8")


class LogListener(SilentListener):
    """Listener that prints the run's progress to the job's log, one line per ten seconds of training."""

    def __init__(self) -> None:
        self._last_line = 0.0

    def event(self, event: Event) -> None:
        """Print the plan, steps at the interval, and every validation."""
        kind = event["event"]
        if kind == "step" and time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            print(f"step {event['step']}: loss {event['loss']:.4f}, {event['seconds']:.3g} s", flush=True)
        elif kind == "start":
            print(f"{event['steps_planned']} steps planned; {json.dumps(event['facts'])}", flush=True)
        elif kind == "validation":
            result = event["validation"]
            print(f"validation of {result['dataset']}: {json.dumps(result['metrics'])}", flush=True)


class MlflowLog(SilentListener):
    """Listener that logs the run of a job to the MLflow run that its launcher has opened.

    A thread of its own opens the run and logs, so that neither the import of MLflow nor a server that does not answer
    delays the training. What it cannot log, the launcher logs once it fetches the result.

    Args:
        rank: of this machine in the job; the first one logs the run, the others only their resources.
    """

    def __init__(self, rank: int = 0) -> None:
        self._rank = rank
        self._queue: SimpleQueue[Event | ResourceSample | None] = SimpleQueue()  # None is the end
        self._over = threading.Event()
        self._opened: tuple[Tracker, TrackedRun] | None = None
        self._thread = threading.Thread(target=self._log, name="mlflow", daemon=True)
        self._thread.start()

    def event(self, event: Event) -> None:
        """Queue an event of the training process."""
        if not self._rank:
            self._queue.put(event)

    def resources(self, sample: ResourceSample) -> None:
        """Queue a sample of this machine's resources."""
        self._queue.put(ResourceSample(sample.time, multi_node.of_node(self._rank, sample.metrics)))

    def finish(self, measurement: Measurement, config: RunConfig | None, run_dir: Path) -> Measurement | None:
        """Log the end of the run with its artifacts and close it.

        Returns:
            The measurement with the fact ``LOGGED_BY``; None if the server does not have everything.
        """
        self._over.set()
        self._queue.put(None)
        self._thread.join()
        if self._opened is None:
            return None
        tracker, run = self._opened
        logged = dataclasses.replace(measurement, facts={**measurement.facts, LOGGED_BY: "the job"})
        try:
            if self._rank:
                run.flush()
            else:
                _log_end(run, logged, config, run_dir)
            tracker.close(wait=measurement.outcome is not Outcome.INTERRUPTED)
        except Exception as error:  # of any kind: the run itself is over, and the launcher logs what is missing
            print(f"MLflow: {type(error).__name__}: {error} The launcher logs what is missing.", flush=True)
            return None
        return None if tracker.has_refused else logged

    def _log(self) -> None:
        """Open the run, trying again until the job ends, then log what is queued."""
        try:
            while (run := self._open()) is None:
                if self._over.wait(_RETRY_SECONDS):
                    return
            while (item := self._queue.get()) is not None:
                if isinstance(item, ResourceSample):
                    run.resources(item)
                else:
                    run.event(item)
        except Exception as error:  # of any kind: a fault of the log must not end the run
            self._opened = None
            print(f"MLflow: {type(error).__name__}: {error}", flush=True)

    def _open(self) -> "TrackedRun | None":
        from roofscale.tracking import Tracker

        run_id = os.environ[RUN_ID]
        try:
            tracker = Tracker.of_run(run_id)
            run = tracker.open(run_id) if self._rank else tracker.resume(run_id)  # only the first machine reopens it
        except RoofscaleError as error:
            print(f"MLflow: {error}", flush=True)
            return None
        if run:
            self._opened = (tracker, run)
        return run


def _log_end(run: "TrackedRun", measurement: Measurement, config: RunConfig | None, run_dir: Path) -> None:
    """Log summary and artifacts, and close the run."""
    measurement.save(run_dir / MEASUREMENT)
    run.log_summary(measurement)
    try:
        if config is None or measurement.outcome is Outcome.INTERRUPTED:
            return
        if config.stop_precision:  # a trial: there are thousands, and a study has figures of its own
            run.artifact(run_dir / MEASUREMENT)
            return
        from roofscale.report.artifacts import publish_run

        publish_run(run, config, measurement, run_dir, keep_weights=True)  # the launcher may have to log them
    finally:
        run.finish(measurement.outcome, measurement.ended)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
