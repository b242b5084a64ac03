"""Climb a phase: run each step, judge it, and stop, go on or repeat as the phase file says.

The path of one step is ``_run``: open the MLflow run, hand the config to a runner, judge the measurement, write down
the verdict. Whatever kills it before the last line, the same command takes the step up again.
"""

import datetime
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from roofscale.config import RunConfig
from roofscale.measurement import Measurement, Outcome, write_json
from roofscale.phases.attempt import Attempt, Attempts, StepFolder
from roofscale.phases.judge import StepVerdict, Verdict, judge
from roofscale.phases.plan import Phase, Plan, Step, repeat_config
from roofscale.runners.events import Event, EventTail
from roofscale.runners.local import EVENTS
from roofscale.runners.supervise import Listener
from roofscale.tracking import TrackedRun, Tracker
from roofscale.train.monitor import ResourceSample

Runner = Callable[[RunConfig], Measurement]


@dataclass(frozen=True)
class StepResult:
    """One judged step."""

    step: Step
    config: RunConfig
    measurement: Measurement  # of its first run
    verdict: StepVerdict
    run_id: str
    folder: Path
    repeats: tuple[Measurement, ...] = ()


@dataclass(frozen=True)
class ClimbResult:
    """How far an attempt came."""

    phase: Phase
    attempt: Path
    run_id: str  # MLflow's parent run
    results: tuple[StepResult, ...]
    interrupted: bool

    @property
    def verdict(self) -> Verdict:
        """Failed if a step failed; passed if all steps passed; else insufficient evidence."""
        found = [result.verdict.verdict for result in self.results]
        if Verdict.FAILED in found:
            return Verdict.FAILED
        complete = len(found) == len(self.phase.steps) and not self.interrupted
        return Verdict.PASSED if complete and set(found) == {Verdict.PASSED} else Verdict.INSUFFICIENT_EVIDENCE


class Audience(Protocol):
    """Whoever follows a climb: a terminal, the report."""

    def begin(self, step: Step, config: RunConfig, note: str) -> Listener:
        """A run of a step begins; return the listener for its events."""
        ...

    def judged(self, result: StepResult, run: TrackedRun) -> None:
        """A step has its verdict; its MLflow run is still open for figures and the model."""
        ...


class Listeners:
    """Several listeners as one."""

    def __init__(self, *listeners: Listener) -> None:
        self._listeners = listeners

    def event(self, event: Event) -> None:
        """Hand on an event."""
        for listener in self._listeners:
            listener.event(event)

    def resources(self, sample: ResourceSample) -> None:
        """Hand on a resource sample."""
        for listener in self._listeners:
            listener.resources(sample)


@dataclass
class Ladder:
    """The climb of one phase with everything that it needs from outside."""

    phase: Phase
    plan: Plan
    tracker: Tracker
    attempts: Attempts
    make_runner: Callable[[Path, Listener], Runner]
    audience: Audience
    tags: Mapping[str, str]  # of every run: commit, data

    def climb(self, fresh: bool = False) -> ClimbResult:
        """Climb from the bottom, or, unless ``fresh``, from where the newest attempt at this plan was left.

        Raises:
            Busy: another process climbs this phase.
        """
        with self.attempts.lock():
            attempt, parent = self._open(fresh)
            done: list[StepResult] = []
            interrupted = False
            for number, (step, config) in enumerate(self.plan, 1):
                result = self._step(attempt, parent, number, step, config, done)
                if result is None:
                    interrupted = True
                    break
                done.append(result)
                if result.verdict.verdict is Verdict.PASSED:
                    self._remember(result, parent)
                elif self._stops(result):
                    break
            climbed = ClimbResult(self.phase, attempt.path, parent.run_id, tuple(done), interrupted)
            if not interrupted:
                attempt.update(verdict=climbed.verdict)
            return climbed

    def _open(self, fresh: bool) -> tuple[Attempt, TrackedRun]:
        # The whole configs, because another data_root is another attempt, though it is the same run config.
        said = json.dumps([self.phase.fingerprint, *(config.as_dict() for _, config in self.plan)])
        fingerprint = hashlib.sha256(said.encode()).hexdigest()[:12]
        attempt = None if fresh else self.attempts.unfinished(fingerprint)
        parent = self.tracker.resume(attempt.content["run_id"]) if attempt else None
        if attempt and parent:
            return attempt, parent
        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        number = len(self.attempts.all()) + 1
        parent = self.tracker.start(
            f"phase{self.phase.number} attempt {number}",
            {**self.tags, "phase": str(self.phase.number), "phase_name": self.phase.name, "plan": fingerprint},
        )
        names = [step.name for step, _ in self.plan]
        return self.attempts.new(fingerprint, parent.run_id, created, names), parent

    def _step(
        self, attempt: Attempt, parent: TrackedRun, number: int, step: Step, config: RunConfig, done: list[StepResult]
    ) -> StepResult | None:
        """Run a step and, while the evidence is insufficient and the phase file says so, repeat it; None: stopped."""
        before = done[-1].measurement if done else None
        base = done[0].measurement if done else None
        runs: list[Measurement] = []
        for repeat in range(step.max_repeats + 1):
            folder = attempt.step(number, step.name, repeat)
            run_config = repeat_config(config, repeat) if repeat else config

            def verdict_on(measurement: Measurement) -> StepVerdict:
                first, *others = [*runs, measurement]
                return judge(step, first, before, base, others)

            measured = self._run(folder, parent, step, run_config, repeat, verdict_on)
            if measured is None:
                return None
            measurement, verdict, run_id = measured
            runs.append(measurement)
            if repeat == 0:
                first_run, first_folder = run_id, folder.path
            wanting = verdict.verdict is Verdict.INSUFFICIENT_EVIDENCE and step.on_insufficient == "repeat"
            if not wanting:
                break
        if runs[1:]:  # the first run was filed before its repeats could speak
            TrackedRun(self.tracker.client, first_run).tags({"verdict": verdict.verdict, "repeats": str(len(runs) - 1)})
        return StepResult(step, config, runs[0], verdict, first_run, first_folder, tuple(runs[1:]))

    def _run(
        self,
        folder: StepFolder,
        parent: TrackedRun,
        step: Step,
        config: RunConfig,
        repeat: int,
        verdict_on: Callable[[Measurement], StepVerdict],
    ) -> tuple[Measurement, StepVerdict, str] | None:
        """One run of a step, start to verdict; what an earlier process finished is only read."""
        known = folder.verdict
        if known and folder.run_id:
            return folder.measurement, known, folder.run_id
        run, note = self._open_run(folder, parent, step, config, repeat)
        listener = self.audience.begin(step, config, note)
        with run.system_metrics():
            measurement = self.make_runner(folder.path, Listeners(run, listener))(config)
        run.summary(measurement)
        if measurement.outcome is Outcome.INTERRUPTED:
            run.finish(measurement.outcome)
            return None
        verdict = verdict_on(measurement)
        run.tags({"verdict": verdict.verdict, **{f"verdict.{c.name}": c.verdict for c in verdict.criteria}})
        self.audience.judged(StepResult(step, config, measurement, verdict, run.run_id, folder.path), run)
        run.finish(measurement.outcome)
        folder.judge(verdict)
        return measurement, verdict, run.run_id

    def _open_run(
        self, folder: StepFolder, parent: TrackedRun, step: Step, config: RunConfig, repeat: int
    ) -> tuple[TrackedRun, str]:
        again = self.tracker.resume(folder.run_id) if folder.run_id else None
        if again:
            for event in EventTail(folder.path / EVENTS).read():  # a kill may have lost what was not yet sent
                again.event(event)
            return again, "taken up again"
        tags = {**self.tags, "phase": str(self.phase.number), "step": step.name, "fingerprint": config.fingerprint}
        if repeat:
            tags["repeat"] = str(repeat)
        name = step.name + (f" repeat {repeat}" if repeat else "")
        run = self.tracker.start(name, tags, parent)
        run.params(config)
        folder.begin(run.run_id)
        return run, f"repeat {repeat}, seed {config.seed}" if repeat else ""

    def _remember(self, result: StepResult, parent: TrackedRun) -> None:
        content = {"config": result.config.as_dict(), "step": result.step.name, "run_id": result.run_id}
        write_json(self.attempts.last_good_file, content)
        parent.tags({"last_good": result.step.name, "last_good_run": result.run_id})

    def _stops(self, result: StepResult) -> bool:
        failed = result.verdict.verdict is Verdict.FAILED
        return (result.step.on_failure if failed else result.step.on_insufficient) == "stop"
