"""The SageMaker runner: one run config in, one measurement out, made by a training job.

What a job writes into its run folder the service copies to S3 while it goes on; the launcher reads the events from
there as they grow, so whoever listens sees the same as of a run on this machine. A run folder remembers its job before
that is submitted: the same command, started again, waits for it.
"""

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roofscale import compute
from roofscale.compute import GIB, Allowance, Compute
from roofscale.config import RunConfig
from roofscale.data.generate import NOTE
from roofscale.data.places import find_dataset, origin
from roofscale.errors import ConfigError
from roofscale.measurement import Measurement, Outcome, write_json
from roofscale.runners.assemble import Supervised, assemble
from roofscale.runners.events import EventTail
from roofscale.runners.local import EVENTS, MEASUREMENT
from roofscale.runners.sagemaker import request as requests
from roofscale.runners.sagemaker.entry import CONFIG, GENERATED
from roofscale.runners.sagemaker.job import FILE as JOB_FILE
from roofscale.runners.sagemaker.job import Job, of_run, places, spent_usd
from roofscale.runners.sagemaker.outcomes import RUNNING, cost_metrics, job_outcome
from roofscale.runners.sagemaker.settings import Settings
from roofscale.runners.supervise import Interrupt, Listener, SilentListener

if TYPE_CHECKING:
    from roofscale.runners.sagemaker.cloud import Cloud

_FIRST_POLL, _LONGEST_POLL = 1.0, 10.0  # seconds between two looks at a job; the longer it runs, the rarer
_POLLS_A_RUN = 60  # looks over a job's time, until they are rarest
_NOT_FETCHED = (CONFIG, MEASUREMENT, EVENTS, "checkpoint.pt")  # ours, ours, read already, and of use to a job only


@dataclass
class SageMakerRunner:
    """Runs a config as a training job on the instance that its compute names.

    SIGINT and SIGTERM stop the job or let go of it, as the settings say or as a person answers; the measurement then
    says ``interrupted``, and the same command goes on. A second one lets go at once.
    """

    run_dir: Path  # config.json, job.json, events.jsonl, stderr.log, measurement.json, as of a local run
    listener: Listener = field(default_factory=SilentListener)
    settings: Settings = field(kw_only=True)
    interrupt: Interrupt = field(default_factory=Interrupt)
    connect: "Callable[[Settings, Callable[[float], None]], Cloud] | None" = None  # to AWS; a test's stand-in
    ask: Callable[[str], str] = input

    def __call__(self, config: RunConfig) -> Measurement:
        """Run, and save the measurement in the run folder.

        Raises:
            ConfigError: the job cannot be made as it is asked for, or AWS refuses it.
            CloudError: AWS did not answer for an hour.
        """
        size = instance(config)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        write_json(self.run_dir / CONFIG, config.as_dict())
        with self.interrupt.on_signals():
            cloud = (self.connect or _connect)(self.settings, self._wait)
            job = of_run(self.run_dir)
            begun = cloud.describe(job.name) if (self.run_dir / JOB_FILE).exists() else None
            described = begun or self._submit(cloud, config, job, size)
            described = self._watch(cloud, job, described)
        if described["TrainingJobStatus"] in RUNNING:
            measurement = _unseen(config, Outcome.INTERRUPTED, f"job {job.name} runs on; the same command waits for it")
        else:
            measurement = self._take(cloud, config, job, size, described)
        measurement.save(self.run_dir / MEASUREMENT)
        if described["TrainingJobStatus"] not in RUNNING:
            cost = measurement.metrics.get("cost/usd", 0.0)
            dataclasses.replace(job, over=True, usd=job.usd + cost).save(self.run_dir)
        return measurement

    def _submit(self, cloud: "Cloud", config: RunConfig, job: Job, size: Compute) -> dict[str, Any]:
        """Hand the config over and create the job; what SageMaker then says of it."""
        generated = generated_specs(config)
        data_bytes = sum(map(cloud.size, requests.data_uris(config).values()))
        seconds = seconds_left(self.settings, size, spent_usd(self.run_dir))
        request = requests.build(
            config, self.settings, job, places(self.run_dir), data_bytes=data_bytes, most_seconds=seconds
        )
        job.save(self.run_dir)
        top = requests.config_uri(self.settings, job)
        cloud.write(f"{top}/{CONFIG}", json.dumps(config.as_dict(), indent=1).encode())
        if generated:
            cloud.write(f"{top}/{GENERATED}", json.dumps(generated).encode())
        cloud.submit(request)
        return {"TrainingJobStatus": RUNNING[0]}

    def _watch(self, cloud: "Cloud", job: Job, described: dict[str, Any]) -> dict[str, Any]:
        """Follow a job until it is over, or until nobody wants to wait for it."""
        began, stopping, said = time.monotonic(), False, ""
        tail = _Tail(cloud, f"{requests.folder_uri(self.settings, job)}/{EVENTS}", self.run_dir / EVENTS, self.listener)
        while described["TrainingJobStatus"] in RUNNING:
            if self.interrupt.count > (1 if stopping else 0):
                if stopping or not self._wants_stop(job):
                    break
                stopping = True
                cloud.stop(job.name)
            self._wait(_poll_seconds(time.monotonic() - began))
            described = cloud.describe(job.name) or described
            said = self._say(job, described, said)
            tail.forward()
        return described

    def _take(
        self, cloud: "Cloud", config: RunConfig, job: Job, size: Compute, described: Mapping[str, Any]
    ) -> Measurement:
        """Fetch what a job that is over has left, and settle what it came to."""
        packed = cloud.read_packed(requests.output_uri(self.settings, job), MEASUREMENT)
        _Tail(
            cloud, f"{requests.folder_uri(self.settings, job)}/{EVENTS}", self.run_dir / EVENTS, self.listener
        ).forward()
        cloud.fetch(requests.folder_uri(self.settings, job), self.run_dir, _NOT_FETCHED)
        own = None
        if packed:
            (self.run_dir / MEASUREMENT).write_bytes(packed)
            own = Measurement.load(self.run_dir / MEASUREMENT)
        for sample in own.resources if own else ():
            self.listener.resources(sample)
        outcome, detail = job_outcome(described, own)
        seen = own or _from_events(config, size, self.run_dir, outcome, detail, described)
        costs = cost_metrics(described, size.usd_per_hour)
        facts = {**seen.facts, "job": job.name, "image": self.settings.image}
        return dataclasses.replace(seen, outcome=outcome, detail=detail, metrics={**seen.metrics, **costs}, facts=facts)

    def _wants_stop(self, job: Job) -> bool:
        """Whether the job is to be stopped, rather than left to itself."""
        if self.settings.on_interrupt != "ask" or not sys.stdin.isatty():
            return self.settings.on_interrupt != "detach"
        try:
            answer = self.ask(f"\nStop job {job.name} (s), or let it run on and wait for it later (d)? [s] ")
        except EOFError:
            answer = ""
        return not answer.strip().lower().startswith("d")

    def _wait(self, seconds: float) -> None:
        """Wait, but no longer than until somebody wants to stop."""
        until, before = time.monotonic() + seconds, self.interrupt.count
        while (left := until - time.monotonic()) > 0 and self.interrupt.count == before:
            time.sleep(min(0.1, left))

    def _say(self, job: Job, described: Mapping[str, Any], said: str) -> str:
        """Tell the listener where a job stands whenever that changes."""
        stands = str(described.get("SecondaryStatus", ""))
        if stands != said:
            self.listener.event({"event": "note", "time": time.time(), "text": f"job {job.name}: {stands}"})
        return stands


class _Tail:
    """Copies the events of a job into the run folder as they grow in S3, and hands them to a listener."""

    def __init__(self, cloud: "Cloud", uri: str, file: Path, listener: Listener) -> None:
        self._cloud, self._uri, self._file, self._listener = cloud, uri, file, listener
        self._events = EventTail(file, from_end=True)

    def forward(self) -> None:
        """Read on."""
        offset = self._file.stat().st_size if self._file.exists() else 0
        if fresh := self._cloud.read_from(self._uri, offset):
            with self._file.open("ab") as stream:
                stream.write(fresh)
        for event in self._events.read():
            self._listener.event(event)


def instance(config: RunConfig) -> Compute:
    """The instance that a config runs on.

    Raises:
        ConfigError: its compute is none of SageMaker's.
    """
    if not config.compute.startswith("ml."):
        raise ConfigError(
            f"compute={config.compute}: expected an instance of SageMaker, such as --compute ml.m5.xlarge, or a run on "
            "this machine, without --runner sagemaker."
        )
    return compute.get(config.compute)


def generated_specs(config: RunConfig) -> dict[str, Any]:
    """By data set: the spec that a job has to generate; empty where the data lies in S3.

    Raises:
        ConfigError: the data lies on this machine and is not generated.
    """
    if config.data_root.startswith(requests.S3):
        return {}
    found = {}
    for name in config.datasets:
        folder = find_dataset(name, Path(config.data_root).expanduser()).resolve()
        notes = [place / NOTE for place in (folder, *folder.parents[:3]) if (place / NOTE).is_file()]
        if origin(folder) != "GENERATED" or not notes:
            raise ConfigError(
                f"data_root={config.data_root}: {name} lies on this machine, and a job cannot see it. Copy it to S3 "
                f"(aws s3 sync {config.data_root} s3://BUCKET/data) and give data_root=s3://BUCKET/data; or leave "
                "data_root empty for generated data."
            )
        found[name] = json.loads(notes[0].read_text(encoding="utf-8"))
    return found


def seconds_left(settings: Settings, size: Compute, spent: float) -> float:
    """How long a job may run until the attempt's budget is used up; infinite without a budget.

    Raises:
        ConfigError: nothing is left, or the price is not known.
    """
    if not settings.budget_usd:
        return math.inf
    if size.usd_per_hour is None:
        raise ConfigError(
            f"budget_usd={settings.budget_usd:g}: no price of {size.name} is known. Add it to compute.yaml, or set no "
            "budget."
        )
    left = (settings.budget_usd - spent) / size.usd_per_hour * 3600
    if left < 60:  # a job needs that to say anything
        raise ConfigError(
            f"budget_usd={settings.budget_usd:g}: this attempt's jobs have cost {spent:.2f} USD; what is left pays for "
            f"less than a minute of {size.name}. Raise it in sagemaker.yaml, and the same command goes on."
        )
    return left


def _from_events(
    config: RunConfig, size: Compute, run_dir: Path, outcome: Outcome, detail: str, described: Mapping[str, Any]
) -> Measurement:
    """The measurement of a job that had no time to leave one: as much as its events tell."""
    begun, ended = (described.get(key) for key in ("TrainingStartTime", "TrainingEndTime"))
    if begun is None:
        return _unseen(config, outcome, detail)
    started = begun.timestamp()
    seen = Supervised(
        outcome=outcome,
        detail=detail,
        started=started,
        ended=ended.timestamp() if ended else started,
        events=EventTail(run_dir / EVENTS).read(),
        memory=(),
        metrics={},
        source="none: the job ended before it could say",
        limit=f"{size.memory_gib:g} GiB of {size.name}",
    )
    return assemble(config, size, Allowance(int(size.memory_gib * GIB), size.vcpus), seen)


def _unseen(config: RunConfig, outcome: Outcome, detail: str) -> Measurement:
    return Measurement(outcome, detail, config.fingerprint)


def _poll_seconds(waited: float) -> float:
    return min(_LONGEST_POLL, max(_FIRST_POLL, waited / _POLLS_A_RUN))


def _connect(settings: Settings, wait: Callable[[float], None]) -> "Cloud":
    from roofscale.runners.sagemaker.cloud import Cloud  # boto3: only those who run there pay for it

    return Cloud(settings, wait)
