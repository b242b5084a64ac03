"""The SageMaker runner: one run config in, one measurement out, made by a training job.

What a job writes into its run folder the service copies to S3 while it goes on; the launcher reads the events from
there as they grow, so whoever listens sees the same as of a run on this machine. A run folder remembers its job before
that is submitted: the same command, started again, waits for it.
"""

import dataclasses
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roofscale import compute
from roofscale.compute import GIB, Compute, ResourceLimits
from roofscale.config import RunConfig
from roofscale.data.locate import describe_origin, find_dataset
from roofscale.data.sources import open_sources
from roofscale.data.synthetic import NOTE
from roofscale.errors import ConfigError
from roofscale.files import read_json, write_json
from roofscale.measurement import Measurement, Outcome
from roofscale.runners.build_measurement import RunObservation, build_measurement
from roofscale.runners.events import EventTail
from roofscale.runners.local import EVENTS, MEASUREMENT
from roofscale.runners.sagemaker import multi_node
from roofscale.runners.sagemaker import request as requests
from roofscale.runners.sagemaker.entry import CONFIG, GENERATED, ONLY
from roofscale.runners.sagemaker.job import FILE as JOB_FILE
from roofscale.runners.sagemaker.job import (
    FOLDER_TAG,
    Job,
    Spending,
    from_name,
    key_prefix,
    load_or_new,
    owner_tag,
    spending,
    tags_of,
)
from roofscale.runners.sagemaker.job_outcome import RUNNING, cost_metrics, job_outcome
from roofscale.runners.sagemaker.session import Session
from roofscale.runners.sagemaker.settings import SageMakerSettings
from roofscale.runners.supervise import Listener, SilentListener

if TYPE_CHECKING:
    from roofscale.runners.sagemaker.session import Service

_FIRST_POLL, _LONGEST_POLL = 0.5, 2.5  # seconds between two looks at a job; the longer it runs, the rarer
_POLLS_A_RUN = 60  # looks over a job's time, until they are rarest
_LOOKS_A_SECOND = 2.0  # at all jobs together; a service that throttles answers nobody sooner
_NOT_FETCHED = (CONFIG, MEASUREMENT, EVENTS, "checkpoint.pt")  # ours, ours, read already, and of use to a job only


@dataclass
class SageMakerRunner:
    """Runs a config as a training job on the instance that its compute names.

    SIGINT and SIGTERM stop the job or let go of it, as the settings say or as a person answers; the measurement then
    says ``interrupted``, and the same command goes on. A second one lets go at once.
    """

    run_dir: Path  # config.json, job.json, events.jsonl, stderr.log, measurement.json, as of a local run
    listener: Listener = field(default_factory=SilentListener)
    session: Session = field(kw_only=True)

    @property
    def settings(self) -> SageMakerSettings:
        """Those of the session."""
        return self.session.settings

    def __call__(self, config: RunConfig) -> Measurement:
        """Run, and save the measurement in the run folder.

        Raises:
            ConfigError: the job cannot be made as it is asked for, or AWS refuses it.
            CloudError: AWS did not answer for an hour.
        """
        size = instance_of(config)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        write_json(self.run_dir / CONFIG, config.as_dict())
        self.listener.event({"event": "elsewhere", "time": time.time()})
        with self.session.interrupt.on_signals():
            cloud = self.session.cloud
            job, described = self._find(cloud, config)
            if described is None and not self.session.interrupt.count:
                described = self._submit(cloud, config, job, size)
            if described:
                described = self._watch(cloud, job, described)
        if described and described["TrainingJobStatus"] not in RUNNING:
            measurement = self._take(cloud, config, job, size, described)
            job = dataclasses.replace(job, over=True, usd=job.usd + measurement.metrics.get("cost/usd", 0.0))
        else:
            said = "runs on; the same command waits for it" if described else "was not made; the same command makes it"
            measurement = _unseen(config, Outcome.INTERRUPTED, f"job {job.name} {said}")
        measurement.save(self.run_dir / MEASUREMENT)
        if job.over:
            job.save(self.run_dir)
        return measurement

    def _find(self, cloud: "Service", config: RunConfig) -> tuple[Job, dict[str, Any] | None]:
        """The run's job, with what SageMaker says of it where it was submitted already.

        A folder that was lost has forgotten its job; that is known by its tags then.
        """
        job = load_or_new(self.run_dir)
        if not (self.run_dir / JOB_FILE).exists():
            ours = {
                f"{requests.TAG}{FOLDER_TAG}": requests.tag_value(owner_tag(self.run_dir)),
                f"{requests.TAG}fingerprint": config.fingerprint,
            }
            running = cloud.running(key_prefix(self.run_dir))
            lost = next((name for name, tags in running.items() if ours.items() <= tags.items()), None)
            if lost is None:
                return job, None
            job = from_name(lost)
            job.save(self.run_dir)
        return job, cloud.describe(job.name)

    def _submit(self, cloud: "Service", config: RunConfig, job: Job, size: Compute) -> dict[str, Any]:
        """Hand the config over and create the job; what SageMaker then says of it."""
        generated = synthetic_specs(config)
        data_bytes = sum(map(cloud.size, requests.data_uris(config).values()))
        with self.session.lock:  # nobody else may take the same part of the budget
            seconds = budget_seconds(self.settings, size, spending(self.run_dir))
            tags = tags_of(self.run_dir)
            request = requests.build_request(
                config, self.settings, job, tags, data_bytes=data_bytes, most_seconds=seconds
            )
            longest = request["StoppingCondition"]["MaxRuntimeInSeconds"]
            dataclasses.replace(job, at_most_usd=longest / 3600 * (size.usd_per_hour or 0.0)).save(self.run_dir)
        top = requests.config_uri(self.settings, job)
        cloud.write(f"{top}/{CONFIG}", json.dumps(config.as_dict(), indent=1).encode())
        if generated:
            cloud.write(f"{top}/{GENERATED}", json.dumps(generated).encode())
        cloud.submit(request)
        return {"TrainingJobStatus": RUNNING[0]}

    def _watch(self, cloud: "Service", job: Job, described: dict[str, Any]) -> dict[str, Any]:
        """Follow a job until it is over, or until nobody wants to wait for it."""
        began, stopping, said = time.monotonic(), False, ""
        tail = self._tail(cloud, job)
        self.session.running.add(job.name)
        while described["TrainingJobStatus"] in RUNNING:
            if self.session.interrupt.count > (1 if stopping else 0):
                if stopping or not self.session.should_stop_jobs():
                    break
                stopping = True
                cloud.stop(job.name)
            self.session.wait(_poll_seconds(time.monotonic() - began, len(self.session.running)))
            described = cloud.describe(job.name) or described
            said = self._say(job, described, said)
            tail.forward()
        self.session.running.discard(job.name)
        return described

    def _take(
        self, cloud: "Service", config: RunConfig, job: Job, size: Compute, described: Mapping[str, Any]
    ) -> Measurement:
        """Fetch what a job that is over has left, and settle what it came to."""
        left = [self._left(cloud, job, place) for place in range(config.instance_count)]
        self._tail(cloud, job).forward()
        cloud.fetch(requests.folder_uri(self.settings, job), self.run_dir, _NOT_FETCHED)
        own = multi_node.merge_measurements(left)
        for sample in own.resources if own else ():
            self.listener.resources(sample)
        outcome, detail = job_outcome(described, own)
        seen = own or _from_events(config, size, self.run_dir, outcome, detail, described)
        costs = cost_metrics(described, size.usd_per_hour)
        facts = {**seen.facts, "job": job.name, "image": self.settings.image}
        return dataclasses.replace(seen, outcome=outcome, detail=detail, metrics={**seen.metrics, **costs}, facts=facts)

    def _left(self, cloud: "Service", job: Job, place: int) -> Measurement | None:
        """What one of a job's machines has measured."""
        packed = cloud.read_packed(requests.output_uri(self.settings, job), multi_node.measurement_name(place))
        if not packed:
            return None
        (self.run_dir / MEASUREMENT).write_bytes(packed)
        return Measurement.load(self.run_dir / MEASUREMENT)

    def _tail(self, cloud: "Service", job: Job) -> "_Tail":
        uri = f"{requests.folder_uri(self.settings, job)}/{EVENTS}"
        return _Tail(cloud, uri, self.run_dir / EVENTS, self.listener)

    def _say(self, job: Job, described: Mapping[str, Any], said: str) -> str:
        """Tell the listener where a job stands whenever that changes."""
        stands = str(described.get("SecondaryStatus", ""))
        if stands != said:
            self.listener.event({"event": "note", "time": time.time(), "text": f"job {job.name}: {stands}"})
        return stands


class _Tail:
    """Copies the events of a job into the run folder as they grow in S3, and hands them to a listener."""

    def __init__(self, cloud: "Service", uri: str, file: Path, listener: Listener) -> None:
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


def instance_of(config: RunConfig) -> Compute:
    """The instance that a config runs on, at the price of as many as it takes.

    Raises:
        ConfigError: its compute is none of SageMaker's.
    """
    if not config.compute.startswith("ml."):
        raise ConfigError(
            f"compute={config.compute}: expected an instance of SageMaker, such as --compute ml.m5.xlarge, or a run on "
            "this machine, without --runner sagemaker."
        )
    size = compute.get(config.compute)
    return dataclasses.replace(size, usd_per_hour=size.usd_per_hour and size.usd_per_hour * config.instance_count)


def synthetic_specs(config: RunConfig) -> dict[str, Any]:
    """By data set: the spec that a job has to generate, of RID with the images that it reads; empty where the data lies
    in S3.

    Raises:
        ConfigError: the data lies on this machine and is not generated.
    """
    if config.data_root.startswith(requests.S3):
        return {}
    found = {}
    for name in config.datasets:
        folder = find_dataset(name, Path(config.data_root).expanduser()).resolve()
        notes = [place / NOTE for place in (folder, *folder.parents[:3]) if (place / NOTE).is_file()]
        if describe_origin(folder) != "GENERATED" or not notes:
            raise ConfigError(
                f"data_root={config.data_root}: {name} lies on this machine, and a job cannot see it. Copy it to S3 "
                f"(roofscale data upload {config.data_root} s3://BUCKET/data) and give data_root=s3://BUCKET/data; or "
                "leave data_root empty for generated data."
            )
        found[name] = read_json(notes[0]) | _read_of(name, config)
    return found


def _read_of(name: str, config: RunConfig) -> dict[str, list[str]]:
    """Which images a run reads, where a job need not draw the others: a published split does not hang on them."""
    if name != "rid" or config.split != "published":
        return {}
    split = open_sources(config.with_overrides({"datasets": (name,)}), Path(config.data_root).expanduser())[name]
    places = (part.place(index) for part in (split.train, split.val) for index in range(len(part)))
    return {ONLY: [place.removesuffix(".tif") for place in places]}


def budget_seconds(settings: SageMakerSettings, size: Compute, spent: Spending) -> float:
    """How long a job may run until its part of the attempt's budget is used up; infinite without a budget.

    What is neither spent nor promised to a job under way is shared among the jobs that may yet run beside those.

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
    places = max(1, settings.max_parallel_jobs - spent.under_way)
    left = (settings.budget_usd - spent.usd - spent.at_most_usd) / places / size.usd_per_hour * 3600
    if left < 60:  # a job needs that to say anything
        promised = f", and those under way may cost {spent.at_most_usd:.2f}" if spent.under_way else ""
        raise ConfigError(
            f"budget_usd={settings.budget_usd:g}: this attempt's jobs have cost {spent.usd:.2f} USD{promised}; what is "
            f"left pays for less than a minute of {size.name}. Raise it in sagemaker.yaml, and the same command goes "
            "on."
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
    seen = RunObservation(
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
    return build_measurement(config, size, ResourceLimits(int(size.memory_gib * GIB), size.vcpus), seen)


def _unseen(config: RunConfig, outcome: Outcome, detail: str) -> Measurement:
    return Measurement(outcome, detail, config.fingerprint)


def _poll_seconds(waited: float, jobs: int) -> float:
    alone = min(_LONGEST_POLL, max(_FIRST_POLL, waited / _POLLS_A_RUN))
    return max(alone, (jobs - 1) / _LOOKS_A_SECOND)
