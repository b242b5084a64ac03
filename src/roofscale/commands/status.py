"""Where everything stands: each phase by what its attempts have left on this machine, and jobs by what AWS says."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from roofscale.errors import RoofscaleError
from roofscale.files import read_json
from roofscale.phases.attempt import StepFolder
from roofscale.phases.judge import Verdict
from roofscale.report.console import as_json, console
from roofscale.runners.sagemaker import settings
from roofscale.runners.sagemaker.job import PREFIX, running_job
from roofscale.runners.sagemaker.request import TAG
from roofscale.runners.sagemaker.session import Session


def print_status(runs: Path, to_json: bool) -> None:
    """Show every phase's attempts with their steps, and the jobs of Roofscale that run in the user's account."""
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
    """The tags of each job by its name, and why that is not known; neither where jobs are not set up here."""
    if not settings.is_configured():
        return {}, ""
    try:
        found = Session(settings.load(), patient=False).cloud.running(PREFIX)
    except RoofscaleError as error:
        return {}, str(error)
    return {name: {key.removeprefix(TAG): text for key, text in tags.items()} for name, tags in found.items()}, ""


def _jobs_table(jobs: Mapping[str, Mapping[str, str]]) -> Table:
    table = Table("job", "belongs to", "begun in", title="Running jobs; the same command waits for its own",
                  title_justify="left")  # fmt: skip
    for name, tags in jobs.items():
        place = " ".join(tags[part] for part in ("experiment", "attempt", "step") if part in tags)
        table.add_row(name, escape(place), escape(tags.get("folder", "")))
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
    content = read_json(file)
    steps = {}
    for place, name in enumerate(content["steps"], 1):
        folders = [StepFolder(folder) for folder in sorted(file.parent.glob(f"{place:02d}-{name}*"))]
        steps[name] = _step_status(folders)
    return {
        "experiment": file.parent.parent.name,
        "attempt": file.parent.name,
        "created": content["created"],
        "run_id": content["run_id"],
        "verdict": content.get("verdict"),
        "steps": steps,
    }


def _step_status(folders: Sequence[StepFolder]) -> str:
    """Where a step stands, from the folders of its runs in the order in which they were begun."""
    if not folders:
        return "not begun"
    if not folders[-1].verdict:
        if job := running_job(folders[-1].path):
            return f"job {job.name}, under way when last seen; the same command waits for it"
        events = folders[-1].path / "events.jsonl"
        idle = f", last sign of life {time.time() - events.stat().st_mtime:,.0f} s ago" if events.exists() else ""
        return f"under way or stopped{idle}; the same command goes on with it"
    passed = [folder for folder in folders if folder.verdict and folder.verdict.verdict is Verdict.PASSED]
    if passed and "-retreat" in passed[-1].path.name:
        return "passed with a remedy"
    return (passed or folders)[-1].verdict.verdict.label  # type: ignore[union-attr]  # all are judged
