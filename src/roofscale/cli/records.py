"""Commands on the records in the tracking server and the run folders: report, status, sync."""

import sys

import click

from roofscale.cli.options import PHASES, RUNS, json_option


@click.command()
@json_option
def report(as_json: bool) -> None:
    """Write up what the tracking server has: strategy document, notebook, and a record and a page of each phase."""
    from roofscale.cli.run_report import print_report

    print_report(PHASES, as_json)


@click.command()
@json_option
def status(as_json: bool) -> None:
    """Show where every phase stands: attempts, steps, verdicts, what is half done, and which jobs are running."""
    from roofscale.cli.run_records import print_status

    print_status(RUNS, as_json)


@click.command()
@click.option("--dry-run", is_flag=True, help="Print what would be sent, and send nothing.")
@json_option
def sync(dry_run: bool, as_json: bool) -> None:
    """Send what was kept while the tracking server was away."""
    from roofscale.cli import run_records as commands

    sys.exit(commands.sync(RUNS, dry_run, as_json))
