"""Commands about what is recorded: status of phases and jobs, sync of kept records, registered models.

Status and logs read folders and SageMaker; MLflow, whose import takes seconds, is left to the others.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from roofscale.cli.console import console
from roofscale.errors import ConfigError, ExitCode, RoofscaleError
from roofscale.files import read_json
from roofscale.phases.attempt import Attempt, StepFolder
from roofscale.phases.judge import Verdict, deciding_run
from roofscale.phases.results import PhaseResult
from roofscale.report.format import as_json
from roofscale.runners.sagemaker import session, settings
from roofscale.runners.sagemaker.job import PREFIX, load
from roofscale.runners.sagemaker.job_outcome import RUNNING
from roofscale.runners.sagemaker.request import TAG

if TYPE_CHECKING:
    from roofscale.tracking import SyncResult, Tracker

_SECONDS_BETWEEN_READS = 2.0  # of a log that is followed


def print_status(runs: Path, to_json: bool) -> None:
    """Print the attempts at each phase with their steps, and the running jobs in the user's AWS account."""
    rows = [_attempt_status(path) for path in sorted(runs.glob("roofscale-phase*/[0-9]*/attempt.json"))]
    jobs, why = _running_jobs()
    if to_json:
        print(as_json({"phases": rows, "jobs": jobs, "jobs_unknown": why}))
        return
    out = console()
    if rows:
        out.print(_attempts_table(rows))
    else:
        out.print(f"No phase was begun in {runs.resolve()}. Begin with: roofscale phase 1")
    if jobs:
        out.print(_jobs_table(jobs))
    elif why:
        out.print(f"Running jobs: {escape(why)}")


def _running_jobs() -> tuple[dict[str, dict[str, str]], str]:
    """Return the tags of each running job by its name, and an error; both empty if SageMaker is not configured."""
    if not settings.is_configured():
        return {}, ""
    try:
        jobs = session.connect(settings.load()).running(PREFIX)
    except RoofscaleError as error:
        return {}, str(error)
    return {name: {key.removeprefix(TAG): text for key, text in tags.items()} for name, tags in jobs.items()}, ""


def print_logs(name: str, follow: bool) -> None:
    """Print the log of a job; with ``follow`` until the job is over.

    Raises:
        ConfigError: there is no such job.
    """
    cloud = session.connect(settings.load(required=()))
    described = cloud.describe(name)
    if described is None:
        raise ConfigError(
            f"{name}: there is no such job; expected the name of one, as `roofscale status` shows it for a running job "
            "and the tag job of an MLflow run for one that is over."
        )
    hosts = described.get("ResourceConfig", {}).get("InstanceCount", 1)
    read = cloud.log_reader(name, hosts if described["TrainingJobStatus"] in RUNNING else 1)
    while True:
        is_over = described["TrainingJobStatus"] not in RUNNING
        for line in read():
            print(line, flush=True)
        if is_over or not follow:
            return
        time.sleep(_SECONDS_BETWEEN_READS)
        described = cloud.describe(name) or described


def _jobs_table(jobs: Mapping[str, Mapping[str, str]]) -> Table:
    table = Table("job", "belongs to", "begun in", title="Running jobs; the same command waits for its own",
                  title_justify="left")  # fmt: skip
    for name, tags in jobs.items():
        owner = " ".join(tags[part] for part in ("experiment", "attempt", "step") if part in tags)
        table.add_row(name, escape(owner), escape(tags.get("folder", "")))
    return table


def _attempts_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("experiment", "attempt", "begun", "step", "stands at")
    for row in rows:
        first = (row["experiment"], row["attempt"], row["created"])
        for step, stands in row["steps"].items():
            table.add_row(*first, step, stands)
            first = ("", "", "")
        table.add_section()
    return table


def _attempt_status(file: Path) -> dict[str, Any]:
    attempt, content = Attempt(file.parent), read_json(file)
    steps = {}
    for number, name in enumerate(content["steps"], 1):
        search = attempt.search(number, name)
        runs = (path for path in sorted(attempt.path.glob(f"{search.stem}*")) if path != search)
        # A folder's name is that of the step and, for a further run, "-fallback" or "-repeat" with its number.
        steps[name] = _step_status({path.name.removeprefix(search.stem): StepFolder(path) for path in runs}, search)
    return {
        "experiment": file.parent.parent.name,
        "attempt": file.parent.name,
        "created": content["created"],
        "run_id": content["run_id"],
        "verdict": content.get("verdict"),
        "steps": steps,
    }


def _step_status(runs: Mapping[str, StepFolder], search: Path) -> str:
    """Return the status of a step.

    Args:
        runs: the folders of its runs, by what their names add to that of the step.
        search: the folder of its search; it holds no verdict, so that it counts only until the step has a run.
    """
    if not runs and not search.exists():
        return "not begun"
    verdicts = {suffix: run.verdict for suffix, run in runs.items()}
    under_way = [runs[suffix].path for suffix, verdict in verdicts.items() if not verdict] if runs else [search]
    if under_way:
        if (job := load(under_way[0])) and not job.over:
            return f"job {job.name}, under way when last seen; the same command waits for it"
        seen = [events.stat().st_mtime for events in under_way[0].rglob("events.jsonl")]
        idle = f", last sign of life {time.time() - max(seen):,.0f} s ago" if seen else ""
        return f"under way or stopped{idle}; the same command goes on with it"
    # The verdict of a config's last repeat is that of all its seeds; the planned config comes before its fallbacks.
    by_config = {suffix.partition("-repeat")[0]: verdict for suffix, verdict in verdicts.items() if verdict}
    of_configs = [*by_config.values()]
    deciding = deciding_run(of_configs)
    return of_configs[deciding].verdict.label + (" with a fallback" if deciding else "")


def sync(runs: Path, dry_run: bool, to_json: bool) -> ExitCode:
    """Send the records kept in the runs folder and print the result; return the exit code.

    Records for another tracking server stay, as do those that a running command sends itself.
    """
    from roofscale.tracking import OUTBOX, TrackingError, active_outboxes, pending, send_abandoned, tracking_uri

    out = console(quiet=to_json)
    sent: list[SyncResult] = []
    why = ""
    try:
        for one in () if dry_run else send_abandoned(runs, refused_too=True):
            sent.append(one)
            if one.operations > len(one.refused):
                out.print(escape(f"Sent to {one.server}: {_words(one)}."))
    except TrackingError as error:
        why = str(error)
    kept, busy = pending(runs), active_outboxes(runs)
    refused = [line for one in sent for line in one.refused]
    if to_json:
        named = {"sent": list(map(vars, sent)), "kept": list(map(vars, kept)), "in_use": busy}
        print(as_json({"server": tracking_uri(), **named, "error": why}))
    else:
        _print_rest(out, kept, busy, dry_run)
        lines = [f"Refused by the server, and kept in {runs / OUTBOX}: {line}" for line in refused]
        for line in [*lines, *filter(None, [why])]:
            out.print(escape(line), style="bold red")
        if not (sent or kept or busy):
            out.print("Nothing waits to be sent.")
    return ExitCode.ENVIRONMENT if why else ExitCode.FAILED if refused else ExitCode.DONE


def _print_rest(out: Console, kept: "list[SyncResult]", busy: list[Path], dry_run: bool) -> None:
    from roofscale.tracking import tracking_uri

    for one in kept:
        if one.server != tracking_uri():
            out.print(escape(f"Kept for another server, set MLFLOW_TRACKING_URI to {one.server}: {_words(one)}."))
        elif dry_run:
            out.print(escape(f"Would be sent to {one.server}: {_words(one)}."))
    for folder in busy:
        out.print(escape(f"In use by a running command, which sends it itself: {folder}."))


def _words(one: "SyncResult") -> str:
    return f"{one.operations} operations from {one.folder}, runs {', '.join(one.runs)}"


def register_run(run_id: str, alias: str, name: str, to_json: bool) -> None:
    """Register the model of a run, set an alias, and print both."""
    from roofscale.tracking import register, tracking_uri

    model = register(run_id, alias, name)
    if to_json:
        print(as_json({"run_id": model.run.run_id, "version": model.named, "alias": alias}))
        return
    named = f"{name}@{alias}"
    console().print(f"{escape(named)} is {escape(model.named)}, of run {model.run.run_id} ({escape(tracking_uri())}).")


def promote_champion(climbed: PhaseResult, tracker: "Tracker", out: Console) -> None:
    """Make the model of a phase's last step the champion if the phase passed.

    If the tracking server is away, the outbox keeps it like any other record.
    """
    from roofscale.tracking import CHAMPION

    if climbed.verdict is Verdict.PASSED:
        best = climbed.results[-1]
        tracker.open(best.run_id).set_aliases(CHAMPION)
        out.print(f"The model of {best.step.name}, run {best.run_id}, is the {CHAMPION} now: roofscale predict IMAGE")
