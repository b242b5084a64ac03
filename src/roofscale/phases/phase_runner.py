"""Phase runner: measures and judges the steps of a phase; repeats, falls back or stops as the phase file demands.

Three levels, from top to bottom: ``run_phase`` goes through the steps of the plan, ``run_step`` brings one step to its
verdict with its search, its repeats and its fallbacks, and ``run_once`` makes one run: open the MLflow run, hand the
config to a runner, judge the measurement, write the verdict. After a kill at any point the same command resumes there.
"""

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from roofscale import compute
from roofscale.compute import Compute
from roofscale.config import RunConfig
from roofscale.files import write_json
from roofscale.measurement import FORECAST, Measurement, Outcome
from roofscale.phases.attempt import Attempt, Attempts, StepFolder, plan_changes
from roofscale.phases.criteria import EarlierStep
from roofscale.phases.fallback import (
    MEMORY_CAUSES,
    OUT_OF_MEMORY,
    KnownOutOfMemory,
    find_cause,
    needs_at_least_memory_of,
    next_fallback,
)
from roofscale.phases.judge import StepVerdict, Verdict, deciding_run, judge
from roofscale.phases.phase_file import Phase, Plan, Step, plan_fingerprint, repeat_config
from roofscale.phases.results import Cause, Fallback, PhaseResult, StepResult, select_last_good
from roofscale.runners import RunInterrupted, Runner
from roofscale.runners.events import EventTail
from roofscale.runners.job_pool import JobPool
from roofscale.runners.local import EVENTS, MEASUREMENT
from roofscale.runners.supervise import Listener, Listeners
from roofscale.tracking import TrackedRun, Tracker

if TYPE_CHECKING:
    from roofscale.phases.search.step_search import StepSearch  # Optuna and scikit-learn: only where a phase searches


_Measured = tuple[TrackedRun, Measurement]  # the MLflow run is still open


class PhaseObserver(Protocol):
    """Observer of a phase while it runs, such as the reporter on the terminal."""

    def begin(self, step: Step, config: RunConfig, note: str) -> Listener:
        """Report that a run of a step begins; return the listener for its events."""
        ...

    def judged(self, result: StepResult, run: TrackedRun) -> None:
        """Report the verdict of a run, whose MLflow run is still open for figures and the model."""
        ...


@dataclass(frozen=True)
class StepRequest:
    """One config to run at a step: the planned config, a fallback, or a repeat of either under another seed."""

    number: int  # of the step in its phase, from 1
    step: Step
    config: RunConfig
    earlier: tuple[StepResult, ...] = ()  # the steps before
    fallback: Fallback | None = None
    fallback_number: int = 0  # number of fallbacks tried, this one included
    repeat: int = 0  # index of the seed, 0 for the config's own

    def with_searched(self, values: Mapping[str, Any]) -> "StepRequest":
        """Return the request with the values that the step's search chose."""
        step = replace(self.step, set={**self.step.set, **values})
        return replace(self, step=step, config=self.config.with_overrides(values))

    def with_fallback(self, config: RunConfig, fallback: Fallback) -> "StepRequest":
        """Return the request for a fallback config; without expectations, which hold for the planned config only."""
        step = replace(self.step, expect=())
        return replace(self, step=step, config=config, fallback=fallback, fallback_number=self.fallback_number + 1)

    def with_repeat(self, repeat: int) -> "StepRequest":
        """Return the n-th repeat under a seed of its own; 0 is this request itself."""
        return replace(self, config=repeat_config(self.config, repeat), repeat=repeat) if repeat else self

    def judge(self, measurements: Sequence[Measurement]) -> StepVerdict:
        """Judge the runs of this config, one per seed, against the earlier steps."""
        first, *repeats = measurements
        previous, base = (self.earlier[-1].measurements, self.earlier[0].measurements) if self.earlier else ((), ())
        history = [EarlierStep(result.config, result.measurements) for result in self.earlier]
        return judge(self.step, first, previous, base, repeats, config=self.config, history=history)


@dataclass
class PhaseRunner:
    """Runner of one phase, with all its dependencies."""

    phase: Phase
    plan: Plan
    tracker: Tracker
    attempts: Attempts
    make_runner: Callable[[Path, Listener], Runner]
    observer: PhaseObserver
    tags: Mapping[str, str]  # of every run: commit, data
    last_good: RunConfig | None = None  # of the phase that this one starts from
    known_out_of_memory: Sequence[KnownOutOfMemory] = ()  # measured in earlier attempts
    notes: Sequence[str] = ()  # remarks to be shown with the verdict
    forecast: Callable[[RunConfig], Mapping[str, float]] = lambda config: {}  # metrics ``forecast/...`` of a run
    # Returns a fallback's config with its data root; None if the data set has no further samples.
    resolve_fallback_data: Callable[[RunConfig], RunConfig | None] = lambda config: config
    host_memory_mib: Callable[[Compute], float] = lambda size: size.memory_gib * 1024  # that a run on a compute has
    search: "StepSearch | None" = None  # for the steps that search
    pool: JobPool = field(default_factory=JobPool)  # limits the number of concurrent runs
    adoptable_run: str = ""  # id of an empty MLflow run of this experiment that a new attempt adopts
    _attempt: Attempt = field(init=False)
    _parent: TrackedRun = field(init=False)  # of all runs of the attempt
    _out_of_memory: list[KnownOutOfMemory] = field(default_factory=list, init=False)
    _started: dict[Path, tuple[RunConfig, Future[_Measured]]] = field(default_factory=dict, init=False)
    _fallback_overrides: dict[str, Any] = field(default_factory=dict, init=False)  # knobs set by earlier fallbacks

    def run_phase(self, fresh: bool = False) -> PhaseResult:
        """Run all steps; unless ``fresh``, only those that the newest attempt at this plan has not finished.

        Raises:
            PhaseLocked: another process runs this phase.
        """
        with self.attempts.lock():
            changes = self._plan_changes()
            attempt, parent = self._attempt, self._parent = self._open_attempt(fresh)
            notes = attempt.add_notes([*self.notes, *changes])
            parent.set_tags({"attempt": str(attempt.path), "notes": json.dumps(notes)})
            self._out_of_memory = [known for known in self.known_out_of_memory if known.attempt != parent.run_id]
            skipped: dict[str, str] = dict(attempt.content.get("skipped", {}))
            results: list[StepResult] = []
            interrupted = False
            try:
                with parent.closed_on_error(), self.pool.running():
                    for number, (step, _) in enumerate(self.plan, 1):
                        config = self._config(number)
                        if step.name not in skipped and (reason := self._skip_reason(number, config)):
                            skipped[step.name] = reason
                            attempt.update(skipped=skipped)
                            parent.set_tags({"skipped": json.dumps(skipped)})
                        if step.name in skipped:
                            continue
                        self._start_independent(number)
                        result = self.run_step(StepRequest(number, step, config, tuple(results)))
                        results.append(result)
                        if result.fallback:
                            changed = result.config.diff(result.runs[0].config)
                            self._fallback_overrides |= {knob: getattr(result.config, knob) for knob in changed}
                        if last_good := select_last_good(self.phase, results):
                            self._record_last_good(last_good)
                        policy = {Verdict.FAILED: step.on_failure, Verdict.INSUFFICIENT_EVIDENCE: step.on_insufficient}
                        if policy.get(result.verdict.without_findings) == "stop":
                            break
            except RunInterrupted as error:
                interrupted = True
                notes = (*notes, str(error))
            phase_result = PhaseResult(
                phase=self.phase,
                attempt=attempt.path,
                run_id=parent.run_id,
                results=tuple(results),
                interrupted=interrupted,
                experiment=self.tracker.experiment,
                created=attempt.content["created"],
                commit=self.tags.get("git_commit", ""),
                notes=notes,
                skipped=skipped,
            )
            if not interrupted:
                attempt.update(verdict=phase_result.verdict)
            return phase_result

    def run_step(self, request: StepRequest) -> StepResult:
        """Bring a step to its verdict: search its config if it has a search, run it, fall back while it does not pass.

        The last run that passed decides the step; after an out-of-memory failure that is the largest config that fits.
        If none passed, the last that is sound, and else the run of the planned config.

        Raises:
            RunInterrupted: a run or a trial was interrupted; it was not judged.
        """
        if request.step.search:
            assert self.search, "a phase with a search needs a StepSearch"
            folder = self._attempt.search(request.number, request.step.name)
            margin = request.step.memory_margin
            values = self.search.choose(request.step.search, request.config, folder, self._parent, margin)
            request = request.with_searched(values)
        passed_before = (r.config for r in reversed(request.earlier) if r.verdict.verdict is Verdict.PASSED)
        last_good = next(passed_before, self.last_good)
        planned = newest = self._run_seeds(request, last_good)
        results, failed, passed = [planned], [planned.config], [last_good] if last_good else []
        while planned.cause and len(results) <= request.step.max_fallbacks:
            cause = newest.cause or planned.cause
            fallback = next_fallback(cause, failed, passed, [known.config for known in self._out_of_memory])
            config = self.resolve_fallback_data(fallback[0]) if fallback else None
            if not fallback or config is None:
                break
            request = request.with_fallback(config, Fallback(planned.run_id, cause, fallback[1]))
            newest = self._run_seeds(request, last_good)
            results.append(newest)
            (passed if newest.verdict.verdict is Verdict.PASSED else failed).append(config)
            if cause not in MEMORY_CAUSES and not newest.cause:  # memory is bisected further after a run that passed
                break
        # the decision is tagged only now, so that a kill before this line leaves the step undecided
        deciding = results[deciding_run([result.verdict for result in results])]
        self.tracker.open(deciding.run_id).set_tags({"decides": "true"})
        return replace(deciding, step=planned.step, tries=tuple(run for run in results if run is not deciding))

    def _run_seeds(self, request: StepRequest, last_good: RunConfig | None) -> StepResult:
        """Run one config, and repeat it under other seeds while a deciding criterion has insufficient evidence.

        A finding is not repeated, as no later step depends on it; nor is a run that needs more validation samples, as
        another seed validates on the same few.
        """
        results: list[StepResult] = []
        for repeat in range(request.step.most_repeats + 1):
            newest = self.run_once(request.with_repeat(repeat), [result.measurement for result in results])
            results.append(newest)
            cause = find_cause(newest.verdict, newest.measurement, request.config, last_good)
            if cause is Cause.FEW_VALIDATION_SAMPLES:
                fallback = next_fallback(cause, [request.config], ())
                if not (fallback and self.resolve_fallback_data(fallback[0])):
                    cause = None  # the data set has no more samples, so that only seeds add evidence
            if cause or newest.verdict.without_findings is not Verdict.INSUFFICIENT_EVIDENCE:
                break
        first, *repeats = results
        if newest.measurement.outcome in OUT_OF_MEMORY:
            known = KnownOutOfMemory(request.config, newest.measurement.outcome, newest.run_id)
            self._out_of_memory.append(known)
        tags: dict[str, str] = {"verdict": newest.verdict.verdict, **({"failure": cause} if cause else {})}
        if repeats:  # the first run was judged before its repeats were made
            tags["repeats"] = str(len(repeats))
        self.tracker.open(first.run_id).set_tags(tags)
        measurements = tuple(result.measurement for result in repeats)
        return replace(first, verdict=newest.verdict, repeats=measurements, fallback=request.fallback, cause=cause)

    def run_once(self, request: StepRequest, earlier_seeds: Sequence[Measurement] = ()) -> StepResult:
        """Make one run, from its start to its verdict; a run that an earlier process has judged is read from disk.

        Args:
            request: what to run.
            earlier_seeds: measurements of the same config under earlier seeds, judged together with this run.

        Raises:
            RunInterrupted: the run was interrupted; it was not judged.
        """
        folder = self._folder(request)
        recorded = folder.verdict
        if recorded and folder.run_id:
            return StepResult(request.step, request.config, folder.measurement, recorded, folder.run_id, folder.path)
        _, future = self._started.pop(folder.path, (None, None))
        if future is None:
            future = self.pool.submit(partial(self._measure, request, self._find_known_out_of_memory(request.config)))
        run, measurement = future.result()
        run.log_summary(measurement)
        if measurement.outcome is Outcome.INTERRUPTED:
            run.finish(measurement.outcome, measurement.ended)
            raise RunInterrupted(f"{request.step.name}: {measurement.detail}")
        verdict = request.judge([*earlier_seeds, measurement])
        run.set_tags({"verdict": verdict.verdict, **{f"verdict.{c.name}": c.verdict for c in verdict.criteria}})
        run.set_tags({f"evidence.{c.name}": c.evidence for c in verdict.criteria})
        run.text(json.dumps(verdict.as_dict(), indent=1), "verdict.json")
        result = StepResult(
            request.step, request.config, measurement, verdict, run.run_id, folder.path, fallback=request.fallback
        )
        self.observer.judged(result, run)
        run.finish(measurement.outcome, measurement.ended)
        folder.set_verdict(verdict)
        return result

    def _measure(self, request: StepRequest, known: KnownOutOfMemory | None) -> _Measured:
        """Open the MLflow run and hand the config to the runner; runs in a thread of the pool.

        A config that ``known`` proves too large is not run, and a run that an earlier process has finished is read from
        disk.
        """
        folder = self._folder(request)
        is_new = folder.run_id is None
        run, note = self._open_run(folder, request)
        measurement = folder.finished_measurement
        if known and is_new:
            measurement = _not_run(request.config, known)
            measurement.save(folder.path / MEASUREMENT)
            run.set_tags({"ruled_out_by": known.run_id})
        elif measurement is None:
            listener = self.observer.begin(request.step, request.config, note)
            with run.closed_on_error(), run.system_metrics():
                measurement = self.make_runner(folder.path, Listeners(run, listener))(request.config)
        return run, measurement

    def _open_run(self, folder: StepFolder, request: StepRequest) -> tuple[TrackedRun, str]:
        """Open the MLflow run of a request, or resume it after a kill; return it with a note for the observer."""
        reopened = self.tracker.resume(folder.run_id) if folder.run_id else None
        if reopened:
            for event in EventTail(folder.path / EVENTS).read():  # events that a kill kept from being sent
                reopened.event(event)
            return reopened, "resumed"
        tags = {
            **self.tags,
            "phase": str(self.phase.number),
            "step_number": str(request.number),
            "step": request.step.name,
            "fingerprint": request.config.fingerprint,
            "folder": str(folder.path),
            **({"searched": str(request.step.search)} if request.step.search else {}),
        }
        notes = []
        if request.fallback:
            tags |= {
                "fallback": str(request.fallback_number),
                "retry_of": request.fallback.retry_of,
                "cause": request.fallback.cause,
                "changed": request.fallback.changed,
            }
            notes.append(f"{request.fallback.changed} after {request.fallback.cause}")
        if request.repeat:
            tags["repeat"] = str(request.repeat)
            notes.append(f"repeat {request.repeat}, seed {request.config.seed}")
        run = self.tracker.start(" ".join([request.step.name, *(f"({note})" for note in notes)]), tags, self._parent)
        run.log_params(request.config)
        run.log_forecast(self.forecast(request.config))
        folder.set_run(run.run_id, request.config)
        return run, ", ".join(notes)

    def _folder(self, request: StepRequest) -> StepFolder:
        return self._attempt.step(request.number, request.step.name, request.fallback_number, request.repeat)

    def _find_known_out_of_memory(self, config: RunConfig) -> KnownOutOfMemory | None:
        """Return a known out-of-memory config that this one is at least as large as; None if there is none."""
        return next((known for known in self._out_of_memory if needs_at_least_memory_of(config, known.config)), None)

    def _plan_changes(self) -> list[str]:
        """Describe how the phase file differs from the one of the newest attempt, if that one has results."""
        for newest in self.attempts.all()[-1:]:
            before = newest.content.get("source")
            if before and newest.has_verdicts and (lines := plan_changes(before, self.phase.as_json())):
                return ["\n".join([f"the plan was changed after attempt {newest.path.name} had results:", *lines])]
        return []

    def _open_attempt(self, fresh: bool) -> tuple[Attempt, TrackedRun]:
        """Open the unfinished attempt at this plan, or a new one, with its parent run in MLflow."""
        fingerprint = plan_fingerprint(self.phase, self.plan)
        attempt = None if fresh else self.attempts.unfinished(fingerprint)
        parent = self.tracker.resume(attempt.content["run_id"]) if attempt else None
        if attempt and parent:
            self.tracker.close_lost(parent.run_id)  # also a run that was opened but not recorded on disk
        else:
            created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            name = f"phase{self.phase.number} attempt {len(self.attempts.all()) + 1}"
            tags = {
                **self.tags,
                "phase": str(self.phase.number),
                "phase_name": self.phase.name,
                "plan": fingerprint,
                "created": created,
            }
            adopted = self.tracker.adopt(self.adoptable_run, name, tags) if self.adoptable_run else None
            parent = adopted or self.tracker.start(name, tags)
            names = [step.name for step, _ in self.plan]
            attempt = self.attempts.new(fingerprint, parent.run_id, created, names, self.phase.as_json())
        # also for a resumed attempt: the kill may have come before
        for name, text in self.phase.as_yaml().items():
            parent.text(text, name)
        return attempt, parent

    def _config(self, number: int) -> RunConfig:
        """Return the config that a step was begun with, else the planned one with the changes of earlier fallbacks."""
        step, planned = self.plan[number - 1]
        folder = self._attempt.step(number, step.name)
        if folder.path in self._started:
            return self._started[folder.path][0]
        kept = {knob: value for knob, value in self._fallback_overrides.items() if knob not in step.set}
        return folder.config or planned.with_overrides(kept)

    def _skip_reason(self, number: int, config: RunConfig) -> str:
        """Return the reason to skip a conditional step that has not begun: its forecast does not fit; else empty."""
        step, _ = self.plan[number - 1]
        was_begun = self._attempt.step(number, step.name).run_id is not None
        if not step.when or was_begun:
            return ""
        size, forecast = compute.get(config.compute), self.forecast(config)
        memories = {"host_peak_mib": self.host_memory_mib(size), "gpu_peak_mib": size.gpu_memory_gib * 1024}
        for quantity, memory_mib in memories.items():
            low = forecast.get(f"{FORECAST}{quantity}_low", 0.0)
            if low > step.memory_margin * memory_mib:
                return (
                    f"not run: forecast of at least {low:,.0f} MiB, over {step.memory_margin:.0%} of {memory_mib:,.0f}"
                )
        return ""

    def _start_independent(self, number: int) -> None:
        """Start the run of this step and the runs of later steps that depend on no verdict.

        A step depends on the one before if that may stop the phase, and on its own search for its config. Repeats and
        fallbacks depend on a verdict. All are judged in the order of the plan.
        """
        if self.pool.max_jobs == 1:
            return
        for index, (step, _) in enumerate(self.plan[number - 1 :], number):
            if step.when and index > number:
                break
            request = StepRequest(index, step, self._config(index))
            folder = self._folder(request)
            is_due = step.search is None and folder.verdict is None and folder.path not in self._started
            if is_due and not self._find_known_out_of_memory(request.config):
                future = self.pool.submit(partial(self._measure, request, None))
                self._started[folder.path] = request.config, future
            if step.search or "stop" in (step.on_failure, step.on_insufficient):
                break

    def _record_last_good(self, result: StepResult) -> None:
        """Write the last good config to its file and to MLflow."""
        content = {"config": result.config.as_dict(), "step": result.step.name, "run_id": result.run_id}
        write_json(self.attempts.last_good_file, content)
        self._parent.set_tags({"last_good": result.step.name, "last_good_run": result.run_id})
        self.tracker.open(result.run_id).set_aliases(*last_good_aliases(self.phase.number))


def last_good_aliases(phase: int) -> tuple[str, str]:
    """Return the aliases of a last good model in MLflow's registry: of this phase, and of the newest phase."""
    return f"phase{phase}-last-good", "last-good"


def _not_run(config: RunConfig, known: KnownOutOfMemory) -> Measurement:
    """Return the measurement of a config that is not run, as a smaller one has run out of memory."""
    size = f"batch_size={known.config.batch_size} num_workers={known.config.num_workers}"
    detail = (
        f"not run: at least as large in every dimension as run {known.run_id} ({size} "
        f"image_size={known.config.image_size}), which ended as {known.outcome}; --fresh forgets that"
    )
    return Measurement(known.outcome, detail, config.fingerprint)
