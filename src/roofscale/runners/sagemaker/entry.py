"""The work of process 1 of a training job, see ``roofscale.training_job``.

It reads the run config from the job's channel and runs it with the ``LocalRunner``, in /opt/ml/checkpoints. The service
copies that folder to S3, where the next job of the run finds the checkpoint and the launcher finds the run's files.

Heavy modules are imported after the signal handlers are set: the kernel drops signals to process 1 without a handler.
"""

import argparse
import dataclasses
import json
import os
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from roofscale import config as configs
from roofscale.config import RunConfig
from roofscale.errors import ConfigError, RoofscaleError
from roofscale.measurement import Measurement, Outcome, ResourceSample
from roofscale.monitoring.sampler import DownsampledSeries
from roofscale.runners.outcome import PEER_FAILED
from roofscale.runners.sagemaker import multi_node
from roofscale.runners.sagemaker.job_outcome import failure_text
from roofscale.runners.sagemaker.request import CONFIG, CONFIG_CHANNEL, GENERATED
from roofscale.runners.supervise import Listener, Listeners, SilentListener, StopRequest
from roofscale.runners.torchrun import Nodes

RUN_ID = "MLFLOW_RUN_ID"  # variable of a job that logs itself: the MLflow run of its launcher
ONLY = "only"  # key in such a spec: the images that the run reads; the others are not generated
_SECONDS_BETWEEN_LINES = 10.0  # of the log, which CloudWatch keeps and bills; also between samples of the instance
_MOST_ROWS = 1024  # samples of the instance; above it the series is thinned


class RunLog(SilentListener):
    """Listener that logs the run of a job; this one logs nothing, as the launcher does."""

    def finish(self, measurement: Measurement, config: RunConfig | None, run_dir: Path) -> Measurement:
        """Log the end of the run; return the measurement, with the fact ``LOGGED_BY`` if all is logged."""
        return measurement


def main(
    words: Sequence[str], top: Path = Path("/opt/ml"), open_log: Callable[[int], RunLog] = lambda _: RunLog()
) -> int:
    """Run the job and return its exit code: 0 if the outcome is ``ok``, else 1.

    Args:
        words: ``--fingerprint`` with that of the wanted config, and SageMaker's own word ``train``; both can be absent.
        top: the service's folder, with input/, output/ and checkpoints/ as the service documents them.
        open_log: makes the log of the run, given this machine's index among those of the job.
    """
    signals: list[int] = []  # received before the runner exists
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: signals.append(number))
    parser = argparse.ArgumentParser()
    parser.add_argument("train", nargs="?", choices=["train"], help="what SageMaker calls an image with")
    parser.add_argument("--fingerprint", default="", help="of the run config that was asked for")
    fingerprint = parser.parse_args(words).fingerprint
    os.chdir(tempfile.mkdtemp(prefix="roofscale-"))
    nodes = multi_node.read_resource_config(top / multi_node.RESOURCE_CONFIG)
    run_dir = multi_node.node_folder(top / "checkpoints", nodes.rank)
    log, config = open_log(nodes.rank), None
    try:
        config = read_config(top / "input/data", fingerprint)
        with InstanceMetrics(log, multi_node.node_name(nodes)) as machine:
            measurement = _run(config, run_dir, signals, nodes, log)
        measurement = machine.added_to(measurement)
    except RoofscaleError as error:
        measurement = Measurement(Outcome.CRASHED, str(error), fingerprint)
    except Exception as error:  # of any kind: FailureReason must contain the cause and not just an exit code
        traceback.print_exc()
        measurement = Measurement(Outcome.CRASHED, f"{type(error).__name__}: {error}", fingerprint)
    write_results(measurement, top / "output", nodes.rank)  # first, as the service may kill a job that still logs
    if (logged := log.finish(measurement, config, run_dir)) is not measurement:
        logged.save(top / "output/data" / multi_node.measurement_name(nodes.rank))
    return 0 if measurement.outcome is Outcome.OK else 1


def read_config(channels: Path, fingerprint: str) -> RunConfig:
    """Return the run config of the job's channel, with the data root inside the job; generates data if it must.

    Raises:
        ConfigError: this image's version of Roofscale computes another fingerprint from the file than the launcher.
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
    """Generate the launcher's images and return their root; the same spec gives the same files bit for bit.

    Raises:
        ConfigError: this image has another version of the renderer.
    """
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


def _run(config: RunConfig, run_dir: Path, signals: Sequence[int], nodes: Nodes, log: RunLog) -> Measurement:
    from roofscale.runners.local import LocalRunner

    listener = Listeners(LogListener(), log)
    return LocalRunner(run_dir, listener, stop_request=StopRequest(len(signals)), nodes=nodes)(config)


class InstanceMetrics:
    """MLflow's system metrics of the job's instance, sampled by a thread inside the ``with`` block.

    The launcher cannot sample them: its own system metrics are those of another machine. The thread also imports MLflow
    and ``build_measurement``, so that these imports run while the training process starts and delay nothing.
    """

    def __init__(self, listener: Listener, node: str) -> None:
        self._listener, self._node = listener, node
        self.rows = DownsampledSeries[ResourceSample](_SECONDS_BETWEEN_LINES, _MOST_ROWS)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="machine", daemon=True)

    def __enter__(self) -> "InstanceMetrics":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def added_to(self, measurement: Measurement) -> Measurement:
        """Return the measurement with the samples merged into its resources, by time."""
        rows = sorted((*measurement.resources, *self.rows.values), key=lambda row: row.time)
        return dataclasses.replace(measurement, resources=tuple(rows))

    def _sample(self) -> None:
        from roofscale.runners import build_measurement  # noqa: F401  (imported early, see above)
        from roofscale.tracking.system_metrics import system_metrics

        with system_metrics(self._add, self._node):
            self._over.wait()

    def _add(self, metrics: Mapping[str, float]) -> None:
        row = ResourceSample(time.time(), dict(metrics))
        self.rows.add(row)
        self._listener.resources(row)


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
    """A listener that writes the run's progress to the job's log, one line per ten seconds of training."""

    def __init__(self) -> None:
        self._last_line = 0.0

    def event(self, event: Mapping[str, Any]) -> None:
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
