"""What each command of ``cli`` does: put the parts together, and print."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from roofscale import compute
from roofscale.config import FIELDS, RunConfig
from roofscale.data.sources import open_sources, resolve_root
from roofscale.measurement import METRICS, Measurement, Outcome
from roofscale.phases.attempt import Attempts, StepFolder, read_json
from roofscale.phases.judge import Verdict
from roofscale.phases.ladder import ClimbResult, Ladder, Listeners, StepResult
from roofscale.phases.plan import Phase, Step
from roofscale.provenance import git_state
from roofscale.report.console import ProgressBar, as_json, console
from roofscale.report.publish import publish_run
from roofscale.report.strategy import phase_section, update_strategy
from roofscale.report.table import WORDS, number, verdict_table
from roofscale.runners.local import LocalRunner
from roofscale.runners.supervise import Listener
from roofscale.tracking import TrackedRun, Tracker

Plan = Sequence[tuple[Step, RunConfig]]
_INTERRUPTED = 130  # what a shell reports of a program that Ctrl-C ended
_EXIT = {Verdict.PASSED: 0, Verdict.FAILED: 1, Verdict.INSUFFICIENT_EVIDENCE: 3}


def experiment_name(phase: int) -> str:
    """The MLflow experiment of a phase."""
    return f"roofscale-phase{phase}"


def exit_code(climbed: ClimbResult) -> int:
    """0 passed, 1 failed, 3 insufficient evidence, 130 interrupted."""
    return _INTERRUPTED if climbed.interrupted else _EXIT[climbed.verdict]


def print_knobs(to_json: bool) -> None:
    """List every knob of the run config."""
    defaults = RunConfig().written()
    if to_json:
        print(as_json({name: {"default": defaults[name], **field.metadata} for name, field in FIELDS.items()}))
        return
    table = Table("knob", "default", "meaning")
    for name, field in FIELDS.items():
        table.add_row(name, defaults[name], field.metadata["meaning"])
    console().print(table)


def print_config(config: RunConfig, to_json: bool) -> None:
    """Say what a training would run."""
    compute.get(config.compute)  # refuses an unknown one
    if to_json:
        print(as_json({"config": config.as_dict(), "fingerprint": config.fingerprint}))
        return
    changed = config.changed_from(RunConfig())
    table = Table("knob", "value", title=f"run config {config.fingerprint}", title_justify="left")
    for name, value in config.written().items():
        table.add_row(name, value, style="bold" if name in changed else "")
    console().print(table)


def print_plan(phase: Phase, plan: Plan, to_json: bool) -> None:
    """Say what a phase would run, what it expects and how it would be judged."""
    for _, config in plan:
        compute.get(config.compute)
    if to_json:
        print(as_json({"phase": phase, "steps": [{"step": s, "config": c.as_dict()} for s, c in plan]}))
        return
    out = console()
    out.print(f"[bold]Phase {phase.number}: {phase.name}[/] {phase.question}")
    print_config(plan[0][1], to_json=False)
    table = Table("step", "changes", "expects", "criteria", "then", title="steps", title_justify="left")
    for step, config in plan:
        expects = "\n".join(f"{e.metric} {e.describe()}" for e in step.expect)
        criteria = "\n".join(f"{c.name} {_limits(c.limits)}" for c in step.criteria)
        then = f"failed: {step.on_failure}\ninsufficient: {step.on_insufficient}"
        changes = "\n".join(f"{k}={config.written()[k]}" for k in step.set)
        table.add_row(step.name, changes, expects, criteria, then, end_section=True)
    out.print(table)


def _limits(limits: Any) -> str:
    return " ".join(f"{name}={value:g}" for name, value in limits.items())


def train_once(config: RunConfig, runs: Path, cache: Path, fresh: bool, to_json: bool) -> tuple[str, int]:
    """Run one training; return its MLflow run and the exit code."""
    out = console(quiet=to_json)
    config = _with_data([config], cache, out)[0]
    tracker = Tracker("roofscale-train")
    folder = _train_folder(runs / tracker.experiment, config, fresh)
    run = tracker.resume(folder.run_id) if folder.run_id else None
    if run is None:
        run = tracker.start(config.fingerprint, {**git_state(Path.cwd()), "fingerprint": config.fingerprint})
        run.params(config)
        folder.begin(run.run_id)
    with run.system_metrics():
        measurement = LocalRunner(folder.path, Listeners(run, ProgressBar("train")))(config)
    run.summary(measurement)
    if measurement.outcome is not Outcome.INTERRUPTED:
        publish_run(run, config, measurement, folder.path)
    run.finish(measurement.outcome)
    found = {
        "outcome": measurement.outcome,
        "detail": measurement.detail,
        "run_id": run.run_id,
        "folder": str(folder.path),
        "metrics": measurement.metrics,
        "facts": measurement.facts,
    }
    if to_json:
        print(as_json(found))
    else:
        _print_measurement(out, measurement)
        _print_where(out, tracker, folder.path)
    codes = {Outcome.OK: 0, Outcome.INTERRUPTED: _INTERRUPTED}
    return run.run_id, codes.get(measurement.outcome, 1)


def _train_folder(runs: Path, config: RunConfig, fresh: bool) -> StepFolder:
    """The newest folder of this config if its run was left half done, else a new one."""
    earlier = sorted(runs.glob(f"{config.fingerprint}-*"))
    if earlier and not fresh:
        newest = StepFolder(earlier[-1])
        measured = (newest.path / "measurement.json").exists()
        if not measured or newest.measurement.outcome is Outcome.INTERRUPTED:
            return newest
    folder = runs / f"{config.fingerprint}-{len(earlier) + 1:03d}"
    folder.mkdir(parents=True)
    return StepFolder(folder)


def climb_phase(
    phase: Phase, plan: Plan, runs: Path, cache: Path, strategy: Path, fresh: bool, to_json: bool
) -> ClimbResult:
    """Climb a phase, and leave its results on the terminal, in MLflow and in the strategy document."""
    out = console(quiet=to_json)
    out.print(f"[bold]Phase {phase.number}: {phase.name}[/] {escape(phase.question)}")
    configs = _with_data([config for _, config in plan], cache, out)
    plan = [(step, config) for (step, _), config in zip(plan, configs, strict=True)]
    tracker = Tracker(experiment_name(phase.number))
    ladder = Ladder(
        phase=phase,
        plan=plan,
        tracker=tracker,
        attempts=Attempts(runs, tracker.experiment),
        make_runner=LocalRunner,
        audience=_Onlooker(out),
        tags=git_state(Path.cwd()),
    )
    climbed = ladder.climb(fresh)
    section = phase_section(climbed, tracker.experiment)
    parent = TrackedRun(tracker.client, climbed.run_id)
    parent.describe(section)
    if not climbed.interrupted:
        parent.tags({"verdict": climbed.verdict})
        if strategy.parent.is_dir():
            update_strategy(strategy, phase.number, section)
            parent.artifact(strategy)
    parent.finish(Outcome.INTERRUPTED if climbed.interrupted else Outcome.OK)
    _print_climb(out, climbed, tracker, to_json)
    return climbed


class _Onlooker:
    """Shows a climb on the terminal and publishes each step in MLflow."""

    def __init__(self, out: Console) -> None:
        self._out = out

    def begin(self, step: Step, config: RunConfig, note: str) -> Listener:
        """Announce the run and draw its bar."""
        changes = " ".join(f"{key}={config.written()[key]}" for key in step.set)
        self._out.print(f"[bold]{step.name}[/] {changes} {f'({note})' if note else ''}")
        return ProgressBar(step.name)

    def judged(self, result: StepResult, run: TrackedRun) -> None:
        """Publish the step and say how it went."""
        publish_run(run, result.config, result.measurement, result.folder)
        wanting = [f"{c.name}: {c.evidence}" for c in result.verdict.criteria if c.verdict is not Verdict.PASSED]
        said = "; ".join(wanting) or result.measurement.detail
        self._out.print(f"  {WORDS[result.verdict.verdict]}: {escape(said)}")


def _with_data(configs: Sequence[RunConfig], cache: Path, out: Console) -> list[RunConfig]:
    """Settle which data is used, say it aloud, and refuse what cannot be had before anything runs."""
    compute.get(configs[0].compute)
    greediest = max(configs, key=lambda config: config.max_samples or float("inf"))
    root, said = resolve_root(greediest, cache)
    out.print(escape(said))
    settled = [config.with_overrides({"data_root": str(root)}) for config in configs]
    for config in settled:
        open_sources(config, root)
    return settled


def _print_climb(out: Console, climbed: ClimbResult, tracker: Tracker, to_json: bool) -> None:
    if to_json:
        steps = [
            {
                "step": r.step.name,
                "run_id": r.run_id,
                "outcome": r.measurement.outcome,
                **r.verdict.as_dict(),
                "metrics": r.measurement.metrics,
            }
            for r in climbed.results
        ]
        print(
            as_json(
                {
                    "phase": climbed.phase.number,
                    "verdict": climbed.verdict,
                    "interrupted": climbed.interrupted,
                    "run_id": climbed.run_id,
                    "folder": str(climbed.attempt),
                    "steps": steps,
                }
            )
        )
        return
    out.print()
    title = f"Phase {climbed.phase.number}: {WORDS[climbed.verdict]}"
    out.print(verdict_table(title, climbed.results))
    if climbed.interrupted:
        out.print("Interrupted; the same command goes on where it stopped.")
    _print_where(out, tracker, climbed.attempt)


def _print_measurement(out: Console, measurement: Measurement) -> None:
    table = Table(
        "metric", "value", "unit", title=f"{measurement.outcome}: {escape(measurement.detail)}", title_justify="left"
    )
    for name, value in sorted(measurement.metrics.items()):
        table.add_row(name, number(value), METRICS[name].unit if name in METRICS else "")
    out.print(table)


def _print_where(out: Console, tracker: Tracker, folder: Path) -> None:
    out.print("Where to look next:")
    out.print(f"  make ui           compare the runs in MLflow, experiment {tracker.experiment} ({tracker.uri})")
    out.print(f"  {folder}  what each run left: events, measurement, log")
    out.print("  roofscale status  where every phase stands")


def print_status(runs: Path, to_json: bool) -> None:
    """Show every phase's attempts with their steps."""
    rows = [_attempt_status(path) for path in sorted(runs.glob("roofscale-phase*/[0-9]*/attempt.json"))]
    if to_json:
        print(as_json(rows))
        return
    out = console()
    if not rows:
        out.print(f"No phase was begun in {runs.resolve()}. Begin with: roofscale phase 1")
        return
    table = Table("experiment", "attempt", "begun", "step", "stands at")
    for row in rows:
        first = (row["experiment"], row["attempt"], row["created"])
        for step, stands in row["steps"].items():
            table.add_row(*first, step, stands)
            first = ("", "", "")
        table.add_section()
    out.print(table)


def _attempt_status(file: Path) -> dict[str, Any]:
    content = read_json(file)
    steps = {}
    for place, name in enumerate(content["steps"], 1):
        folders = [StepFolder(folder) for folder in sorted(file.parent.glob(f"{place:02d}-{name}*"))]
        steps[name] = _step_status(folders[-1]) if folders else "not begun"
    return {
        "experiment": file.parent.parent.name,
        "attempt": file.parent.name,
        "created": content["created"],
        "run_id": content["run_id"],
        "verdict": content.get("verdict"),
        "steps": steps,
    }


def _step_status(folder: StepFolder) -> str:
    if folder.verdict:
        return WORDS[folder.verdict.verdict]
    events = folder.path / "events.jsonl"
    idle = f", last sign of life {time.time() - events.stat().st_mtime:,.0f} s ago" if events.exists() else ""
    return f"under way or stopped{idle}; the same command goes on with it"
