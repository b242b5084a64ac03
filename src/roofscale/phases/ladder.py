"""Climb a phase: run each step, judge it, and go on, repeat, take a remedy or stop, as the phase file says.

The path of one run is ``_run``: open the MLflow run, hand the config to a runner, judge the measurement, write down the
verdict. Whatever kills it before the last line, the same command takes the step up again.
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
from roofscale.config import RunConfig
from roofscale.files import write_json
from roofscale.measurement import FORECAST, Measurement, Outcome
from roofscale.phases.ask import Ask
from roofscale.phases.attempt import Attempt, Attempts, StepFolder, plan_changes
from roofscale.phases.climb import Cause, ClimbResult, Retreat, StepResult, Stopped, hand_on
from roofscale.phases.crew import Crew
from roofscale.phases.judge import Verdict
from roofscale.phases.phase_file import Phase, Plan, Step, plan_fingerprint, repeat_config
from roofscale.phases.retreat import OUT_OF_MEMORY, SIZES, RuledOut, at_least_as_large, find_cause, remedy
from roofscale.runners import Runner
from roofscale.runners.events import EventTail
from roofscale.runners.local import EVENTS, MEASUREMENT
from roofscale.runners.supervise import Listener, Listeners
from roofscale.tracking import TrackedRun, Tracker

if TYPE_CHECKING:
    from roofscale.phases.search.step_search import Conductor  # Optuna and scikit-learn: only where a phase searches


_Made = tuple[TrackedRun, Measurement]


class Audience(Protocol):
    """Whoever follows a climb: a terminal, the report."""

    def begin(self, step: Step, config: RunConfig, note: str) -> Listener:
        """A run of a step begins; return the listener for its events."""
        ...

    def judged(self, result: StepResult, run: TrackedRun) -> None:
        """A step has its verdict; its MLflow run is still open for figures and the model."""
        ...


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
    good: RunConfig | None = None  # the last good config of the phase before, where this one stands on it
    ruled_out: Sequence[RuledOut] = ()  # what ran out of memory in earlier attempts
    notes: Sequence[str] = ()  # what a reader of the verdict has to know already
    foresee: Callable[[RunConfig], Mapping[str, float]] = lambda config: {}  # metrics of a run that is about to begin
    settle: Callable[[RunConfig], RunConfig | None] = lambda config: config  # a remedy's data; None: there is no more
    search: "Conductor | None" = None  # for the steps that search
    crew: Crew = field(default_factory=Crew)  # how many runs may go on at a time
    parent_run: str = ""  # an empty MLflow run of this experiment that a new attempt makes its own
    _full: list[RuledOut] = field(default_factory=list, init=False)
    _begun: dict[Path, tuple[RunConfig, "Future[_Made]"]] = field(default_factory=dict, init=False)  # before their turn
    _remedies: dict[str, Any] = field(default_factory=dict, init=False)  # that earlier steps needed

    def climb(self, fresh: bool = False) -> ClimbResult:
        """Climb from the bottom, or, unless ``fresh``, from where the newest attempt at this plan was left.

        Raises:
            Busy: another process climbs this phase.
        """
        with self.attempts.lock():
            changes = self._plan_changes()
            attempt, parent = self._open(fresh)
            notes = attempt.keep_notes([*self.notes, *changes])
            parent.tags({"attempt": str(attempt.path), "notes": json.dumps(notes)})
            self._full = [known for known in self.ruled_out if known.attempt != parent.run_id]
            done: list[StepResult] = []
            skipped: dict[str, str] = dict(attempt.content.get("skipped", {}))
            self._remedies = {}
            interrupted = False
            try:
                with self.crew.at_work():
                    for number, (step, _) in enumerate(self.plan, 1):
                        config = self._config(attempt, number)
                        if self._skips(attempt, parent, number, config, skipped):
                            continue
                        self._begin_independent(attempt, parent, number)
                        result = self._step(attempt, parent, Ask(number, step, config, tuple(done)))
                        done.append(result)
                        self._remedies |= _remedies(result)
                        if good := hand_on(self.phase, done):
                            self._remember(good, parent)
                        if self._stops(result):
                            break
            except Stopped as stopped:
                interrupted = True
                notes = (*notes, str(stopped))
            climbed = ClimbResult(
                phase=self.phase,
                attempt=attempt.path,
                run_id=parent.run_id,
                results=tuple(done),
                interrupted=interrupted,
                experiment=self.tracker.experiment,
                created=attempt.content["created"],
                commit=self.tags.get("git_commit", ""),
                notes=notes,
                skipped=skipped,
            )
            if not interrupted:
                attempt.update(verdict=climbed.verdict)
            return climbed

    def _config(self, attempt: Attempt, number: int) -> RunConfig:
        """The config that a step asks for: the one that it was begun with, else its own with the earlier remedies."""
        step, planned = self.plan[number - 1]
        folder = attempt.step(number, step.name)
        if folder.path in self._begun:
            return self._begun[folder.path][0]
        kept = {knob: value for knob, value in self._remedies.items() if knob not in step.set}
        return folder.config or planned.with_overrides(kept)

    def _skips(
        self, attempt: Attempt, parent: TrackedRun, number: int, config: RunConfig, skipped: dict[str, str]
    ) -> bool:
        """Whether a step is left out because its forecast says that it does not fit; noted once, as the reason."""
        step, _ = self.plan[number - 1]
        is_new = step.name not in skipped and attempt.step(number, step.name).run_id is None
        if step.when and is_new and (why := _too_large(step, config, self.foresee(config))):
            skipped[step.name] = why
            attempt.update(skipped=skipped)
            parent.tags({"skipped": json.dumps(skipped)})
        return step.name in skipped

    def _plan_changes(self) -> list[str]:
        """What the phase file says otherwise than in the newest attempt, if that one has seen results already."""
        for newest in self.attempts.all()[-1:]:
            before = newest.content.get("said")
            if before and newest.has_verdicts and (lines := plan_changes(before, self.phase.as_json())):
                return [f"the plan was changed after attempt {newest.path.name} had results: {'; '.join(lines)}"]
        return []

    def _open(self, fresh: bool) -> tuple[Attempt, TrackedRun]:
        fingerprint = plan_fingerprint(self.phase, self.plan)
        attempt = None if fresh else self.attempts.unfinished(fingerprint)
        parent = self.tracker.resume(attempt.content["run_id"]) if attempt else None
        if attempt and parent:
            self.tracker.close_lost(parent.run_id)  # also a run that was opened and not yet noted on disk
            self._log_documents(parent)  # a kill may have come before them
            return attempt, parent
        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        number = len(self.attempts.all()) + 1
        name = f"phase{self.phase.number} attempt {number}"
        tags = {
            **self.tags,
            "phase": str(self.phase.number),
            "phase_name": self.phase.name,
            "plan": fingerprint,
            "created": created,
        }
        adopted = self.tracker.adopt(self.parent_run, name, tags) if self.parent_run else None
        parent = adopted or self.tracker.start(name, tags)
        names = [step.name for step, _ in self.plan]
        attempt = self.attempts.new(fingerprint, parent.run_id, created, names, self.phase.as_json())
        self._log_documents(parent)
        return attempt, parent

    def _log_documents(self, parent: TrackedRun) -> None:
        for name, text in self.phase.documents().items():
            parent.text(text, name)

    def _begin_independent(self, attempt: Attempt, parent: TrackedRun, number: int) -> None:
        """Begin this step and those after it that are run whatever the ones before them come to.

        A step depends on the one before where that may stop the climb, and on its own search for its config. Repeats
        and remedies depend on a verdict. All are judged in the order of the plan.
        """
        if self.crew.most == 1:
            return
        for place, (step, _) in enumerate(self.plan[number - 1 :], number):
            if step.when and place > number:
                break
            folder, config = attempt.step(place, step.name), self._config(attempt, place)
            known = self._known(config)
            if step.search is None and folder.verdict is None and folder.path not in self._begun and not known:
                ask = Ask(place, step, config, ())
                self._begun[folder.path] = config, self.crew.start(partial(self._make, folder, parent, ask, 0, None))
            if step.search or "stop" in (step.on_failure, step.on_insufficient):
                break

    def _step(self, attempt: Attempt, parent: TrackedRun, ask: Ask) -> StepResult:
        """Bring a step to its verdict: at its own config, then, where the cause suggests it, with remedies.

        The deciding run is the last that passed, of sizes the largest, else the one that the step asks for.
        """
        ask = self._search(attempt, parent, ask)
        passed_before = (r.config for r in reversed(ask.done) if r.verdict.verdict is Verdict.PASSED)
        good = next(passed_before, self.good)
        asked = self._measure(attempt, parent, ask, good)
        runs, newest = [asked], asked
        failed, held = [asked.config], [good] if good else []
        while asked.cause and len(runs) <= ask.step.max_retreats:
            cause = newest.cause or asked.cause
            found = remedy(cause, failed, held, [known.config for known in self._full])
            config = self.settle(found[0]) if found else None
            if not found or config is None:
                break
            ask = ask.with_remedy(config, Retreat(asked.run_id, cause, found[1]))
            newest = self._measure(attempt, parent, ask, good)
            runs.append(newest)
            passed = newest.verdict.verdict is Verdict.PASSED
            (held if passed else failed).append(ask.config)
            if cause not in SIZES and not newest.cause:
                break
        deciding = next((run for run in reversed(runs) if run.verdict.verdict is Verdict.PASSED), asked)
        self.tracker.open(deciding.run_id).tags({"decides": "true"})
        return replace(deciding, step=asked.step, tries=tuple(run for run in runs if run is not deciding))

    def _search(self, attempt: Attempt, parent: TrackedRun, ask: Ask) -> Ask:
        """The step at the config that its search has chosen; its run confirms that, and is judged like any other."""
        if ask.step.search is None:
            return ask
        assert self.search, "whoever climbs a phase that searches says how"
        found = self.search.choose(ask.step.search, ask.config, attempt.search(ask.number, ask.step.name), parent)
        step = replace(ask.step, set={**ask.step.set, **found})
        return replace(ask, step=step, config=ask.config.with_overrides(found))

    def _measure(self, attempt: Attempt, parent: TrackedRun, ask: Ask, good: RunConfig | None) -> StepResult:
        """Run one config and, while the evidence of what decides is insufficient and the phase file says so, repeat it.

        Not where more validation samples are the remedy, as another seed would show the same few; and not for a
        finding, which holds nothing up.
        """
        known = self._known(ask.config)
        runs: list[Measurement] = []
        for repeat in range(ask.step.most_repeats + 1):
            folder = attempt.step(ask.number, ask.step.name, ask.retreats, repeat)
            config = repeat_config(ask.config, repeat) if repeat else ask.config
            result = self._run(folder, parent, replace(ask, config=config), repeat, runs, known)
            runs.append(result.measurement)
            if repeat == 0:
                first = result
            cause = find_cause(result.verdict, runs[-1], ask.config, good)
            if cause is Cause.FEW_VALIDATION_SAMPLES:
                more = remedy(cause, [ask.config], ())
                cause = cause if more and self.settle(more[0]) else None  # then seeds are all that can tell more
            if cause or result.verdict.sound is not Verdict.INSUFFICIENT_EVIDENCE:
                break
        if runs[-1].outcome in OUT_OF_MEMORY:
            self._full.append(RuledOut(ask.config, runs[-1].outcome, result.run_id))
        tags: dict[str, str] = {"verdict": result.verdict.verdict, **({"failure": cause} if cause else {})}
        if runs[1:]:  # the first run was filed before its repeats could speak
            tags["repeats"] = str(len(runs) - 1)
        self.tracker.open(first.run_id).tags(tags)
        return replace(first, verdict=result.verdict, repeats=tuple(runs[1:]), retreat=ask.retreat, cause=cause)

    def _run(
        self,
        folder: StepFolder,
        parent: TrackedRun,
        ask: Ask,
        repeat: int,
        before: Sequence[Measurement],
        known: RuledOut | None,
    ) -> StepResult:
        """One run, start to verdict; what an earlier process finished is only read.

        Raises:
            Stopped: the run was interrupted.
        """
        judged = folder.verdict
        if judged and folder.run_id:
            return StepResult(ask.step, ask.config, folder.measurement, judged, folder.run_id, folder.path)
        _, begun = self._begun.pop(folder.path, (None, None))
        run, measurement = (begun or self.crew.start(lambda: self._make(folder, parent, ask, repeat, known))).result()
        run.summary(measurement)
        if measurement.outcome is Outcome.INTERRUPTED:
            run.finish(measurement.outcome)
            raise Stopped(f"{ask.step.name}: {measurement.detail}")
        verdict = ask.judge([*before, measurement])
        run.tags({"verdict": verdict.verdict, **{f"verdict.{c.name}": c.verdict for c in verdict.criteria}})
        run.tags({f"evidence.{c.name}": c.evidence for c in verdict.criteria})
        run.text(json.dumps(verdict.as_dict(), indent=1), "verdict.json")
        result = StepResult(ask.step, ask.config, measurement, verdict, run.run_id, folder.path, retreat=ask.retreat)
        self.audience.judged(result, run)
        run.finish(measurement.outcome)
        folder.judge(verdict)
        return result

    def _make(self, folder: StepFolder, parent: TrackedRun, ask: Ask, repeat: int, known: RuledOut | None) -> _Made:
        """Open the MLflow run, and measure in it what no earlier process has measured, nor has under way."""
        is_new = folder.run_id is None
        run, note = self._open_run(folder, parent, ask, repeat)
        if known and is_new:
            measurement = _not_run(ask.config, known)
            measurement.save(folder.path / MEASUREMENT)
            run.tags({"ruled_out_by": known.run_id})
        elif folder.measured:
            measurement = folder.measured
        else:
            listener = self.audience.begin(ask.step, ask.config, note)
            with run.system_metrics():
                measurement = self.make_runner(folder.path, Listeners(run, listener))(ask.config)
        return run, measurement

    def _open_run(self, folder: StepFolder, parent: TrackedRun, ask: Ask, repeat: int) -> tuple[TrackedRun, str]:
        again = self.tracker.resume(folder.run_id) if folder.run_id else None
        if again:
            for event in EventTail(folder.path / EVENTS).read():  # a kill may have lost what was not yet sent
                again.event(event)
            return again, "taken up again"
        tags = {
            **self.tags,
            "phase": str(self.phase.number),
            "place": str(ask.number),
            "step": ask.step.name,
            "fingerprint": ask.config.fingerprint,
            "folder": str(folder.path),
            **({"searched": str(ask.step.search)} if ask.step.search else {}),
        }
        notes = []
        if ask.retreat:
            tags |= {
                "retreat": str(ask.retreats),
                "retry_of": ask.retreat.retry_of,
                "cause": ask.retreat.cause,
                "changed": ask.retreat.changed,
            }
            notes.append(f"{ask.retreat.changed} after {ask.retreat.cause}")
        if repeat:
            tags["repeat"] = str(repeat)
            notes.append(f"repeat {repeat}, seed {ask.config.seed}")
        run = self.tracker.start(" ".join([ask.step.name, *(f"({note})" for note in notes)]), tags, parent)
        run.params(ask.config)
        run.foreseen(self.foresee(ask.config))
        folder.begin(run.run_id, ask.config)
        return run, ", ".join(notes)

    def _known(self, config: RunConfig) -> RuledOut | None:
        """A config that ran out of memory and is no larger in any dimension."""
        return next((known for known in self._full if at_least_as_large(config, known.config)), None)

    def _remember(self, result: StepResult, parent: TrackedRun) -> None:
        content = {"config": result.config.as_dict(), "step": result.step.name, "run_id": result.run_id}
        write_json(self.attempts.last_good_file, content)
        parent.tags({"last_good": result.step.name, "last_good_run": result.run_id})
        self.tracker.open(result.run_id).promote(*last_good_aliases(self.phase.number))

    def _stops(self, result: StepResult) -> bool:
        """Whether the phase ends here; a finding never ends it."""
        sound, step = result.verdict.sound, result.step
        policy = {Verdict.FAILED: step.on_failure, Verdict.INSUFFICIENT_EVIDENCE: step.on_insufficient}
        return policy.get(sound) == "stop"


def last_good_aliases(phase: int) -> tuple[str, str]:
    """What a phase's last good model is called in MLflow's registry: of this phase, and of whichever came last."""
    return f"phase{phase}-last-good", "last-good"


def _not_run(config: RunConfig, known: RuledOut) -> Measurement:
    """What stands for a run that was not made, because another one speaks for it."""
    size = f"batch_size={known.config.batch_size} num_workers={known.config.num_workers}"
    detail = (
        f"not run: at least as large in every dimension as run {known.run_id} ({size} "
        f"image_size={known.config.image_size}), which ended as {known.outcome}; --fresh forgets that"
    )
    return Measurement(known.outcome, detail, config.fingerprint)


def _remedies(result: StepResult) -> dict[str, Any]:
    """The knobs that a step's remedies have changed on what it asked for, where one of them made it pass."""
    asked = result.runs[0].config
    return {knob: getattr(result.config, knob) for knob in result.config.changed_from(asked)} if result.retreat else {}


def _too_large(step: Step, config: RunConfig, foreseen: Mapping[str, float]) -> str:
    """Why a config does not fit, by its forecast: its peak is certainly over the step's margin; empty where it may."""
    most = next((spec.limits["max_share"] for spec in step.criteria if spec.name == "memory_margin"), 1.0)
    where = compute.get(config.compute)
    for quantity, gib in (("host_peak_mib", where.memory_gib), ("gpu_peak_mib", where.gpu_memory_gib)):
        low = foreseen.get(f"{FORECAST}{quantity}_low", 0.0)
        if low > most * gib * 1024:
            return f"not run: forecast of at least {low:,.0f} MiB, over {most:.0%} of {gib * 1024:,.0f}"
    return ""
