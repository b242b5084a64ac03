"""The SageMaker runner: one run config in, one measurement out, by a training job.

The service copies the job's run folder to S3 while the job runs. The runner reads the events there as they grow, so
that listeners get the same events as from a run on this machine. job.json in the local run folder names the job before
it is submitted: the same command, started again, finds the job and waits for it.
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
from roofscale.addresses import S3
from roofscale.compute import GIB, Compute, ResourceLimits
from roofscale.config import RunConfig
from roofscale.data.locate import describe_origin, find_dataset
from roofscale.data.sources import open_sources
from roofscale.data.synthetic import NOTE
from roofscale.errors import ConfigError, RoofscaleError
from roofscale.files import read_json, write_json
from roofscale.measurement import LOGGED_BY, Measurement, Outcome
from roofscale.runners.build_measurement import RunObservation, build_measurement
from roofscale.runners.events import EventTail
from roofscale.runners.local import EVENTS, MEASUREMENT
from roofscale.runners.sagemaker import job as jobs
from roofscale.runners.sagemaker import multi_node
from roofscale.runners.sagemaker import request as requests
from roofscale.runners.sagemaker.job import Job, Spending, load_or_new, spending
from roofscale.runners.sagemaker.job_outcome import RUNNING, cost_metrics, job_outcome
from roofscale.runners.sagemaker.request import CONFIG, GENERATED, ONLY, RUN_ID
from roofscale.runners.sagemaker.session import Session
from roofscale.runners.sagemaker.settings import SageMakerSettings
from roofscale.runners.supervise import Listener, SilentListener
from roofscale.tracking.server import job_environment

if TYPE_CHECKING:
    from roofscale.runners.sagemaker.session import Service

_FIRST_POLL, _LONGEST_POLL = 0.5, 2.5  # seconds between two polls of a job; the interval grows with its age
_POLLS_A_RUN = 60  # polls over a job's lifetime, until the longest interval is reached
_POLLS_A_SECOND = 2.0  # of all jobs together, so that the service does not throttle
# The runner writes the first two itself, _forward_events copies the third, and only jobs need the fourth.
_NOT_FETCHED = (CONFIG, MEASUREMENT, EVENTS, "checkpoint.pt")
_LAST_LINES = 5  # of the log of a job that crashed


@dataclass
class SageMakerRunner:
    """The runner that runs a config as a training job, on the instance that its compute names.

    SIGINT and SIGTERM stop the job or leave it running, by the setting ``on_interrupt`` or the user's answer. The
    measurement is then ``interrupted``, and the same command continues. A second signal ends the wait at once.
    """

    run_dir: Path  # config.json, job.json, events.jsonl, stderr.log, measurement.json, as of a local run
    listener: Listener = field(default_factory=SilentListener)
    session: Session = field(kw_only=True)
    _events: EventTail = field(init=False)  # of the copy in the run folder
    _logs_itself: bool = field(default=False, init=False)  # the job that runs: the launcher logs none of its points

    def __call__(self, config: RunConfig) -> Measurement:
        """Run the config as a job and return the measurement, which is also saved in the run folder.

        Raises:
            ConfigError: the config, the data or the budget does not allow a job, or AWS refuses it.
            CloudError: AWS did not answer for an hour.
        """
        size = instance_of(config)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        write_json(self.run_dir / CONFIG, config.as_dict())
        self._events = EventTail(self.run_dir / EVENTS, from_end=True)
        self._announce()
        with self.session.stop_request.on_signals():
            job, described = self._find(config)
            if described is None and not self.session.stop_request.count:
                described = self._submit(config, job, size)
            if described:
                described = self._watch(job, described)
        if described and described["TrainingJobStatus"] not in RUNNING:
            measurement = self._fetch_result(config, job, size, described)
            job = dataclasses.replace(job, over=True, usd=job.usd + measurement.metrics.get("cost/usd", 0.0))
        else:
            state = "runs on; the same command waits for it" if described else "was not made; the same command makes it"
            measurement = Measurement(Outcome.INTERRUPTED, f"job {job.name} {state}", config.fingerprint)
        measurement.save(self.run_dir / MEASUREMENT)
        if job.over:
            job.save(self.run_dir)
        return measurement

    def _find(self, config: RunConfig) -> tuple[Job, dict[str, Any] | None]:
        """Return the run's job, and its description if it was submitted already.

        If the run folder was lost, and job.json with it, a running job is found by its tags.
        """
        job = load_or_new(self.run_dir)
        if not (self.run_dir / jobs.FILE).exists():
            ours = {
                f"{requests.TAG}{jobs.FOLDER_TAG}": requests.tag_value(jobs.tags_of(self.run_dir)[jobs.FOLDER_TAG]),
                f"{requests.TAG}fingerprint": config.fingerprint,
            }
            running = self.session.cloud.running(jobs.key_prefix(self.run_dir))
            lost = next((name for name, tags in running.items() if ours.items() <= tags.items()), None)
            if lost is None:
                return job, None
            job = jobs.from_name(lost)
            job.save(self.run_dir)
        return job, self.session.cloud.describe(job.name)

    def _submit(self, config: RunConfig, job: Job, size: Compute) -> dict[str, Any]:
        """Upload the config, create the job and return its first description."""
        cloud, settings, run_id = self.session.cloud, self.session.settings, self.listener.run_id
        environment = job_environment(run_id, settings.logged_by) if run_id else {}
        tags = jobs.tags_of(self.run_dir)
        data_bytes = sum(map(cloud.size, requests.data_uris(config).values()))
        with self.session.lock:  # no other thread may reserve the same part of the budget
            seconds = budget_seconds(settings, size, spending(self.run_dir))
            request = requests.build_request(
                config, settings, job, tags, data_bytes=data_bytes, most_seconds=seconds, environment=environment
            )
            cloud.check(request)
            longest = request["StoppingCondition"]["MaxRuntimeInSeconds"]
            dataclasses.replace(job, at_most_usd=longest / 3600 * (size.usd_per_hour or 0.0)).save(self.run_dir)
        write_config(cloud, config, requests.config_uri(settings, job))
        cloud.submit(request)
        return {"TrainingJobStatus": RUNNING[0], "Environment": request["Environment"]}

    def _announce(self, logs_itself: bool = False) -> None:
        """Tell the listener that the run executes on another machine, and whether it logs itself there."""
        self._logs_itself = logs_itself
        self.listener.event({"event": "elsewhere", "time": time.time(), "logs_itself": logs_itself})

    def _watch(self, job: Job, described: dict[str, Any]) -> dict[str, Any]:
        """Follow a job until it is over or the user ends the wait; return its last description."""
        started, stopping, status = time.monotonic(), False, ""
        run_id = described.get("Environment", {}).get(RUN_ID, "")  # of another run if this one's folder was lost
        self._announce(logs_itself=bool(run_id) and run_id == self.listener.run_id)
        self.session.running.add(job.name)
        while described["TrainingJobStatus"] in RUNNING:
            if self.session.stop_request.count > (1 if stopping else 0):
                if stopping or not self.session.should_stop_jobs():
                    break
                stopping = True
                self.session.cloud.stop(job.name)
            self.session.wait(_poll_seconds(time.monotonic() - started, len(self.session.running)))
            described = self.session.cloud.describe(job.name) or described
            if (newest := str(described.get("SecondaryStatus", ""))) != status:
                status = newest
                self.listener.event({"event": "note", "time": time.time(), "text": f"job {job.name}: {status}"})
            self._forward_events(job)
        self.session.running.discard(job.name)
        return described

    def _forward_events(self, job: Job) -> None:
        """Append what is new in the job's events to the run folder's copy, and forward it to the listener."""
        copy = self.run_dir / EVENTS
        offset = copy.stat().st_size if copy.exists() else 0
        uri = f"{requests.folder_uri(self.session.settings, job)}/{EVENTS}"
        if fresh := self.session.cloud.read_from(uri, offset):
            with copy.open("ab") as stream:
                stream.write(fresh)
        for event in self._events.read():
            self.listener.event(event)

    def _fetch_result(self, config: RunConfig, job: Job, size: Compute, described: Mapping[str, Any]) -> Measurement:
        """Fetch the files of a job that is over, and return its measurement with outcome and cost."""
        cloud, settings = self.session.cloud, self.session.settings
        by_machine = [self._machine_measurement(job, index) for index in range(config.instance_count)]
        self._forward_events(job)
        own = multi_node.merge_measurements(by_machine)
        is_logged = all(machine is not None and LOGGED_BY in machine.facts for machine in by_machine)
        not_fetched = (*_NOT_FETCHED, "best.pt") if is_logged else _NOT_FETCHED  # the job has logged its model too
        cloud.fetch(requests.folder_uri(settings, job), self.run_dir, not_fetched)
        events_skipped = self._logs_itself
        self._announce()  # the launcher logs from here on: the cost, and what the job has not logged
        if not is_logged:  # or not to its end; a point that the server has already changes nothing
            for event in EventTail(self.run_dir / EVENTS).read() if events_skipped else ():
                self.listener.event(event)
            for sample in own.resources if own else ():
                self.listener.resources(sample)
        outcome, detail = job_outcome(described, own)
        if outcome is Outcome.CRASHED and own is None:
            detail += _end_of_log(cloud, job)
        base = own or _from_events(config, size, self.run_dir, outcome, detail, described)
        costs = cost_metrics(described, size.usd_per_hour)
        facts = {**base.facts, "job": job.name, "image": settings.image}
        return dataclasses.replace(base, outcome=outcome, detail=detail, metrics={**base.metrics, **costs}, facts=facts)

    def _machine_measurement(self, job: Job, index: int) -> Measurement | None:
        """Return the measurement of one of a job's machines; None if it left none."""
        uri = requests.output_uri(self.session.settings, job)
        content = self.session.cloud.read_packed(uri, multi_node.measurement_name(index))
        if not content:
            return None
        (self.run_dir / MEASUREMENT).write_bytes(content)  # overwritten by the merged one
        return Measurement.load(self.run_dir / MEASUREMENT)


def _end_of_log(cloud: "Service", job: Job) -> str:
    """Return the last lines of a job's log, as a sentence; empty if there is no log, or it may not be read."""
    try:
        lines = [line for line in cloud.log_reader(job.name)() if line.strip()]
    except RoofscaleError:
        return ""
    return f" Its log ends: {' | '.join(lines[-_LAST_LINES:])}" if lines else ""


def write_config(cloud: "Service", config: RunConfig, uri: str) -> None:
    """Write the run config and the spec of generated data where the job's channel ``config`` is.

    Raises:
        ConfigError: the data is on this machine and is not generated; or S3 refuses.
    """
    specs = synthetic_specs(config)
    cloud.write(f"{uri}/{CONFIG}", json.dumps(config.as_dict(), indent=1).encode())
    if specs:
        cloud.write(f"{uri}/{GENERATED}", json.dumps(specs).encode())


def instance_of(config: RunConfig) -> Compute:
    """Return the instance that a config runs on, with the price per hour of all its instances together.

    Raises:
        ConfigError: the compute is no instance of SageMaker.
    """
    if not config.compute.startswith("ml."):
        raise ConfigError(
            f"compute={config.compute}: expected an instance of SageMaker, such as --compute ml.m5.xlarge, or a run on "
            "this machine, without --runner sagemaker."
        )
    size = compute.get(config.compute)
    return dataclasses.replace(size, usd_per_hour=size.usd_per_hour and size.usd_per_hour * config.instance_count)


def synthetic_specs(config: RunConfig) -> dict[str, Any]:
    """Return, by data set, the spec of the images that a job has to generate; empty if the data is in S3.

    Raises:
        ConfigError: the data is on this machine and is not generated.
    """
    if config.data_root.startswith(S3):
        return {}
    specs = {}
    for name in config.datasets:
        folder = find_dataset(name, Path(config.data_root).expanduser()).resolve()
        notes = [parent / NOTE for parent in (folder, *folder.parents[:3]) if (parent / NOTE).is_file()]
        if describe_origin(folder) != "GENERATED" or not notes:
            raise ConfigError(
                f"data_root={config.data_root}: {name} lies on this machine, and a job cannot see it. Copy it to S3 "
                f"(roofscale data upload {config.data_root} s3://BUCKET/data) and give data_root=s3://BUCKET/data; or "
                "leave data_root empty for generated data."
            )
        specs[name] = read_json(notes[0]) | _only_images_read(name, config)
    return specs


def _only_images_read(name: str, config: RunConfig) -> dict[str, list[str]]:
    """Return the images that a run reads, under ``ONLY``; empty if the job has to generate all of them.

    Only RID's published split does not depend on the other images; other splits deal out all of them.
    """
    if name != "rid" or config.split != "published":
        return {}
    split = open_sources(config.with_overrides({"datasets": (name,)}), Path(config.data_root).expanduser())[name]
    files = (part.sample_key(index) for part in (split.train, split.val) for index in range(len(part)))
    return {ONLY: [file.removesuffix(".tif") for file in files]}


def budget_seconds(settings: SageMakerSettings, size: Compute, spent: Spending) -> float:
    """Return the seconds that a job may run within its share of the attempt's budget; infinite without a budget.

    The budget that is neither spent nor reserved for running jobs is shared equally among the jobs that may still start
    in parallel.

    Raises:
        ConfigError: the share pays for less than a minute, or the price is not known.
    """
    if not settings.budget_usd:
        return math.inf
    if size.usd_per_hour is None:
        raise ConfigError(
            f"budget_usd={settings.budget_usd:g}: no price of {size.name} is known. Add it to compute.yaml, or set no "
            "budget."
        )
    slots = max(1, settings.max_parallel_jobs - spent.under_way)
    seconds = (settings.budget_usd - spent.usd - spent.at_most_usd) / slots / size.usd_per_hour * 3600
    if seconds < 60:  # a shorter job ends before it has trained
        reserved = f", and those under way may cost {spent.at_most_usd:.2f}" if spent.under_way else ""
        raise ConfigError(
            f"budget_usd={settings.budget_usd:g}: this attempt's jobs have cost {spent.usd:.2f} USD{reserved}; what is "
            f"left pays for less than a minute of {size.name}. Raise it in sagemaker.yaml, and the same command goes "
            "on."
        )
    return seconds


def _from_events(
    config: RunConfig, size: Compute, run_dir: Path, outcome: Outcome, detail: str, described: Mapping[str, Any]
) -> Measurement:
    """Return a measurement from the events of a job that left none; without memory, which only the job samples."""
    begun = described.get("TrainingStartTime")
    if begun is None:
        return Measurement(outcome, detail, config.fingerprint)
    observation = RunObservation(
        outcome=outcome,
        detail=detail,
        started=begun.timestamp(),
        ended=described.get("TrainingEndTime", begun).timestamp(),
        events=EventTail(run_dir / EVENTS).read(),
        memory=(),
        metrics={},
        source="none: the job ended before it could write its measurement",
        limit=f"{size.memory_gib:g} GiB of {size.name}",
    )
    return build_measurement(config, size, ResourceLimits(int(size.memory_gib * GIB), size.vcpus), observation)


def _poll_seconds(waited: float, jobs: int) -> float:
    alone = min(_LONGEST_POLL, max(_FIRST_POLL, waited / _POLLS_A_RUN))
    return max(alone, (jobs - 1) / _POLLS_A_SECOND)
