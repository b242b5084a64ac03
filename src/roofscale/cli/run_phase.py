"""The commands that climb: one phase, or all of them in order."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from roofscale import invocation
from roofscale.cli import dry_run, prerequisites, run_gate
from roofscale.cli.climb_options import PHASES, ClimbOptions
from roofscale.cli.console import ProgressBar, console, plain
from roofscale.cli.preflight import job_requests, preflight
from roofscale.cli.run_records import promote_champion
from roofscale.cli.run_report import STRATEGY, write_report
from roofscale.cli.run_train import print_next_steps
from roofscale.config import RunConfig
from roofscale.data.sources import resolve_data
from roofscale.errors import ConfigError, ExitCode, RoofscaleError
from roofscale.forecast.history import dataset_sizes_cached
from roofscale.forecast.run_forecaster import RunForecaster
from roofscale.measurement import Outcome
from roofscale.phases import starting_config
from roofscale.phases.attempt import Attempts
from roofscale.phases.fallback import ADVICE
from roofscale.phases.gate import CPU_PHASES
from roofscale.phases.history import latest_result, out_of_memory
from roofscale.phases.judge import Verdict
from roofscale.phases.phase_file import Phase, Plan, Step, plan_fingerprint
from roofscale.phases.phase_runner import PhaseRunner
from roofscale.phases.results import PhaseResult, StepResult
from roofscale.provenance import git_state
from roofscale.report.artifacts import publish_phase, publish_run
from roofscale.report.format import as_json, verdict_table
from roofscale.report.phase_section import description, phase_section
from roofscale.report.phase_status import batch_words, is_complete_base
from roofscale.runners import registry
from roofscale.runners.job_pool import JobPool
from roofscale.runners.supervise import Listener
from roofscale.tracking import TrackedRun, Tracker, check_server, get_run
from roofscale.tracking.history import SEARCH_EXPERIMENT, SEARCHING, experiment_name

if TYPE_CHECKING:
    from roofscale.phases.search.step_search import StepSearch

_EXIT = {
    Verdict.PASSED: ExitCode.DONE,
    Verdict.FAILED: ExitCode.FAILED,
    Verdict.INSUFFICIENT_EVIDENCE: ExitCode.NOT_ENOUGH_EVIDENCE,
}


def exit_code(climbed: PhaseResult) -> int:
    """The exit code of a climb's verdict."""
    return ExitCode.INTERRUPTED if climbed.interrupted else _EXIT[climbed.verdict]


def preview(phase: Phase, order: ClimbOptions) -> None:
    """Say what a phase would run, what it expects, how it would be judged, and what that would take."""
    if order.storage:
        from roofscale.phases.search.step_search import require_storage

        require_storage(order.storage)
    first = () if order.from_defaults else prerequisites.lacking(phase, order.load, order.runs)
    good, said = starting_config.starting_config(phase, order.runs, order.cache, order.from_defaults or bool(first))
    if first:
        said = f"To be climbed first: {prerequisites.numbered(first)}; shown here from the defaults."
    plan = phase.resolve(good, order.words_for(phase))
    attempts = Attempts(order.runs, experiment_name(phase.number))
    folders = [attempts.next_folder / f"{place:02d}-{step.name}" for place, (step, _) in enumerate(plan, 1)]
    requests = job_requests(order.runner, dict(zip(folders, (config for _, config in plan), strict=True)))
    dry_run.print_plan(phase, plan, said, order.to_json, requests)


def preview_all(order: ClimbOptions) -> None:
    """Say what all phases would run."""
    for number in PHASES:
        preview(order.load(number), order)


def climb_phase(number: int, order: ClimbOptions, file: Path | None = None) -> PhaseResult | None:
    """Climb a phase, and leave its results on the terminal, in MLflow and in the documents.

    What it stands on is climbed first, where none of that is on record.

    Returns:
        What it came to, or the phase below that it cannot stand on; None where a requirement of the phase is not met,
        which is said on the terminal.
    """
    return _climb_and_publish(lambda: order.load(number, file), order, Attempts(order.runs, experiment_name(number)))


def climb_search(order: ClimbOptions, file: Path | None = None) -> PhaseResult | None:
    """Climb the base step and the searching steps of phase 3, which then has its last good config from it."""
    last_good_of = experiment_name(SEARCHING)
    attempts = Attempts(order.runs, SEARCH_EXPERIMENT, last_good_of)
    return _climb_and_publish(lambda: order.load(SEARCHING, file).searching(), order, attempts)


def _climb_and_publish(read: Callable[[], Phase], order: ClimbOptions, attempts: Attempts) -> PhaseResult | None:
    phase, out = read(), console(quiet=order.to_json)
    check_server()
    _publish_what_a_kill_left(order, out)
    if order.storage:
        from roofscale.phases.search.step_search import open_storage

        open_storage(order.storage, order.runs)  # a search would come upon its fault only after its first runs
    phase.resolve(overrides=order.words_for(phase))  # refuses what does not fit before anything is climbed
    no_gpu = run_gate.lacks_gpu(phase, order.words_for(phase), order.runner)
    first = prerequisites.lacking(phase, order.load, order.runs) if order.force or not no_gpu else ()
    if not order.from_defaults and (stopped := _climb_first(first, f"Phase {phase.number}", order, out)):
        return stopped
    out.print(f"[bold]Phase {phase.number}: {phase.name}[/] {escape(phase.question)}")
    unmet = "; and ".join([*run_gate.closed(phase, out), *no_gpu])
    if unmet and not order.force:
        if not order.to_json:
            preview(phase, order)
        out.print(f"Phase {phase.number} was not begun: {escape(unmet)}")
        return None
    good, said = starting_config.starting_config(phase, order.runs, order.cache, order.from_defaults)
    out.print(escape(said))
    plan = phase.resolve(good, order.words_for(phase))
    configs = resolve_data([config for _, config in plan], order.cache, plain(out))
    preflight(order.runner, configs, out)
    plan = [(step, config) for (step, _), config in zip(plan, configs, strict=True)]
    done = order.goes_on and not order.fresh and attempts.is_finished(plan_fingerprint(phase, plan))
    if done and (before := latest_result(phase.number)):
        again = invocation.command("phase", phase.number, fresh=True)
        out.print(f"Climbed before, at this very plan: {before.verdict.label}. Anew: {escape(again)}")
        return before
    notes = [f"forced although {unmet}"] if unmet else []
    tracker = Tracker(attempts.experiment, order.runs)
    climbed = _climb(phase, plan, good if phase.needs else None, attempts, tracker, order, out, notes)
    publish_result(_with_edit_noted(climbed, read), tracker, order, out)
    return climbed


def climb_missing(order: ClimbOptions) -> PhaseResult | None:
    """Climb the CPU phases that were not climbed to their end; return the one that ends this, if one does."""
    check_server()
    first = [order.load(number) for number in CPU_PHASES if not prerequisites.is_climbed(number, order.runs)]
    return _climb_first(first, "The gate", order, console(quiet=order.to_json))


def _climb_first(first: Sequence[Phase], who: str, order: ClimbOptions, out: Console) -> PhaseResult | None:
    """Climb what a phase, or the gate, stands on; return the phase that nothing can stand on, None where all carry."""
    if first:
        out.print(f"{who} stands on {prerequisites.numbered(first)}, not climbed to the end yet: climbed first.")
    if not order.fresh:
        prerequisites.refuse_failed(first)
    for place, phase in enumerate(first):
        its = order.below(phase)
        good, _ = starting_config.starting_config(phase, order.runs, order.cache, order.from_defaults)
        out.print(prerequisites.time_to_go(first[place:], good, lambda p: order.below(p).words_for(p)))
        if left := [word for word in order.overrides if word not in its.overrides]:
            out.print(f"Left out in phase {phase.number}, whose steps set it themselves: {escape(' '.join(left))}")
        climbed = climb_phase(phase.number, its)
        if climbed is None or not is_complete_base(climbed):
            return climbed
    return None


def _climb(
    phase: Phase,
    plan: Plan,
    good: RunConfig | None,
    attempts: Attempts,
    tracker: Tracker,
    order: ClimbOptions,
    out: Console,
    notes: Sequence[str],
) -> PhaseResult:
    tags, foreseen = git_state(Path.cwd()), RunForecaster(order.runs, plain(out), order.runner)
    where = registry.get_runner(order.runner)
    pool = JobPool(where.most, where.interrupt)
    around = order.around if order.asked else None
    phase_runner = PhaseRunner(
        phase=phase,
        plan=plan,
        tracker=tracker,
        attempts=attempts,
        make_runner=where.make,
        observer=_Reporter(out, foreseen),
        tags=tags,
        last_good=good,
        known_out_of_memory=() if order.fresh else out_of_memory(PHASES),
        notes=notes,
        forecast=foreseen,
        resolve_data=partial(_settle_more, [config for _, config in plan], order, out),
        search=_conductor(phase, tracker, order, out, tags, where.make, pool),
        pool=pool,
        parent_run=around.run_id if around and around.experiment_id == tracker.experiment_id else "",
    )
    return phase_runner.run_phase(order.fresh)


def _settle_more(
    planned: Sequence[RunConfig], order: ClimbOptions, out: Console, config: RunConfig
) -> RunConfig | None:
    """Find the samples of a remedy that validates on more of them than was planned; None where there are no more."""
    most = max(one.val_samples for one in planned)
    if config.val_samples <= most:
        return config
    if Path(config.data_root).is_relative_to(order.cache):
        return resolve_data(
            [one.with_overrides({"data_root": ""}) for one in (config, *planned)], order.cache, plain(out)
        )[0]
    return config if max(val for _, val in dataset_sizes_cached(config).samples.values()) > most else None


def _conductor(
    phase: Phase,
    tracker: Tracker,
    order: ClimbOptions,
    out: Console,
    tags: Mapping[str, str],
    make_runner: registry.MakeRunner,
    pool: JobPool,
) -> "StepSearch | None":
    if not any(step.search for step in phase.steps):
        return None
    from roofscale.cli.run_search import make_step_search  # seconds of imports

    return make_step_search(tracker, make_runner, out, tags, order.storage, pool, order.runner)


def publish_result(climbed: PhaseResult, tracker: Tracker, order: ClimbOptions, out: Console) -> None:
    """Close the parent run in MLflow with the result of the attempt, then write the documents of all phases.

    Raises:
        TrackingError: the server is away; the result was printed and is kept.
    """
    parent = tracker.open(climbed.run_id)
    coming = _following(climbed.phase.number, order)
    try:
        # The parent run's description and report are rendered from memory, not from the server as the documents below
        # are, so that the outbox keeps them while the server is away; with the notes the server has the same data.
        parent.set_tags({"notes": json.dumps(climbed.notes)})
        parent.set_description(description(phase_section(climbed, coming), STRATEGY))
        if not climbed.interrupted:
            parent.set_tags({"verdict": climbed.verdict})
            publish_phase(parent, climbed, coming)
    finally:
        parent.finish(Outcome.INTERRUPTED if climbed.interrupted else Outcome.OK)
    told = order.asked or not is_complete_base(climbed)  # what a script reads, and where it is pointed to, is one climb
    if told and order.around:
        order.around.point_to(climbed.run_id)
    if told or not order.to_json:
        _print_climb(out, climbed, tracker, order.to_json)
    if climbed.phase.number == PHASES[-1]:
        promote_champion(climbed, tracker, out)
    tracker.close(wait=not climbed.interrupted)  # the report is made from what the server has
    is_a_phase = tracker.experiment == experiment_name(climbed.phase.number)
    if is_a_phase and not climbed.interrupted and order.experiments.is_dir():
        for written in _write_up(order, out):
            parent.artifact(written)
        tracker.close()


def _publish_what_a_kill_left(order: ClimbOptions, out: Console) -> None:
    """Publish the climbs that were judged to their ends and killed before MLflow's run was closed."""
    for number in PHASES:
        attempts = Attempts(order.runs, experiment_name(number))
        ended = [attempt.content for attempt in attempts.all()[-1:] if attempt.content.get("verdict")]
        open_runs = [run for content in ended if (run := get_run(content["run_id"])) and run.status == "RUNNING"]
        climbed = latest_result(number) if open_runs else None
        if climbed and climbed.run_id == open_runs[0].run_id:
            tracker = Tracker(attempts.experiment, order.runs)
            publish_result(climbed, tracker, replace(order, asked=False, around=None), out)


def _following(number: int, order: ClimbOptions) -> Phase | None:
    """The phase after this one; None where there is none that can be read."""
    try:
        return order.load(number + 1)
    except ConfigError:
        return None


def _write_up(order: ClimbOptions, out: Console) -> list[Path]:
    """Write the documents; one that cannot be read or written must not stop the ladder."""
    try:
        return write_report(order.experiments, out)
    except (RoofscaleError, OSError) as error:
        out.print(escape(f"Not written up: {error} When that is mended: {invocation.command('report')}"))
        return []


def _with_edit_noted(climbed: PhaseResult, read: Callable[[], Phase]) -> PhaseResult:
    """The verdict belongs to the plan as it stood when the climb began; say so where the file says otherwise now."""
    try:
        same = read().fingerprint == climbed.phase.fingerprint
    except ConfigError:
        same = False
    if same:
        return climbed
    note = "the phase file was edited while this attempt ran; the verdicts are those of the plan that it began with"
    return replace(climbed, notes=(*climbed.notes, note))


class _Reporter:
    """Shows a climb on the terminal and publishes each step in MLflow."""

    def __init__(self, out: Console, foreseen: RunForecaster) -> None:
        self._out, self._foreseen = out, foreseen

    def begin(self, step: Step, config: RunConfig, note: str) -> Listener:
        """Announce the run and draw its bar."""
        changes = " ".join(f"{key}={config.to_strings()[key]}" for key in step.set)
        self._out.print(f"[bold]{step.name}[/] {changes} {f'({note})' if note else ''}")
        return ProgressBar(step.name)

    def judged(self, result: StepResult, run: TrackedRun) -> None:
        """Publish the step, say how it went, and let what follows be foreseen by it."""
        self._foreseen.learn(result.config, result.measurement, result.run_id)
        publish_run(run, result.config, result.measurement, result.folder, result.step.memory_margin)
        self._out.print(f"  {result.verdict.verdict.label}: {escape(prerequisites.wanting(result))}")


def _print_climb(out: Console, climbed: PhaseResult, tracker: Tracker, to_json: bool) -> None:
    if to_json:
        print(as_json(climb_json(climbed)))
        return
    out.print()
    out.print(verdict_table(f"Phase {climbed.phase.number}: {climbed.verdict.label}", climbed.results))
    for result in climbed.results:
        for line in _fallback_lines(result):
            out.print(escape(line))
    for name, why in climbed.skipped.items():
        out.print(escape(f"{name}: {why}."))
    if said := batch_words(climbed):
        out.print(escape(said))
    for note in climbed.notes:
        out.print(f"Note: {escape(note)}")
    if climbed.interrupted:
        out.print("Interrupted; the same command goes on where it stopped.")
    print_next_steps(out, tracker, climbed.attempt)


def _fallback_lines(result: StepResult) -> list[str]:
    """What was rolled back in a step, and what a person can do about a failure that no remedy mends."""
    lines = [
        f"{result.step.name}: {run.fallback.changed if run.fallback else 'as asked for'}: {run.verdict.verdict.label}"
        + (f" ({run.cause})" if run.cause else "")
        for run in (result.runs if result.tries else ())
    ]
    advice = ADVICE.get(result.cause) if result.cause else None
    return [*lines, f"{result.step.name}: {advice}."] if advice else lines


def climb_json(climbed: PhaseResult) -> dict[str, object]:
    """A climb for a script: verdict, where it lies, and each run of each step."""
    return {
        "phase": climbed.phase.number,
        "verdict": climbed.verdict,
        "interrupted": climbed.interrupted,
        "run_id": climbed.run_id,
        "folder": str(climbed.attempt),
        "notes": climbed.notes,
        "skipped": dict(climbed.skipped),
        "steps": [
            {
                "step": result.step.name,
                "run_id": result.run_id,
                "outcome": result.measurement.outcome,
                **result.verdict.as_dict(),
                "changed": result.fallback.changed if result.fallback else "",
                "cause": result.cause,
                "tries": [
                    {"run_id": run.run_id, "changed": run.fallback.changed if run.fallback else "", "cause": run.cause}
                    for run in result.tries
                ],
                "metrics": result.measurement.metrics,
            }
            for result in climbed.results
        ],
    }


def climb_all(order: ClimbOptions) -> int:
    """Climb every phase in order; stop where one was interrupted, stopped before its last step, or carries no other.

    What an earlier call has climbed to its end at the same plan is not climbed again, unless anew is asked for.

    Returns:
        The exit code of the first that did not pass. A last phase that this machine cannot run is said, and is no
        failure of the others.
    """
    climbs: list[PhaseResult] = []
    orders = {phase.number: order.in_climb(phase) for phase in map(order.load, PHASES)}
    for number, its in orders.items():
        phase = order.load(number)
        phase.resolve(overrides=its.words_for(phase))  # refuses what does not fit before anything is climbed
    for number, its in orders.items():
        climbed = climb_phase(number, its)
        if climbed is None:
            break
        climbs.append(climbed)
        if not climbed.complete or not (order.from_defaults or is_complete_base(climbed)):
            break
    return next((code for code in map(exit_code, climbs) if code), 0)
