"""The command that sends what a tracking server that was away did not take."""

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from roofscale.errors import ExitCode
from roofscale.report.console import as_json, console
from roofscale.tracking import OUTBOX, SyncResult, TrackingError, active_outboxes, pending, send_abandoned, tracking_uri


def sync(runs: Path, dry_run: bool, to_json: bool) -> ExitCode:
    """Send what is kept in the folder of the runs, and say what became of it; return the exit code.

    What is kept for another server than the one in use stays, and so does what a running command will send itself.
    """
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
        named = {"sent": [_as_dict(one) for one in sent], "kept": [_as_dict(one) for one in kept]}
        print(as_json({"server": tracking_uri(), **named, "in_use": list(map(str, busy)), "error": why}))
    else:
        _print_rest(out, kept, busy, dry_run)
        told = [f"Refused by the server, and kept in {runs / OUTBOX}: {line}" for line in refused]
        for line in [*told, *filter(None, [why])]:
            out.print(escape(line), style="bold red")
        if not (sent or kept or busy):
            out.print("Nothing waits to be sent.")
    return ExitCode.ENVIRONMENT if why else ExitCode.FAILED if refused else ExitCode.DONE


def _print_rest(out: Console, kept: list[SyncResult], busy: list[Path], dry_run: bool) -> None:
    for one in kept:
        if one.server != tracking_uri():
            out.print(escape(f"Kept for another server, set MLFLOW_TRACKING_URI to {one.server}: {_words(one)}."))
        elif dry_run:
            out.print(escape(f"Would be sent to {one.server}: {_words(one)}."))
    for folder in busy:
        out.print(escape(f"In use by a running command, which sends it itself: {folder}."))


def _words(one: SyncResult) -> str:
    return f"{one.operations} operations from {one.folder}, runs {', '.join(one.runs)}"


def _as_dict(one: SyncResult) -> dict[str, object]:
    return {**vars(one), "folder": str(one.folder)}
