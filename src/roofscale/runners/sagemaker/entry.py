"""Process 1 of a training job: ``python -m roofscale.runners.sagemaker.entry --fingerprint ...``.

It runs the config of its channel with the same local runner as everywhere, in /opt/ml/checkpoints, which the service
keeps in S3: there a job that follows finds the checkpoint, and the launcher all that the run has left. What is heavy is
imported once a signal would be heard: until Python has a handler, the kernel sends process 1 none.
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
from collections.abc import Mapping, Sequence
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
from roofscale.runners.sagemaker.request import CONFIG_CHANNEL
from roofscale.runners.torchrun import Nodes

CONFIG = "config.json"
GENERATED = "generated.json"  # by data set: the spec of what the job has to generate
ONLY = "only"  # beside such a spec: the images of it that the run reads
_SECONDS_BETWEEN_LINES = 10.0  # in the log, which CloudWatch keeps and bills; also of the machine's metrics
_MOST_ROWS = 1024  # of these


def main(words: Sequence[str], top: Path = Path("/opt/ml")) -> int:
    """Run the job that ``top`` describes; 0 where it ended well."""
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: asked.append(number))
    parser = argparse.ArgumentParser()
    parser.add_argument("--fingerprint", required=True, help="of the run config that was asked for")
    fingerprint = parser.parse_args(words).fingerprint
    os.chdir(tempfile.mkdtemp(prefix="roofscale-"))
    machines = multi_node.read_resource_config(top / multi_node.RESOURCE_CONFIG)
    try:
        config = read_config(top / "input/data", fingerprint)
        with InstanceMetrics() as machine:
            measurement = _run(config, multi_node.node_folder(top / "checkpoints", machines.place), asked, machines)
        measurement = machine.added_to(measurement)
    except RoofscaleError as error:
        measurement = Measurement(Outcome.CRASHED, str(error), fingerprint)
    except Exception as error:  # whatever it is, FailureReason is to say more than an exit code
        traceback.print_exc()
        measurement = Measurement(Outcome.CRASHED, f"{type(error).__name__}: {error}", fingerprint)
    write_results(measurement, top / "output", machines.place)
    return 0 if measurement.outcome is Outcome.OK else 1


def read_config(channels: Path, fingerprint: str) -> RunConfig:
    """The config of the job's channel, with the data root that holds in here.

    Raises:
        ConfigError: it is not the run config that was asked for, as this image understands it.
    """
    folder = channels / CONFIG_CHANNEL
    config = configs.load(overrides=json.loads((folder / CONFIG).read_text(encoding="utf-8")))
    if config.fingerprint != fingerprint:
        raise ConfigError(
            f"the image computes run config {config.fingerprint}, and {fingerprint} was asked for: it holds another "
            "version of Roofscale than the launcher; build and push it again."
        )
    generated = folder / GENERATED
    root = _generate(json.loads(generated.read_text(encoding="utf-8"))) if generated.exists() else channels
    return config.with_overrides({"data_root": str(root)})


def _generate(specs: Mapping[str, Any]) -> Path:
    """Make the same images as the launcher has; the same spec gives the same files bit for bit.

    Raises:
        ConfigError: this version of Roofscale draws them otherwise.
    """
    from roofscale.data.synthetic import GenerateSpec, generate
    from roofscale.data.synthetic.spec import RENDER_VERSION

    root = Path("generated").absolute()
    for spec in specs.values():
        if spec["drawing"] != RENDER_VERSION:
            raise ConfigError(
                f"the launcher's images are of drawing {spec['drawing']}, and this image makes "
                f"drawing {RENDER_VERSION}: it "
                "holds another version of Roofscale; build and push it again."
            )
        fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in spec.items()}
        only = fields.pop(ONLY, ())
        generate(root, GenerateSpec(**fields), only=only)
    return root


def _run(config: RunConfig, run_dir: Path, asked: Sequence[int], machines: Nodes) -> Measurement:
    from roofscale.runners.local import LocalRunner
    from roofscale.runners.supervise import StopRequest

    return LocalRunner(run_dir, LogListener(), interrupt=StopRequest(len(asked)), machines=machines)(config)


class InstanceMetrics:
    """MLflow's system metrics of the job's machine, while the block lasts; the launcher's say nothing of a job.

    MLflow is imported beside the training's own start, which nobody is to wait longer for, and so is what then sums up
    the run.
    """

    def __init__(self) -> None:
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
        """The measurement with what was sampled among its resources."""
        rows = sorted((*measurement.resources, *self.rows.values), key=lambda row: row.time)
        return dataclasses.replace(measurement, resources=tuple(rows))

    def _sample(self) -> None:
        from roofscale.runners import build_measurement  # noqa: F401
        from roofscale.tracking.system_metrics import system_metrics

        with system_metrics(lambda metrics: self.rows.add(ResourceSample(time.time(), dict(metrics)))):
            self._over.wait()


def write_results(measurement: Measurement, output: Path, place: int = 0) -> None:
    """Put the measurement where the launcher finds it, and its cause where a person does: of several machines the
    cause of the one that ended first."""
    (output / "data").mkdir(parents=True, exist_ok=True)
    measurement.save(output / "data" / multi_node.measurement_name(place))
    said = failure_text(measurement)
    print(said, flush=True)
    if measurement.outcome is not Outcome.OK and not measurement.detail.startswith(PEER_FAILED):
        (output / "failure").write_text(said, encoding="utf-8")


class LogListener:
    """A listener that writes a line to the job's log now and then."""

    def __init__(self) -> None:
        self._said = 0.0

    def event(self, event: Mapping[str, Any]) -> None:
        """Say how far the run has come."""
        kind = event["event"]
        if kind == "step" and time.monotonic() - self._said >= _SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            print(f"step {event['step']}: loss {event['loss']:.4f}, {event['seconds']:.3g} s", flush=True)
        elif kind == "start":
            print(f"{event['steps_planned']} steps planned; {json.dumps(event['facts'])}", flush=True)
        elif kind == "validation":
            found = event["validation"]
            print(f"validation of {found['dataset']}: {json.dumps(found['metrics'])}", flush=True)

    def resources(self, sample: ResourceSample) -> None:
        """They come back whole in the measurement."""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
