"""Commands that run: one training, or a phase."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from roofscale import compute
from roofscale.config import RunConfig
from roofscale.data.sources import open_sources, resolve_root
from roofscale.measurement import METRICS, Measurement, Outcome
from roofscale.phases.attempt import Attempts, StepFolder, read_json
from roofscale.phases.judge import Verdict
from roofscale.phases.ladder import ClimbResult, Ladder, Listeners, StepResult
from roofscale.phases.plan import Phase, Plan, Step
from roofscale.provenance import git_state
from roofscale.report.console import ProgressBar, as_json, console
from roofscale.report.publish import publish_run
from roofscale.report.strategy import phase_section, update_strategy
from roofscale.report.table import number, verdict_table
from roofscale.runners.local import LocalRunner
from roofscale.runners.supervise import Listener
from roofscale.tracking import TrackedRun, Tracker

_INTERRUPTED = 130  # what a shell reports of a program that Ctrl-C ended
_EXIT = {Verdict.PASSED: 0, Verdict.FAILED: 1, Verdict.INSUFFICIENT_EVIDENCE: 3}


def experiment_name(phase: int) -> str:
    """The MLflow experiment of a phase."""
    return f"roofscale-phase{phase}"


def exit_code(climbed: ClimbResult) -> int:
    """0 passed, 1 failed, 3 insufficient evidence, 130 interrupted."""
    return _INTERRUPTED if climbed.interrupted else _EXIT[climbed.verdict]


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
        begun = newest.path / "config.json"
        same = begun.exists() and read_json(begun) == config.as_dict()  # data_root is not in the fingerprint
        measured = (newest.path / "measurement.json").exists()
        if same and (not measured or newest.measurement.outcome is Outcome.INTERRUPTED):
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
    git = git_state(Path.cwd())
    ladder = Ladder(
        phase=phase,
        plan=plan,
        tracker=tracker,
        attempts=Attempts(runs, tracker.experiment),
        make_runner=LocalRunner,
        audience=_Onlooker(out),
        tags=git,
    )
    climbed = ladder.climb(fresh)
    section = phase_section(climbed, tracker.experiment, git.get("git_commit", ""))
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
        self._out.print(f"  {result.verdict.verdict.words}: {escape(said)}")


def _with_data(configs: Sequence[RunConfig], cache: Path, out: Console) -> list[RunConfig]:
    """Settle which data is used, say it aloud, and refuse what cannot be had before anything runs."""
    compute.get(configs[0].compute)
    greediest = max(configs, key=lambda config: config.max_samples or float("inf"))
    root, said = resolve_root(greediest, cache)
    out.print(f"Data: {escape(said)}")
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
    title = f"Phase {climbed.phase.number}: {climbed.verdict.words}"
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
