"""Phase, climb and search commands: run phases, print and publish their results."""

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
from roofscale.cli.climb_options import ClimbOptions
from roofscale.cli.console import ProgressBar, console, plain
from roofscale.cli.preflight import plan_jobs, preflight
from roofscale.cli.run_records import promote_champion
from roofscale.cli.run_train import print_next_steps
from roofscale.config import RunConfig
from roofscale.data.sources import resolve_data
from roofscale.errors import ConfigError, ExitCode, RoofscaleError
from roofscale.forecast.history import dataset_sizes_cached
from roofscale.forecast.run_forecaster import RunForecaster
from roofscale.invocation import PHASES, SEARCHING
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
from roofscale.report.format import as_json, verdict_table
from roofscale.report.phase_status import batch_words, is_complete_base
from roofscale.runners import registry
from roofscale.runners.job_pool import JobPool
from roofscale.runners.supervise import Listener
from roofscale.tracking import TrackedRun, Tracker, check_server, get_run
from roofscale.tracking.history import SEARCH_EXPERIMENT, experiment_name

if TYPE_CHECKING:
    from roofscale.phases.search.step_search import StepSearch

_NEEDED_AFTER = ("roofscale.report.artifacts", "roofscale.cli.run_report")  # import matplotlib, nbformat and Jinja
_EXIT = {
    Verdict.PASSED: ExitCode.DONE,
    Verdict.FAILED: ExitCode.FAILED,
    Verdict.INSUFFICIENT_EVIDENCE: ExitCode.NOT_ENOUGH_EVIDENCE,
}


def exit_code(climbed: PhaseResult) -> int:
    """Return the exit code of a result."""
    return ExitCode.INTERRUPTED if climbed.interrupted else _EXIT[climbed.verdict]


def preview(phase: Phase, options: ClimbOptions) -> None:
    """Print what a phase would run, expect and judge, with the forecast of it."""
    if options.storage:
        from roofscale.phases.search.step_search import require_storage

        require_storage(options.storage)
    first = () if options.from_defaults else prerequisites.missing_phases(phase, options.load, options.runs)
    good, start = starting_config.starting_config(
        phase, options.runs, options.cache, options.from_defaults or bool(first)
    )
    if first:
        start = f"To be climbed first: {prerequisites.numbered(first)}; shown here from the defaults."
    plan = phase.resolve(good, options.overrides_for(phase))
    attempts = Attempts(options.runs, experiment_name(phase.number))
    folders = [attempts.next_folder / f"{number:02d}-{step.name}" for number, (step, _) in enumerate(plan, 1)]
    jobs = plan_jobs(options.runner, dict(zip(folders, (config for _, config in plan), strict=True)))
    dry_run.print_plan(phase, plan, start, options.to_json, jobs)


def last_step(options: ClimbOptions) -> RunConfig:
    """Return the config of the GPU phase's last step, from the last good config."""
    phase = options.load(PHASES[-1])
    good, _ = starting_config.starting_config(phase, options.runs, options.cache, options.from_defaults)
    return phase.resolve(good, options.overrides_for(phase))[-1][1]


def preview_all(options: ClimbOptions) -> None:
    """Print what all phases would run."""
    for number in PHASES:
        preview(options.load(number), options)


def climb_phase(number: int, options: ClimbOptions, file: Path | None = None) -> PhaseResult | None:
    """Climb a phase, after the phases it needs; print the result and publish it in MLflow and the documents.

    Returns:
        The result, or that of a needed phase that failed; None if a requirement of the phase is not met, which is
        printed.
    """
    return _climb_and_publish(
        lambda: options.load(number, file), options, Attempts(options.runs, experiment_name(number))
    )


def climb_search(options: ClimbOptions, file: Path | None = None) -> PhaseResult | None:
    """Climb the base step and the searching steps of phase 3, and set the last good config of that phase."""
    last_good_of = experiment_name(SEARCHING)
    attempts = Attempts(options.runs, SEARCH_EXPERIMENT, last_good_of)
    return _climb_and_publish(lambda: options.load(SEARCHING, file).searching(), options, attempts)


def _climb_and_publish(read: Callable[[], Phase], options: ClimbOptions, attempts: Attempts) -> PhaseResult | None:
    phase, out = read(), console(quiet=options.to_json)
    check_server()
    _publish_unpublished(options, out)
    if options.storage:
        from roofscale.phases.search.step_search import open_storage

        open_storage(options.storage, options.runs)  # before the first runs, as the search uses it only after them
    phase.resolve(overrides=options.overrides_for(phase))  # refuses wrong overrides before anything runs
    gpu_problems = run_gate.lacks_gpu(phase, options.overrides_for(phase), options.runner)
    first = prerequisites.missing_phases(phase, options.load, options.runs) if options.force or not gpu_problems else ()
    if not options.from_defaults and (stopped := _climb_needed(first, f"Phase {phase.number}", options, out)):
        return stopped
    out.print(f"[bold]Phase {phase.number}: {phase.name}[/] {escape(phase.question)}")
    unmet = "; and ".join([*run_gate.closed(phase, out), *gpu_problems])
    if unmet and not options.force:
        if not options.to_json:
            preview(phase, options)
        out.print(f"Phase {phase.number} was not begun: {escape(unmet)}")
        return None
    good, start = starting_config.starting_config(phase, options.runs, options.cache, options.from_defaults)
    out.print(escape(start))
    plan = phase.resolve(good, options.overrides_for(phase))
    configs = resolve_data([config for _, config in plan], options.cache, plain(out))
    preflight(options.runner, configs, out)
    plan = [(step, config) for (step, _), config in zip(plan, configs, strict=True)]
    done = options.skip_complete and not options.fresh and attempts.is_finished(plan_fingerprint(phase, plan))
    if done and (before := latest_result(phase.number)):
        again = invocation.command("phase", phase.number, fresh=True)
        out.print(f"Climbed before, at this very plan: {before.verdict.label}. Anew: {escape(again)}")
        return before
    notes = [f"forced although {unmet}"] if unmet else []
    tracker = Tracker(attempts.experiment, options.runs)
    climbed = _climb(phase, plan, good if phase.needs else None, attempts, tracker, options, out, notes)
    publish_result(_with_edit_noted(climbed, read), tracker, options, out)
    return climbed


def climb_missing(options: ClimbOptions) -> PhaseResult | None:
    """Climb the CPU phases that are not complete; return the result that stops this, if one does."""
    check_server()
    first = [options.load(number) for number in CPU_PHASES if not prerequisites.is_climbed(number, options.runs)]
    return _climb_needed(first, "The gate", options, console(quiet=options.to_json))


def _climb_needed(phases: Sequence[Phase], needed_by: str, options: ClimbOptions, out: Console) -> PhaseResult | None:
    """Climb the phases that a phase or the gate needs; return the first failed result, None if all succeeded."""
    if phases:
        out.print(f"{needed_by} needs {prerequisites.numbered(phases)}, not complete yet: climbing first.")
    if not options.fresh:
        prerequisites.refuse_failed(phases)
    for index, phase in enumerate(phases):
        phase_options = options.for_needed_phase(phase)
        good, _ = starting_config.starting_config(phase, options.runs, options.cache, options.from_defaults)
        out.print(
            prerequisites.time_needed(phases[index:], good, lambda p: options.for_needed_phase(p).overrides_for(p))
        )
        if dropped := [word for word in options.overrides if word not in phase_options.overrides]:
            out.print(f"Left out in phase {phase.number}, whose steps set it themselves: {escape(' '.join(dropped))}")
        climbed = climb_phase(phase.number, phase_options)
        if climbed is None or not is_complete_base(climbed):
            return climbed
    return None


def _climb(
    phase: Phase,
    plan: Plan,
    good: RunConfig | None,
    attempts: Attempts,
    tracker: Tracker,
    options: ClimbOptions,
    out: Console,
    notes: Sequence[str],
) -> PhaseResult:
    tags, forecaster = git_state(Path.cwd()), RunForecaster(options.runs, plain(out), options.runner)
    factory = registry.get_runner(options.runner, _NEEDED_AFTER)
    pool = JobPool(factory.max_jobs, factory.stop_request)
    project_run = options.project_run if options.requested else None
    phase_runner = PhaseRunner(
        phase=phase,
        plan=plan,
        tracker=tracker,
        attempts=attempts,
        make_runner=factory.make,
        observer=_Reporter(out, forecaster),
        tags=tags,
        last_good=good,
        known_out_of_memory=() if options.fresh else out_of_memory(PHASES),
        notes=notes,
        forecast=forecaster,
        host_memory_mib=partial(registry.host_memory_mib, options.runner),
        resolve_fallback_data=partial(_resolve_fallback_data, [config for _, config in plan], options, out),
        search=_step_search(phase, tracker, options, out, tags, factory.make, pool),
        pool=pool,
        adoptable_run=project_run.run_id if project_run and project_run.experiment_id == tracker.experiment_id else "",
    )
    return phase_runner.run_phase(options.fresh)


def _resolve_fallback_data(
    planned: Sequence[RunConfig], options: ClimbOptions, out: Console, config: RunConfig
) -> RunConfig | None:
    """Resolve the data of a fallback that needs more validation samples than planned; None if there are no more."""
    planned_most = max(config.val_samples for config in planned)
    if config.val_samples <= planned_most:
        return config
    if Path(config.data_root).is_relative_to(options.cache):
        return resolve_data(
            [c.with_overrides({"data_root": ""}) for c in (config, *planned)], options.cache, plain(out)
        )[0]
    return config if max(val for _, val in dataset_sizes_cached(config).samples.values()) > planned_most else None


def _step_search(
    phase: Phase,
    tracker: Tracker,
    options: ClimbOptions,
    out: Console,
    tags: Mapping[str, str],
    make_runner: registry.MakeRunner,
    pool: JobPool,
) -> "StepSearch | None":
    if not any(step.search for step in phase.steps):
        return None
    from roofscale.cli.run_search import make_step_search  # imports take seconds

    return make_step_search(tracker, make_runner, out, tags, options.storage, pool, options.runner)


def publish_result(climbed: PhaseResult, tracker: Tracker, options: ClimbOptions, out: Console) -> None:
    """Close the parent run in MLflow with the result of the attempt, then write the documents of all phases.

    Raises:
        TrackingError: the server is away; the result was printed and is kept.
    """
    from roofscale.cli.run_report import STRATEGY
    from roofscale.report.artifacts import publish_phase
    from roofscale.report.phase_section import phase_section, truncate_description

    parent = tracker.open(climbed.run_id)
    next_phase = _following(climbed.phase.number, options)
    try:
        # The parent run's description and report are rendered from memory, not from the server as the documents below
        # are, so that the outbox keeps them while the server is away; with the notes the server has the same data.
        parent.set_tags({"notes": json.dumps(climbed.notes)})
        parent.set_description(truncate_description(phase_section(climbed, next_phase), STRATEGY))
        if not climbed.interrupted:
            parent.set_tags({"verdict": climbed.verdict})
            publish_phase(parent, climbed, next_phase)
    finally:
        parent.finish(Outcome.INTERRUPTED if climbed.interrupted else Outcome.OK)
    # A script gets one result, not those of needed phases.
    is_answer = options.requested or not is_complete_base(climbed)
    if is_answer and options.project_run:
        options.project_run.point_to(climbed.run_id)
    if is_answer or not options.to_json:
        _print_climb(out, climbed, tracker, options.to_json)
    if climbed.phase.number == PHASES[-1]:
        promote_champion(climbed, tracker, out)
    tracker.close(wait=not climbed.interrupted)  # the documents are read from the server
    is_a_phase = tracker.experiment == experiment_name(climbed.phase.number)
    if is_a_phase and not climbed.interrupted and options.experiments.is_dir():
        for written in _write_up(options, out):
            parent.artifact(written)
        tracker.close()


def _publish_unpublished(options: ClimbOptions, out: Console) -> None:
    """Publish the results of phases that were complete when a kill came before their publication."""
    for number in PHASES:
        attempts = Attempts(options.runs, experiment_name(number))
        ended = [attempt.content for attempt in attempts.all()[-1:] if attempt.content.get("verdict")]
        open_runs = [run for content in ended if (run := get_run(content["run_id"])) and run.status == "RUNNING"]
        climbed = latest_result(number) if open_runs else None
        if climbed and climbed.run_id == open_runs[0].run_id:
            tracker = Tracker(attempts.experiment, options.runs)
            publish_result(climbed, tracker, replace(options, requested=False, project_run=None), out)


def _following(number: int, options: ClimbOptions) -> Phase | None:
    """Return the next phase; None if there is none or its file cannot be read."""
    try:
        return options.load(number + 1)
    except ConfigError:
        return None


def _write_up(options: ClimbOptions, out: Console) -> list[Path]:
    """Write the documents; one that cannot be read or written must not stop the climb."""
    from roofscale.cli.run_report import write_report

    try:
        return write_report(options.experiments, out)
    except (RoofscaleError, OSError) as error:
        out.print(escape(f"Not written up: {error} When that is mended: {invocation.command('report')}"))
        return []


def _with_edit_noted(climbed: PhaseResult, read: Callable[[], Phase]) -> PhaseResult:
    """Add a note if the phase file was edited while its steps ran, as the verdict is of the plan before."""
    try:
        same = read().fingerprint == climbed.phase.fingerprint
    except ConfigError:
        same = False
    if same:
        return climbed
    note = "the phase file was edited while this attempt ran; the verdicts are those of the plan that it began with"
    return replace(climbed, notes=(*climbed.notes, note))


class _Reporter:
    """Reporter of a phase: prints its runs and publishes each step in MLflow."""

    def __init__(self, out: Console, forecaster: RunForecaster) -> None:
        self._out, self._forecaster = out, forecaster

    def begin(self, step: Step, config: RunConfig, note: str) -> Listener:
        """Print the run and draw its progress bar."""
        changes = " ".join(f"{key}={config.to_strings()[key]}" for key in step.set)
        self._out.print(f"[bold]{step.name}[/] {changes} {f'({note})' if note else ''}")
        return ProgressBar(step.name)

    def judged(self, result: StepResult, run: TrackedRun) -> None:
        """Publish the step, print its verdict, and add its measurement to the forecaster's records."""
        from roofscale.report.artifacts import publish_run

        self._forecaster.observe(result.config, result.measurement, result.run_id)
        publish_run(run, result.config, result.measurement, result.folder, result.step.memory_margin)
        self._out.print(f"  {result.verdict.verdict.label}: {escape(prerequisites.unmet_criteria(result))}")


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
    if words := batch_words(climbed):
        out.print(escape(words))
    for note in climbed.notes:
        out.print(f"Note: {escape(note)}")
    if climbed.interrupted:
        out.print("Interrupted; the same command goes on where it stopped.")
    print_next_steps(out, tracker, climbed.attempt)


def _fallback_lines(result: StepResult) -> list[str]:
    """Return the fallbacks of a step, and advice for a failure that no fallback mends."""
    lines = [
        f"{result.step.name}: {run.fallback.changed if run.fallback else 'as planned'}: {run.verdict.verdict.label}"
        + (f" ({run.cause})" if run.cause else "")
        for run in (result.runs if result.tries else ())
    ]
    advice = ADVICE.get(result.cause) if result.cause else None
    return [*lines, f"{result.step.name}: {advice}."] if advice else lines


def climb_json(climbed: PhaseResult) -> dict[str, object]:
    """Convert a result to JSON for a script."""
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


def climb_all(options: ClimbOptions) -> int:
    """Climb every phase in order; stop if one was interrupted, stopped early, or has no config for the next.

    The caller has checked the overrides of all phases (``ClimbOptions.require_valid``). A phase that is complete at the
    same plan is skipped, unless ``fresh``.

    Returns:
        The exit code of the first phase that did not pass. A last phase that this machine cannot run is printed, and
        is no failure of the others.
    """
    climbs: list[PhaseResult] = []
    by_phase = {phase.number: options.in_climb(phase) for phase in map(options.load, PHASES)}
    for number, phase_options in by_phase.items():
        climbed = climb_phase(number, phase_options)
        if climbed is None:
            break
        climbs.append(climbed)
        if not climbed.complete or not (options.from_defaults or is_complete_base(climbed)):
            break
    return next((code for code in map(exit_code, climbs) if code), 0)
