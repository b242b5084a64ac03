"""Train command: one run, outside any phase."""

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from roofscale.cli.console import ProgressBar, console, plain
from roofscale.cli.preflight import preflight
from roofscale.config import RunConfig
from roofscale.data.sources import resolve_data
from roofscale.errors import ExitCode
from roofscale.files import read_json
from roofscale.forecast.run_forecaster import RunForecaster
from roofscale.measurement import METRICS, Measurement, Outcome
from roofscale.phases.attempt import StepFolder
from roofscale.provenance import git_state
from roofscale.report.format import as_json, format_number
from roofscale.runners import registry
from roofscale.runners.supervise import Listeners
from roofscale.tracking import Tracker, check_server
from roofscale.tracking.history import TRAIN_EXPERIMENT

_NEEDED_AFTER = ("roofscale.report.artifacts",)  # imports matplotlib
_EXIT = {
    Outcome.OK: ExitCode.DONE,
    Outcome.INTERRUPTED: ExitCode.INTERRUPTED,
    Outcome.DATA_ERROR: ExitCode.USER_ERROR,
}


def run_training(
    config: RunConfig, runs: Path, cache: Path, fresh: bool, to_json: bool, runner: str = registry.LOCAL
) -> tuple[str, int]:
    """Run one training; return the id of its MLflow run and the exit code."""
    out = console(quiet=to_json)
    check_server()
    config = resolve_data([config], cache, plain(out))[0]
    preflight(runner, [config], out)
    tracker = Tracker(TRAIN_EXPERIMENT, runs)
    folder = _train_folder(runs / tracker.experiment, config, fresh)
    run = tracker.resume(folder.run_id) if folder.run_id else None
    if run is None:
        run = tracker.start(config.fingerprint, {**git_state(Path.cwd()), "fingerprint": config.fingerprint})
        run.log_params(config)
        run.log_forecast(RunForecaster(runs, plain(out), runner)(config))
        folder.set_run(run.run_id, config)
    with run.closed_on_error(), run.system_metrics():
        listener = Listeners(run, ProgressBar("train"))
        measurement = registry.get_runner(runner, _NEEDED_AFTER).make(folder.path, listener)(config)
    run.log_summary(measurement)
    try:
        if measurement.outcome is not Outcome.INTERRUPTED:
            from roofscale.report.artifacts import publish_run

            publish_run(run, config, measurement, folder.path)
    finally:
        run.finish(measurement.outcome, measurement.ended)
    content = {
        "outcome": measurement.outcome,
        "detail": measurement.detail,
        "run_id": run.run_id,
        "folder": str(folder.path),
        "metrics": measurement.metrics,
        "facts": measurement.facts,
    }
    if to_json:
        print(as_json(content))
    else:
        _print_measurement(out, measurement)
        print_next_steps(out, tracker, folder.path)
    tracker.close(wait=measurement.outcome is not Outcome.INTERRUPTED)
    return run.run_id, _EXIT.get(measurement.outcome, ExitCode.FAILED)


def _train_folder(runs: Path, config: RunConfig, fresh: bool) -> StepFolder:
    """Return the newest folder of this config if its run was interrupted, else a new one."""
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


def _print_measurement(out: Console, measurement: Measurement) -> None:
    table = Table(
        "metric", "value", "unit", title=f"{measurement.outcome}: {escape(measurement.detail)}", title_justify="left"
    )
    for name, value in sorted(measurement.metrics.items()):
        table.add_row(name, format_number(value), METRICS[name].unit if name in METRICS else "")
    out.print(table)


def print_next_steps(out: Console, tracker: Tracker, folder: Path) -> None:
    """Print where to find the results."""
    out.print("Where to look next:")
    out.print(f"  make ui           compare the runs in MLflow, experiment {tracker.experiment} ({tracker.uri})")
    out.print(f"  {folder}  what each run left: events, measurement, log")
    out.print("  roofscale status  where every phase stands")
